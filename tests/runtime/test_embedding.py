"""What software that embeds a detector relies on: threads, deadlines, processes, memory."""

from __future__ import annotations

import concurrent.futures
import inspect
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeBackend, fake_detector
from host_device import HostDevice, HostNetworks
from numpy.typing import NDArray

import berdiff.runtime
from berdiff.runtime import (
    BackendError,
    Bundle,
    Cancelled,
    DeadlineExceeded,
    Detection,
    Detector,
    InputError,
)
from berdiff.runtime.backends import open_backend
from berdiff.runtime.cuda.backend import DeviceBackend
from berdiff.runtime.manifest import Threshold
from berdiff.runtime.preprocessing import Preprocessing

ARRAYS = ("anomaly_map", "flip_map", "reconstruction", "mask", "score")
COLOUR = Preprocessing(2, ("t1", "t2"), (32, 40))


def images(detector: Detector, count: int) -> NDArray[np.float32]:
    pre = detector.bundle.manifest.preprocessing
    return np.random.default_rng(5).random((count, pre.channels, *pre.size), np.float32)


def same(found: Detection, expected: Detection) -> bool:
    return all(np.array_equal(getattr(found, n), getattr(expected, n)) for n in ARRAYS)


@pytest.fixture(scope="module")
def detector(tiny_bundle: Bundle) -> Iterator[Detector]:
    with Detector.open(tiny_bundle, threads=2) as opened:
        yield opened


# --- names ---


def test_every_public_name_is_there_documented_and_typed() -> None:
    for name in berdiff.runtime.__all__:
        value = getattr(berdiff.runtime, name)
        if name == "API_VERSION":
            assert value == (1, 0)
            continue
        assert inspect.getdoc(value), name
    with pytest.raises(AttributeError, match="no attribute 'Detektor'"):
        _ = berdiff.runtime.Detektor  # type: ignore[attr-defined]
    for name, method in inspect.getmembers(Detector, inspect.isfunction):
        if not name.startswith("_"):
            assert "return" in method.__annotations__, name
            assert inspect.getdoc(method), name


# --- threads ---


def test_eight_threads_share_a_detector_and_get_what_one_gets(detector: Detector) -> None:
    pixels = images(detector, 24)
    settings = detector.settings(steps=6)

    def one(number: int) -> Detection:
        return detector.detect(pixels[number : number + 1], [number], 7, settings)

    alone = [one(number) for number in range(24)]
    start = threading.Barrier(8)

    def work(share: int) -> list[bool]:
        start.wait(60)
        order = np.random.default_rng(share).permutation(24)[:12]
        return [same(one(int(number)), alone[number]) for number in order]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(all(found) for found in pool.map(work, range(8)))


def test_threads_take_turns_on_a_device(tiny_bundle: Bundle) -> None:
    device = HostDevice()
    with open_backend(tiny_bundle) as cpu:
        networks = HostNetworks(device, tiny_bundle, cpu)
        with Detector(tiny_bundle, DeviceBackend("host", tiny_bundle, device, networks)) as shared:
            pixels, settings = images(shared, 8), shared.settings(steps=4)

            def one(number: int) -> Detection:
                return shared.detect(pixels[number : number + 1], [number], 7, settings)

            alone = [one(number) for number in range(8)]
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                found = list(pool.map(one, [*range(8)] * 3))
    assert all(same(got, alone[index % 8]) for index, got in enumerate(found))


# --- deadlines ---


class Counting(FakeBackend):
    """Counts steps; from the third on somebody wants it to end."""

    def __init__(self, event: threading.Event | None = None) -> None:
        super().__init__(1)
        self.steps, self.event = 0, event

    def flip_probability(self, code: NDArray[np.float32], t: int) -> NDArray[np.float32]:
        self.steps += 1
        if self.steps == 3:
            if self.event:
                self.event.set()
            else:
                time.sleep(0.3)
        return super().flip_probability(code, t)


