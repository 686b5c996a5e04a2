"""The loop on a device gives what the loop on the host gives, bit for bit.

The device is the host: see `host_device`. On a GPU the same is checked where there is one, by the
tests marked ``gpu``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from host_device import HostDevice, HostNetworks
from numpy.typing import NDArray

from berdiff.runtime.backends import Backend, open_backend
from berdiff.runtime.bundle import Bundle
from berdiff.runtime.cuda.backend import DeviceBackend
from berdiff.runtime.cuda.device import OutOfDeviceMemory
from berdiff.runtime.cuda.layout import Layout, settings_record, step_records
from berdiff.runtime.detector import Detection, Detector
from berdiff.runtime.errors import BackendError, InputError
from berdiff.runtime.manifest import SamplingDefaults
from berdiff.runtime.sampler import Sampler

ARRAYS = ("anomaly_map", "flip_map", "reconstruction", "mask", "score")
KINDS = ("squared", "signed", "absolute", "change", "flips")


@pytest.fixture(scope="module")
def cpu(tiny_bundle: Bundle) -> Iterator[Backend]:
    with open_backend(tiny_bundle) as backend:
        yield backend


def on_host(bundle: Bundle, cpu: Backend, memory: int = 1 << 32, **networks: object) -> Detector:
    """A detector whose device is the host; `device` and `networks` are its attributes."""
    device = HostDevice(memory)
    networks_ = HostNetworks(device, bundle, cpu, **networks)  # type: ignore[arg-type]
    detector = Detector(bundle, DeviceBackend("host", bundle, device, networks_))
    detector.device, detector.networks = device, networks_  # type: ignore[attr-defined]
    return detector


def images(bundle: Bundle, count: int) -> NDArray[np.float32]:
    pre = bundle.manifest.preprocessing
    return np.random.default_rng(3).random((count, pre.channels, *pre.size), np.float32)


def same(found: Detection, expected: Detection) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


@pytest.mark.parametrize(
    ("kind", "code", "noise"),
    [
        *((kind, "threshold", "bernoulli") for kind in KINDS),
        ("squared", "sample", "bernoulli"),
        ("change", "sample", "upstream"),
    ],
)
def test_same_bits_as_the_host(
    tiny_bundle: Bundle, cpu: Backend, kind: str, code: str, noise: str
) -> None:
    manifest = dataclasses.replace(tiny_bundle.manifest, forward_noise=noise)  # type: ignore
    bundle = dataclasses.replace(tiny_bundle, manifest=manifest)
    settings = SamplingDefaults(
        noise_level=60, steps=6, flip_threshold=0.55, code=code, anomaly_map=kind, smoothing=0.02
    )  # type: ignore[arg-type]
    batch, ids = images(bundle, 3), [7, 2**63 + 5, 0]
    expected = Detector(bundle, cpu).detect(batch, ids, seed=2**40 + 3, settings=settings)
    with on_host(bundle, cpu) as detector:
        same(detector.detect(batch, ids, seed=2**40 + 3, settings=settings), expected)
    assert len(np.unique(expected.anomaly_map)) > 100


@pytest.mark.parametrize("steps", [(1, 1), (2, 2), (50, 50), (50, None), (300, 7)])
def test_any_number_of_steps(
    tiny_bundle: Bundle, cpu: Backend, steps: tuple[int, int | None]
) -> None:
    settings = dataclasses.replace(
        tiny_bundle.manifest.sampling, noise_level=steps[0], steps=steps[1]
    )
    batch = images(tiny_bundle, 2)
    expected = Detector(tiny_bundle, cpu).detect(batch, [1, 2], settings=settings)
    with on_host(tiny_bundle, cpu) as detector:
        same(detector.detect(batch, [1, 2], settings=settings), expected)


def test_the_step_is_recorded_once_and_replayed(tiny_bundle: Bundle, cpu: Backend) -> None:
    with on_host(tiny_bundle, cpu) as detector:
        device, networks = detector.device, detector.networks  # type: ignore[attr-defined]
        batch = images(tiny_bundle, 4)
        settings = detector.settings(noise_level=40, steps=9)
        first = detector.detect(batch, [1, 2, 3, 4], settings=settings)
        # Other settings, other images: the same graph.
        other = detector.settings(noise_level=200, steps=4, flip_threshold=0.3)
        detector.detect(batch[::-1].copy(), [4, 3, 2, 1], seed=5, settings=other)
        again = detector.detect(batch, [1, 2, 3, 4], settings=settings)
        (graph,) = device.graphs
        assert graph.launches == 8 + 3 + 8
        assert networks.prepared == [4]
        same(again, first)
        # Another batch size needs another graph.
        detector.detect(batch[:3], [1, 2, 3], settings=settings)
        assert graph.closed
        assert [g.launches for g in device.graphs] == [19, 8]


def test_without_capture_the_steps_are_asked_for_one_by_one(
    tiny_bundle: Bundle, cpu: Backend
) -> None:
    batch = images(tiny_bundle, 2)
    expected = Detector(tiny_bundle, cpu).detect(batch, [1, 2])
    with on_host(tiny_bundle, cpu, capturable=False) as detector:
        same(detector.detect(batch, [1, 2]), expected)
        assert detector.device.graphs == []  # type: ignore[attr-defined]
        names = [name for name, _ in detector.networks.calls]  # type: ignore[attr-defined]
    assert names == ["encoder", *["denoiser"] * 5, "decoder"]


def test_what_does_not_fit_is_split_by_the_figures(tiny_bundle: Bundle, cpu: Backend) -> None:
    batch, ids = images(tiny_bundle, 7), list(range(7))
    expected = Detector(tiny_bundle, cpu).detect(batch, ids)
    per_image = Layout.of(tiny_bundle).nbytes(1) + (1 << 16)
    room = (64 << 20) + 3 * per_image
    with on_host(tiny_bundle, cpu, memory=room) as detector:
        assert detector.backend.describe()["largest batch"] == "3"
        same(detector.detect(batch, ids), expected)
        assert detector.networks.prepared == [3, 1]  # type: ignore[attr-defined]
        assert detector.device.peak <= room  # type: ignore[attr-defined]


def test_out_of_memory_halves_the_batch_and_says_so(tiny_bundle: Bundle, cpu: Backend) -> None:
    batch, ids = images(tiny_bundle, 8), list(range(8))
    expected = Detector(tiny_bundle, cpu).detect(batch, ids)
    with on_host(tiny_bundle, cpu, max_batch=8) as detector:
        device = detector.device  # type: ignore[attr-defined]
        device.total = Layout.of(tiny_bundle).nbytes(3)  # somebody else took the rest
        with pytest.warns(RuntimeWarning, match="no room for 8 images at a time; going on with 4"):
            found = detector.detect(batch, ids)
        same(found, expected)
        assert detector.backend.describe()["largest batch"] == "2"
    with on_host(tiny_bundle, cpu) as detector:
        device = detector.device  # type: ignore[attr-defined]
        device.total = 1000
        with pytest.raises(OutOfDeviceMemory, match=r"no room for one image.*smaller precision"):
            detector.detect(batch[:1], [1])
        device.total = 1 << 32  # the others have gone
        same(detector.detect(batch, ids), expected)


def test_what_no_network_can_answer_is_nan_throughout(tiny_bundle: Bundle, cpu: Backend) -> None:
    class Broken:
        """Answers NaN for the second image, in one network."""

        def __init__(self, network: str) -> None:
            self.network = network

        def __getattr__(self, name: str) -> object:
            method = getattr(cpu, name)

            def answer(values: NDArray[np.float32], *rest: int) -> NDArray[np.float32]:
                result = method(values, *rest)
                if name == self.network:
                    result[1, ..., 0, 0] = np.nan
                return result

            return answer

    batch = images(tiny_bundle, 3)
    for network in ("encode", "flip_probability", "decode"):
        broken = Broken(network)
        expected = Detector(tiny_bundle, broken).detect(batch, [1, 2, 3])  # type: ignore[arg-type]
        assert np.isnan(expected.anomaly_map).all(axis=(1, 2)).tolist() == [False, True, False]
        with on_host(tiny_bundle, broken) as detector:  # type: ignore[arg-type]
            same(detector.detect(batch, [1, 2, 3]), expected)


def test_networks_alone(tiny_bundle: Bundle, cpu: Backend) -> None:
    batch = images(tiny_bundle, 5)
    code = (cpu.encode(batch) > 0.5).astype(np.float32)
    with on_host(tiny_bundle, cpu, max_batch=2) as detector:
        np.testing.assert_array_equal(detector.backend.encode(batch), cpu.encode(batch))
        np.testing.assert_array_equal(detector.backend.decode(code), cpu.decode(code))
        for t in (0, 999):
            np.testing.assert_array_equal(
                detector.backend.flip_probability(code, t), cpu.flip_probability(code, t)
            )
        with pytest.raises(BackendError, match=r"decoder got code of shape \(5, 8, 16, 15\)"):
            detector.backend.decode(code[..., 1:])
        with pytest.raises(BackendError, match="between 0 and 999, got 1000"):
            detector.backend.flip_probability(code, 1000)


def test_images_and_results_stay_on_the_device(tiny_bundle: Bundle, cpu: Backend) -> None:
    batch = images(tiny_bundle, 3)
    with on_host(tiny_bundle, cpu) as detector:
        settings = dataclasses.replace(detector.settings(), anomaly_map="change")
        expected = detector.detect(batch, [1, 2, 3], settings=settings)
        found = detector.detect_on_device(batch, [1, 2, 3], settings=settings)
        np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)
        np.testing.assert_array_equal(found.reconstruction, expected.reconstruction)
        assert found.flip_mean.shape == (3, 16, 16)
        np.testing.assert_allclose(
            found.flip_mean.mean(axis=(1, 2)), expected.flip_map.mean(axis=(1, 2)), rtol=1e-5
        )
        assert found.sound.all()

        with pytest.raises(InputError, match=r"shape \(3, 1, 32, 31\), expected \[N, 1, 32, 32\]"):
            detector.detect_on_device(np.ascontiguousarray(batch[..., 1:]), [1, 2, 3])
        with pytest.raises(InputError, match="float64, expected float32"):
            detector.detect_on_device(batch.astype(np.float64), [1, 2, 3])
        with pytest.raises(InputError, match="3 images and 2 ids"):
            detector.detect_on_device(batch, [1, 2])
        with pytest.raises(BackendError, match="C-contiguous"):
            detector.detect_on_device(batch.transpose(0, 1, 3, 2), [1, 2, 3])
        flips = dataclasses.replace(settings, anomaly_map="flips")
        with pytest.raises(BackendError, match="'flips' is made on the host"):
            detector.detect_on_device(batch, [1, 2, 3], settings=flips)
    with pytest.raises(BackendError, match="runs on 'cpu'"):
        Detector(tiny_bundle, cpu).detect_on_device(batch, [1, 2, 3])


def test_everything_is_given_back(tiny_bundle: Bundle, cpu: Backend) -> None:
    detector = on_host(tiny_bundle, cpu)
    detector.detect(images(tiny_bundle, 2), [1, 2])
    detector.close()
    detector.close()
    assert detector.device.allocated == 0  # type: ignore[attr-defined]
    assert detector.networks.closed  # type: ignore[attr-defined]
    with pytest.raises(BackendError, match="closed"):
        detector.detect(images(tiny_bundle, 2), [1, 2])


def test_records_hold_what_the_sampler_says() -> None:
    from berdiff.runtime.schedule import Schedule

    sampler = Sampler(Schedule.linear(), 100, 5, 0.6, "upstream")
    (settings,) = settings_record(2**33 + 9, sampler, "sample")
    assert (settings["seed_low"], settings["seed_high"]) == (9, 2)
    assert (settings["forward_step"], settings["sample_code"], settings["kept"]) == (100, 1, 5)
    assert settings["floor"] == 0
    assert settings["keep"] == np.float32(sampler.schedule.abar[100])
    assert settings["flip_threshold"] == np.float32(0.6)
    steps = step_records(sampler)
    assert steps["timestep"].tolist() == [99, 74, 50, 25, 0]
    assert steps["abar"].tolist()[:-1] == [
        np.float32(sampler.schedule.abar[t]) for t in (74, 50, 25, 0)
    ]
    assert steps[-1].tolist() == (0, 0, 0, 0, 0)
