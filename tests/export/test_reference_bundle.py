"""The whole road at full size: upstream's numbers, through an exported bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy_diffusion
import pytest
from numpy_networks import AutoencoderSpec, DenoiserSpec
from torch_models import torch_autoencoder, torch_denoiser
from upstream_reference import Reference

from berdiff.checkpoint import save_checkpoint
from berdiff.config import ModelConfig
from berdiff.export.write_bundle import export_bundle
from berdiff.runtime.backends import Backend, open_backend
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.sampler import ForwardNoise, Sampler
from berdiff.runtime.schedule import Schedule

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def upstream(reference: Path) -> Reference:
    return Reference(reference)


@pytest.fixture(scope="module")
def backend(upstream: Reference, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    modalities = ("t1", "t1ce", "t2", "flair")
    config = ModelConfig(Preprocessing(channels=4, modalities=modalities, size=(256, 256)))
    folder = tmp_path_factory.mktemp("reference")
    networks = torch_autoencoder(AutoencoderSpec()), torch_denoiser(DenoiserSpec())
    save_checkpoint(folder / "checkpoint", config, *networks)
    bundle = export_bundle(folder / "checkpoint", folder / "bundle")
    with open_backend(bundle) as opened:
        yield opened


def test_autoencoder(upstream: Reference, backend: Backend) -> None:
    probability = backend.encode(upstream["image"])
    np.testing.assert_allclose(probability, upstream["code_prob"], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(probability > 0.5, upstream.code)
    image = backend.decode(upstream.code.astype(np.float32))
    np.testing.assert_allclose(image, upstream["recon"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("t", [0, 50, 999])
def test_denoiser(upstream: Reference, backend: Backend, t: int) -> None:
    flips = backend.flip_probability(upstream.z0[:1].astype(np.float32), t)
    np.testing.assert_allclose(flips, upstream[f"unet_t{t}"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "kind"), [("paper", "bernoulli"), ("upstream", "upstream")])
def test_loop(upstream: Reference, backend: Backend, name: str, kind: ForwardNoise) -> None:
    sampler = Sampler(Schedule.linear(), noise_level=8, forward_noise=kind)
    noise = numpy_diffusion.sequential_noise(1010)
    state = sampler.run(upstream.code.astype(np.float32), backend.flip_probability, noise)
    assert np.mean(state.mask != upstream.mask(name)) <= 1e-3
    assert np.mean(np.abs(state.z - upstream[f"loop_{name}_final"]) > 1e-4) <= 1e-3
    far = np.abs(backend.decode(state.z) - upstream[f"loop_{name}_recon"]) > 1e-4
    assert np.mean(far) <= 1e-3


def test_an_image_does_not_depend_on_its_batch(upstream: Reference, backend: Backend) -> None:
    image = upstream["image"]
    images = np.concatenate([image[..., ::-1], image, 1 - image])
    codes = upstream.z0.astype(np.float32)[[0, 1, 0]]
    np.testing.assert_array_equal(backend.encode(images)[1:2], backend.encode(image))
    together = backend.flip_probability(codes, 100)
    np.testing.assert_array_equal(together[1:2], backend.flip_probability(codes[1:2], 100))
    np.testing.assert_array_equal(backend.decode(codes)[1:2], backend.decode(codes[1:2]))