def test_a_call_is_cancelled_between_steps_and_leaves_nothing_behind() -> None:
    event = threading.Event()
    reference = fake_detector()
    backend = Counting(event)
    with Detector(reference.bundle, backend) as detector:
        pixels = images(detector, 2)
        with pytest.raises(Cancelled, match="was cancelled"):
            detector.detect(pixels, [1, 2], cancel=event)
        assert backend.steps == 3
        with pytest.raises(Cancelled):
            detector.detect(pixels, [1, 2], cancel=event)
        assert backend.steps == 3
        assert same(detector.detect(pixels, [1, 2]), reference.detect(pixels, [1, 2]))


def test_a_deadline_ends_a_call_between_steps() -> None:
    backend = Counting()
    with Detector(fake_detector().bundle, backend) as detector:
        pixels = images(detector, 1)
        with pytest.raises(DeadlineExceeded, match=r"did not end within 0\.2 s; take fewer steps"):
            detector.detect(pixels, [1], timeout=0.2)
        assert backend.steps <= 3
        detector.detect(pixels, [1], timeout=600)


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_deadline_has_to_lie_ahead(timeout: float) -> None:
    with fake_detector() as detector, pytest.raises(InputError, match="timeout must be a positive"):
        detector.detect(images(detector, 1), [1], timeout=timeout)


def test_the_slices_of_a_scan_share_one_deadline() -> None:
    event = threading.Event()
    backend = Counting(event)
    with Detector(fake_detector().bundle, backend) as detector:
        with pytest.raises(Cancelled):
            detector.detect_slices(100 * images(detector, 4), batch_size=1, cancel=event)
        assert backend.steps == 3


def test_a_deadline_holds_on_a_device(tiny_bundle: Bundle) -> None:
    event, device = threading.Event(), HostDevice()
    with open_backend(tiny_bundle) as cpu:
        networks = HostNetworks(device, tiny_bundle, cpu)
        with Detector(tiny_bundle, DeviceBackend("host", tiny_bundle, device, networks)) as walker:
            pixels, settings = images(walker, 2), walker.settings(steps=12)
            expected = walker.detect(pixels, [1, 2], settings=settings)
            launched: list[str] = []
            launch = device.launch

            def counted(kernel: str, *arguments: object) -> None:
                launched.append(kernel)
                if launched.count("step") == 6:
                    event.set()
                launch(kernel, *arguments)  # type: ignore[arg-type]

            device.launch = counted  # type: ignore[method-assign,assignment]
            walker.detect(pixels, [1, 2], settings=settings, timeout=600)  # captured anew
            event.clear()
            launched.clear()
            with pytest.raises(Cancelled):
                walker.detect(pixels, [1, 2], settings=settings, cancel=_After(event, 2))
            assert "finish" not in launched
            again = walker.detect(pixels, [1, 2], settings=settings)
    assert same(again, expected)


class _After:
    """Set from the given question on."""

    def __init__(self, event: threading.Event, questions: int) -> None:
        self.event, self.left = event, questions

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_who_waits_for_the_device_can_be_called_off(tiny_bundle: Bundle) -> None:
    device = HostDevice()
    with open_backend(tiny_bundle) as cpu:
        backend = DeviceBackend("host", tiny_bundle, device, HostNetworks(device, tiny_bundle, cpu))
        with Detector(tiny_bundle, backend) as detector, backend._turn:
            for reason, limits in (
                (DeadlineExceeded, {"timeout": 0.05}),
                (Cancelled, {"cancel": _After(threading.Event(), 1)}),
            ):
                with pytest.raises(reason):
                    detector.detect(images(detector, 1), [1], **limits)  # type: ignore[arg-type]


# --- processes ---


def test_a_detector_does_not_travel(detector: Detector) -> None:
    with pytest.raises(TypeError, match="open one per process"):
        pickle.dumps(detector)


