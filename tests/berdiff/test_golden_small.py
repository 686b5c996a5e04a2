"""PyTorch networks and diffusion of a tiny model against the oracle's stored numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import make_golden
import numpy as np
import numpy_diffusion
import numpy_networks
import pytest
import torch
from make_golden import AUTOENCODER, DENOISER, LOOPS
from parameter_shapes import autoencoder_shapes, denoiser_shapes
from torch_models import tensor, torch_autoencoder, torch_denoiser

from berdiff.autoencoder import BinaryAutoencoder
from berdiff.denoiser import Denoiser
from berdiff.diffusion import TorchNoise, forward_mean, posterior, reverse_loop, training_loss
from berdiff.runtime.philox import CODE_STEP, PhiloxNoise
from berdiff.runtime.sampler import Sampler
from berdiff.runtime.schedule import Schedule

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return make_golden.load()


@pytest.fixture(scope="module")
def autoencoder() -> BinaryAutoencoder:
    return torch_autoencoder(AUTOENCODER)


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return torch_denoiser(DENOISER)


def injected(noise: PhiloxNoise) -> TorchNoise:
    return lambda t, shape: torch.from_numpy(noise(t, tuple(shape)))


def assert_close(values: torch.Tensor, expected: Any, tolerance: float = TOLERANCE) -> None:
    np.testing.assert_allclose(values.detach().numpy(), expected, rtol=0, atol=tolerance)


def test_autoencoder_lacks_only_unused_parameters(
    autoencoder: BinaryAutoencoder,
) -> None:
    upstream = autoencoder_shapes(AUTOENCODER)
    ours = {name: tuple(value.shape) for name, value in autoencoder.state_dict().items()}
    assert all(upstream[name] == shape for name, shape in ours.items())
    unused = upstream.keys() - ours.keys()
    assert all(".conv_out." in name or ".logsigma." in name for name in unused)


def test_denoiser_has_upstreams_parameters(denoiser: Denoiser) -> None:
    ours = {name: tuple(value.shape) for name, value in denoiser.state_dict().items()}
    assert ours == denoiser_shapes(DENOISER)


@torch.no_grad()
def test_encoder(golden: dict[str, Any], autoencoder: BinaryAutoencoder) -> None:
    assert_close(autoencoder.encode(tensor(golden["image"])), golden["code_probability"])


@torch.no_grad()
def test_decoder(golden: dict[str, Any], autoencoder: BinaryAutoencoder) -> None:
    code = tensor(golden["code_probability"] > 0.5)
    assert_close(autoencoder.decode(code), golden["reconstruction"])


@torch.no_grad()
def test_sampled_code(golden: dict[str, Any], autoencoder: BinaryAutoencoder) -> None:
    noise = PhiloxNoise(int(golden["seed"]), golden["image_ids"])
    uniforms = injected(noise)(CODE_STEP, torch.Size(golden["sampled_code"].shape))
    image = tensor(golden["image"])
    np.testing.assert_array_equal(
        (uniforms < autoencoder.encode(image)).numpy(), golden["sampled_code"]
    )
    reconstruction, probability = autoencoder(image, uniforms)
    assert_close(probability, golden["code_probability"])
    assert_close(reconstruction, autoencoder.decode(tensor(golden["sampled_code"])))


@torch.no_grad()
def test_denoiser(golden: dict[str, Any], denoiser: Denoiser) -> None:
    code = tensor(golden["code_probability"] > 0.5)
    assert_close(denoiser(code, torch.tensor(golden["denoiser_times"])), golden["denoiser"])
    assert_close(denoiser(code[:1], torch.tensor([0])), golden["denoiser_t0"])


@torch.no_grad()
def test_denoiser_of_a_shorter_schedule_sees_scaled_timesteps(golden: dict[str, Any]) -> None:
    spec = replace(DENOISER, num_timesteps=250)
    code = golden["code_probability"] > 0.5
    expected = numpy_networks.denoise(make_golden.denoiser_weights(), spec, code, 37)
    assert_close(torch_denoiser(spec)(tensor(code), torch.tensor([37, 37])), expected)


@pytest.mark.parametrize("kind", ["bernoulli", "upstream"])
def test_forward_mean(golden: dict[str, Any], kind: Any) -> None:
    abar = torch.tensor(Schedule.linear().abar)[golden["diffusion_times"]]
    mean = forward_mean(tensor(golden["z0"]), abar[:, None, None, None], kind)
    assert_close(mean, golden[f"mean_{kind}"], 1e-6)


def test_posterior(golden: dict[str, Any]) -> None:
    schedule = Schedule.linear()
    for i, t in enumerate(golden["diffusion_times"]):
        mean = posterior(
            tensor(golden["zt"][i]),
            tensor(golden["soft_z0"][i]),
            schedule.alpha_between(t, t - 1),
            float(schedule.abar[t - 1]),
        )
        assert_close(mean, golden["posterior"][i], 1e-6)


@pytest.mark.parametrize("kind", ["bernoulli", "upstream"])
def test_training_loss_is_the_cross_entropy_of_the_flips(golden: dict[str, Any], kind: Any) -> None:
    z0, times = golden["z0"], golden["diffusion_times"]
    u = np.random.Generator(np.random.Philox(key=5)).random(z0.shape, np.float32)
    logits = np.random.Generator(np.random.Philox(key=6)).standard_normal(z0.shape, np.float32)
    zt = (u < golden[f"mean_{kind}"]).astype(np.float64)
    eps = 1 / (1 + np.exp(-logits.astype(np.float64)))
    flipped = zt != z0
    expected = -np.where(flipped, np.log(eps), np.log1p(-eps)).mean(axis=(1, 2, 3))

    def network(code: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        np.testing.assert_array_equal(code.numpy(), zt)
        np.testing.assert_array_equal(timesteps.numpy(), times)
        return tensor(logits)

    loss = training_loss(
        network, tensor(z0), torch.tensor(times), tensor(u), Schedule.linear(), kind
    )
    assert_close(loss, expected, 1e-5)


@pytest.mark.parametrize("name", LOOPS)
def test_loop(golden: dict[str, Any], denoiser: Denoiser, name: str) -> None:
    settings: dict[str, Any] = dict(LOOPS[name])
    sampler = Sampler(Schedule.linear(), forward_noise=settings.pop("kind"), **settings)
    z_org = tensor(golden["code_probability"] > 0.5)
    noise = PhiloxNoise(int(golden["seed"]), golden["image_ids"])
    final, mask = reverse_loop(denoiser, z_org, sampler, injected(noise))
    np.testing.assert_array_equal(mask.numpy(), golden[f"loop_{name}_mask"])
    assert_close(final, golden[f"loop_{name}_final"])


def test_loop_on_a_schedule_respaced_as_upstream(
    golden: dict[str, Any], denoiser: Denoiser
) -> None:
    """Upstream keeps every 10th-or-so step of all and counts the noise level in kept steps."""
    schedule = Schedule.linear().evenly_respaced(100)
    kept = [round(i * 999 / 99) for i in range(100)]
    code = (golden["code_probability"] > 0.5)[:1]
    weights = make_golden.denoiser_weights()
    expected = numpy_diffusion.masked_loop(
        code.astype(np.float64),
        lambda z, i: numpy_networks.denoise(weights, DENOISER, z, kept[i]),
        numpy_diffusion.sequential_noise(7),
        numpy_diffusion.cumulative_alphas()[kept],
        noise_level=5,
    )
    noise = numpy_diffusion.sequential_noise(7)
    final, mask = reverse_loop(
        denoiser,
        tensor(code),
        Sampler(schedule, noise_level=5),
        lambda t, shape: torch.from_numpy(noise(t, tuple(shape))),
    )
    assert np.mean(mask.numpy() != expected.mask) <= 1e-3
    assert np.mean(np.abs(final.numpy() - expected.final) > 1e-4) <= 1e-3
