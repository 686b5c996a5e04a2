"""PyTorch networks and loop of full size against what upstream's own code computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy_diffusion
import numpy_networks
import pytest
import torch
from numpy_networks import AutoencoderSpec, DenoiserSpec
from parameter_shapes import autoencoder_shapes, denoiser_shapes
from torch_models import tensor, torch_autoencoder, torch_denoiser
from upstream_reference import Reference

from berdiff.config import DenoiserConfig
from berdiff.denoiser import Denoiser
from berdiff.diffusion import TorchNoise, forward_mean, posterior, reverse_loop
from berdiff.runtime.sampler import Sampler
from berdiff.runtime.schedule import Schedule


@pytest.fixture(scope="module")
def upstream(reference: Path) -> Reference:
    return Reference(reference)


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return torch_denoiser(DenoiserSpec())


def sequential_noise(key: int) -> TorchNoise:
    noise = numpy_diffusion.sequential_noise(key)
    return lambda t, shape: torch.from_numpy(noise(t, tuple(shape)))


def assert_close(values: torch.Tensor, expected: Any, tolerance: float) -> None:
    np.testing.assert_allclose(values.numpy(), expected, rtol=0, atol=tolerance)


def test_denoiser_has_the_published_size() -> None:
    with torch.device("meta"):
        denoiser = Denoiser(DenoiserConfig())
    assert sum(p.numel() for p in denoiser.parameters()) == 36_034_432


def test_parameters_are_upstreams_but_the_unused(upstream: Reference, denoiser: Denoiser) -> None:
    ours = {k: tuple(v.shape) for k, v in denoiser.state_dict().items()}
    assert ours == upstream.shapes("unet") == denoiser_shapes(DenoiserSpec())
    theirs = upstream.shapes("ae")
    assert theirs == autoencoder_shapes(AutoencoderSpec())
    autoencoder = torch_autoencoder(AutoencoderSpec())
    ours = {k: tuple(v.shape) for k, v in autoencoder.state_dict().items()}
    assert all(theirs[name] == shape for name, shape in ours.items())
    unused = theirs.keys() - ours.keys()
    assert all(".conv_out." in name or ".logsigma." in name for name in unused)


@pytest.mark.slow
@torch.no_grad()
def test_autoencoder(upstream: Reference) -> None:
    autoencoder = torch_autoencoder(AutoencoderSpec())
    probability = autoencoder.encode(tensor(upstream["image"]))
    assert_close(probability, upstream["code_prob"], 1e-4)
    np.testing.assert_array_equal((probability > 0.5).numpy(), upstream.code)
    assert_close(autoencoder.decode(tensor(upstream.code)), upstream["recon"], 1e-4)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("t", [0, 50, 999])
def test_denoiser(upstream: Reference, denoiser: Denoiser, t: int) -> None:
    eps = denoiser(tensor(upstream.z0[:1]), torch.tensor([t]))
    assert_close(eps, upstream[f"unet_t{t}"], 1e-4)


def test_schedule(upstream: Reference) -> None:
    np.testing.assert_allclose(Schedule.linear().abar, upstream["alphas_cumprod"], rtol=1e-12)


@pytest.mark.parametrize(
    ("kind", "name"), [("bernoulli", "q_mean_paper"), ("upstream", "q_mean_reference")]
)
def test_forward_mean(upstream: Reference, kind: Any, name: str) -> None:
    abar = torch.tensor(Schedule.linear().abar)[upstream.diffusion_times]
    mean = forward_mean(tensor(upstream.z0[:, :4]), abar[:, None, None, None], kind)
    assert_close(mean, upstream[name], 1e-6)


def test_posterior(upstream: Reference) -> None:
    schedule = Schedule.linear()
    for i, t in enumerate(upstream.diffusion_times):
        mean = posterior(
            tensor(upstream.zt[i, :4]),
            tensor(upstream.soft_z0[i, :4]),
            schedule.alpha_between(t, t - 1),
            float(schedule.abar[t - 1]),
        )
        assert_close(mean, upstream["posterior"][i], 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("paper", "bernoulli"), ("upstream", "upstream")])
def test_loop(upstream: Reference, denoiser: Denoiser, name: str, kind: Any) -> None:
    sampler = Sampler(Schedule.linear(), noise_level=8, forward_noise=kind)
    final, mask = reverse_loop(denoiser, tensor(upstream.code), sampler, sequential_noise(1010))
    assert np.mean(mask.numpy() != upstream.mask(name)) <= 1e-3
    far = np.abs(final.numpy() - upstream[f"loop_{name}_final"]) > 1e-4
    assert far.mean() <= 1e-3


@pytest.mark.slow
def test_loop_with_fewer_steps_matches_the_oracle(upstream: Reference, denoiser: Denoiser) -> None:
    """Upstream's fixtures hold no respaced loop; the oracle, checked against them, does."""
    weights = numpy_networks.named_weights(denoiser_shapes(DenoiserSpec()))
    expected = numpy_diffusion.masked_loop(
        upstream.code.astype(np.float64),
        lambda z, t: numpy_networks.denoise(weights, DenoiserSpec(), z, t),
        numpy_diffusion.sequential_noise(1010),
        numpy_diffusion.cumulative_alphas(),
        noise_level=200,
        steps=5,
        kind="upstream",
    )
    sampler = Sampler(Schedule.linear(), noise_level=200, steps=5, forward_noise="upstream")
    assert list(sampler.kept) == expected.times
    final, mask = reverse_loop(denoiser, tensor(upstream.code), sampler, sequential_noise(1010))
    assert np.mean(mask.numpy() != expected.mask) <= 1e-3
    assert np.mean(np.abs(final.numpy() - expected.final) > 1e-4) <= 1e-3