FORKED = """
import os, sys
import numpy as np
from berdiff.runtime import BackendError, Detector
detector = Detector.open(sys.argv[1], threads=2)
pre = detector.bundle.manifest.preprocessing
image = np.full((1, pre.channels, *pre.size), 0.5, np.float32)
detector.detect(image, [1], settings=detector.settings(steps=2))
child = os.fork()
if child == 0:
    try:
        detector.detect(image, [1])
    except BackendError as error:
        print("refused:", error, flush=True)
    detector.close()
    with Detector.open(sys.argv[1], threads=2) as own:
        score = own.detect(image, [1], settings=own.settings(steps=2)).score[0]
    print("own:", score, flush=True)
    sys.exit(0)  # as a worker ends that runs everything it registered
_, status = os.waitpid(child, 0)
print("child ended with", os.waitstatus_to_exitcode(status))
print("parent:", detector.detect(image, [1], settings=detector.settings(steps=2)).score[0])
detector.close()
"""


def test_a_fork_is_noticed_and_the_child_opens_its_own(tiny_bundle: Bundle) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, tiny_bundle.path],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    refused, own, ended, parent = done.stdout.splitlines()
    assert "engines do not survive a fork" in refused
    assert ended == "child ended with 0"
    assert own.split(": ")[1] == parent.split(": ")[1]


SPAWNED = """
import multiprocessing, sys
import numpy as np
from berdiff.runtime import Detector

def score(path):
    with Detector.open(path, threads=1) as detector:
        pre = detector.bundle.manifest.preprocessing
        image = np.full((1, pre.channels, *pre.size), 0.5, np.float32)
        return detector.detect(image, [1], settings=detector.settings(steps=2)).score[0]

if __name__ == "__main__":
    own = score(sys.argv[1])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(own == pool.apply(score, sys.argv[1:]))
"""


