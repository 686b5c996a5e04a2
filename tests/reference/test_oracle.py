"""The oracle against the numbers upstream's own code computed, and golden_small.npz against it."""

from __future__ import annotations

from pathlib import Path

import make_golden
import numpy as np
import numpy_diffusion as diffusion
import numpy_networks as networks
import pytest
from numpy_networks import AutoencoderSpec, DenoiserSpec
from parameter_shapes import autoencoder_shapes, denoiser_shapes
from upstream_reference import Reference


@pytest.fixture(scope="module")
def upstream(reference: Path) -> Reference:
    return Reference(reference)


def test_golden_file_is_what_the_oracle_computes() -> None:
    stored = make_golden.load()
    computed = {k: make_golden.stored(k, v) for k, v in make_golden.make_golden().items()}
    assert set(stored) == set(computed)
    np.testing.assert_allclose(
        computed["weights_sum"],
        stored["weights_sum"],
        rtol=1e-9,
        err_msg="NumPy's generator no longer draws the weights the golden file was made with",
    )
    for name, values in computed.items():
        assert values.dtype == stored[name].dtype, name
        np.testing.assert_allclose(values, stored[name], rtol=0, atol=1e-6, err_msg=name)


def test_parameter_names_and_shapes_are_upstreams(upstream: Reference) -> None:
    assert autoencoder_shapes(AutoencoderSpec()) == upstream.shapes("ae")
    assert denoiser_shapes(DenoiserSpec()) == upstream.shapes("unet")


@pytest.mark.slow
def test_networks_match_upstream(upstream: Reference) -> None:
    weights = networks.named_weights(autoencoder_shapes(AutoencoderSpec()))
    probability = networks.encode(weights, AutoencoderSpec(), upstream["image"])
    np.testing.assert_allclose(probability, upstream["code_prob"], rtol=0, atol=1e-4)
    recon = networks.decode(weights, AutoencoderSpec(), upstream.code)
    np.testing.assert_allclose(recon, upstream["recon"], rtol=0, atol=1e-4)
    weights = networks.named_weights(denoiser_shapes(DenoiserSpec()))
    for t in (0, 50, 999):
        eps = networks.denoise(weights, DenoiserSpec(), upstream.z0[:1], t)
        np.testing.assert_allclose(eps, upstream[f"unet_t{t}"], rtol=0, atol=1e-4)


def test_diffusion_matches_upstream(upstream: Reference) -> None:
    abar = diffusion.cumulative_alphas()
    np.testing.assert_allclose(abar, upstream["alphas_cumprod"], rtol=1e-12)
    times = upstream.diffusion_times
    at, before = (abar[t].reshape(-1, 1, 1, 1) for t in (times, times - 1))
    computed = {
        "q_mean_paper": diffusion.forward_mean(upstream.z0, at, "bernoulli"),
        "q_mean_reference": diffusion.forward_mean(upstream.z0, at, "upstream"),
        "posterior": diffusion.posterior(upstream.soft_z0, upstream.zt, at / before, before),
    }
    for name, values in computed.items():
        np.testing.assert_allclose(values[:, :4], upstream[name], rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("paper", "bernoulli"), ("upstream", "upstream")])
def test_loop_matches_upstream(upstream: Reference, name: str, kind: str) -> None:
    weights = networks.named_weights(denoiser_shapes(DenoiserSpec()))
    run = diffusion.masked_loop(
        upstream.code.astype(np.float64),
        lambda z, t: networks.denoise(weights, DenoiserSpec(), z, t),
        diffusion.sequential_noise(1010),
        diffusion.cumulative_alphas(),
        noise_level=8,
        kind=kind,
    )
    assert np.mean(run.mask != upstream.mask(name)) <= 1e-3
    far = np.abs(run.final - upstream[f"loop_{name}_final"]) > 1e-4
    assert far.mean() <= 1e-3