def test_spawned_processes_open_their_own(tiny_bundle: Bundle, tmp_path: Path) -> None:
    script = tmp_path / "spawned.py"
    script.write_text(SPAWNED)
    done = subprocess.run(
        [sys.executable, script, tiny_bundle.path],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == "True\n"


# --- the end ---


def test_closing_waits_for_calls_and_refuses_others(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    detector = fake_detector(hold=str(gate))
    pixels = images(detector, 1)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        running = pool.submit(detector.detect, pixels, [1])
        while not detector._lifetime._calls:
            time.sleep(0.001)
        closing = pool.submit(detector.close)
        while not detector._lifetime._closed:
            time.sleep(0.001)
        with pytest.raises(BackendError, match="the detector is closed"):
            detector.detect(pixels, [1])
        assert not closing.done()
        gate.unlink()
        assert running.result(60).score.shape == (1,)
        closing.result(60)
    detector.close()


def test_nothing_stays_open(tiny_bundle: Bundle) -> None:
    """Descriptors and threads: memory takes longer to tell, see benchmarks/embedding.py."""

    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    def once() -> None:
        with Detector.open(tiny_bundle, threads=2) as detector:
            detector.detect(images(detector, 1), [1], settings=detector.settings(steps=2))

    once()
    before = held()
    for _ in range(3):
        once()
    assert held() == before


# --- arrays ---


def test_arrays_come_and_go_by_dlpack(detector: Detector) -> None:
    pixels = images(detector, 2)
    expected = detector.detect(pixels, [1, 2])
    tensor = torch.from_numpy(pixels.copy())
    found = detector.detect(tensor, [1, 2])
    assert same(found, expected)
    for name in ARRAYS:
        taken = torch.from_dlpack(getattr(found, name))
        assert taken.data_ptr() == getattr(found, name).ctypes.data  # no copy
    assert same(detector.detect(tensor.double(), [1, 2]), expected)
    assert same(detector.detect(pixels.tolist(), [1, 2]), expected)


def test_what_cannot_be_viewed_is_refused(detector: Detector) -> None:
    class OnGpu:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    with pytest.raises(InputError, match=r"do not lie in host memory.*detect_on_device"):
        detector.detect(OnGpu(), [1])
    grown = torch.rand(1, 1, 4, 4, requires_grad=True)
    with pytest.raises(InputError, match="cannot be read as an array"):
        detector.detect(grown, [1])
    with pytest.raises(InputError, match="expected real numbers"):
        detector.detect("scan.nii.gz", [1])


# --- slices of a scan on their own grid ---


def head(channels: int = 2) -> NDArray[np.int16]:
    """Five slices, the first without anything, on a grid smaller than the model's."""
    rng = np.random.default_rng(0)
    slices = rng.integers(100, 900, (5, channels, 28, 36)).astype(np.int16)
    slices[:, :, :3] = 0
    slices[0] = 0
    return slices


def test_slices_get_what_their_images_get() -> None:
    with fake_detector(COLOUR) as detector:
        slices, model = head(), detector.bundle.manifest.preprocessing
        found = detector.detect_slices(slices, ids=[9, 10, 11, 12, 13], seed=4, batch_size=3)
        for number in range(1, 5):
            image = model.to_grid(slices[number])
            alone = detector.detect(image[None], [9 + number], seed=4)
            own = model.from_grid(alone.anomaly_map[0], (28, 36))
            np.testing.assert_array_equal(found.anomaly_map[number], own)
            assert found.scores[number] == alone.score[0]
        assert not found.anomaly_map[0].any()
        assert np.isnan(found.scores[0])
        assert found.score == np.nanmax(found.scores) == found.scores[found.worst_slice]
        assert found.reconstruction.shape == (5, 2, 28, 36)
        assert (found.verdict, found.threshold_source) == ("ok", "otsu")
        assert set(found.timings) == {"prepare", "encode", "loop", "decode", "maps", "restore"}
        assert not found.mask[:, :3].any()


def test_slices_draw_the_noise_of_their_values() -> None:
    with fake_detector(COLOUR) as detector:
        one, other = (detector.detect_slices(head()) for _ in range(2))
        np.testing.assert_array_equal(one.anomaly_map, other.anomaly_map)
        changed = head()
        changed[4, 0, 20, 20] += 1
        third = detector.detect_slices(changed)
        assert not np.array_equal(one.flip_map[1], third.flip_map[1]) or not np.array_equal(
            one.anomaly_map[1], third.anomaly_map[1]
        )


def test_the_threshold_is_the_callers_or_the_calibrated_one() -> None:
    calibrated = Threshold(0.25, "test", "squared", 100, 10, 0.5)
    with fake_detector(COLOUR, threshold=calibrated) as detector:
        found = detector.detect_slices(head())
        assert (found.threshold, found.threshold_source) == (0.25, "bundle")
        found = detector.detect_slices(head(), threshold=0.125)
        assert (found.threshold, found.threshold_source) == (0.125, "option")
        other = detector.settings(noise_level=50)
        assert detector.detect_slices(head(), settings=other).threshold_source == "otsu"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[:, :1], r"got slices of shape \(5, 1, 28, 36\), expected \[S, 2, H0, W0\]"),
        (lambda s: s[0], "got slices of shape"),
        (lambda s: s[:0], "got slices of shape"),
        (lambda s: s * 1j, "complex128, expected real numbers"),
        (lambda s: s * 0, "constant"),
        (lambda s: np.where(s > 800, np.nan, s), "NaN or infinite"),
        (lambda s: s * 1e300, "NaN or infinite"),
        (lambda s: np.tile(s, (1, 1, 8, 8)), "outside the model's field of view"),
    ],
    ids=["channels", "one slice", "none", "complex", "constant", "nan", "too large", "too wide"],
)
def test_slices_that_cannot_be_used_are_refused(change, message: str) -> None:  # type: ignore[no-untyped-def]
    with fake_detector(COLOUR) as detector, pytest.raises(InputError, match=message):
        detector.detect_slices(change(head()))


def test_other_mistakes_are_named() -> None:
    with fake_detector(COLOUR) as detector:
        with pytest.raises(InputError, match="got 5 slices and 2 ids"):
            detector.detect_slices(head(), ids=[1, 2])
        with pytest.raises(InputError, match="64-bit"):
            detector.detect_slices(head(), ids=[1, 2, 3, 4, -1])
        with pytest.raises(InputError, match="batch size"):
            detector.detect_slices(head(), batch_size=0)
        with pytest.raises(InputError, match="threshold must be a number"):
            detector.detect_slices(head(), threshold=float("nan"))
    broken = fake_detector(COLOUR, answer_nan=True)
    with broken, pytest.raises(BackendError, match="answered with NaN or infinity"):
        broken.detect_slices(head())
