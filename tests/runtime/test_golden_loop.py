"""The NumPy runtime (schedule, Philox noise, masked loop) against the oracle's stored numbers."""

from __future__ import annotations

from typing import Any

import make_golden
import numpy as np
import numpy_networks
import pytest
from make_golden import DENOISER, LOOPS

from berdiff.runtime.philox import CODE_STEP, PhiloxNoise, philox4x32
from berdiff.runtime.sampler import Coefficients, FlipProbability, Sampler, posterior
from berdiff.runtime.schedule import Schedule

FINAL_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return make_golden.load()


@pytest.fixture(scope="module")
def flip_probability() -> FlipProbability:
    weights = make_golden.denoiser_weights()
    return lambda z, t: numpy_networks.denoise(weights, DENOISER, z, t).astype(np.float32)


def sampler(name: str) -> Sampler:
    settings: dict[str, Any] = dict(LOOPS[name])
    return Sampler(Schedule.linear(), forward_noise=settings.pop("kind"), **settings)


def test_philox_known_answers(golden: dict[str, Any]) -> None:
    published = [
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ]
    for i, words in enumerate(published):
        drawn = philox4x32(golden["philox_counter"][i], golden["philox_key"][i])
        assert " ".join(f"{word:08x}" for word in drawn) == words
        np.testing.assert_array_equal(golden["philox_words"][i], drawn)


def test_uniforms(golden: dict[str, Any]) -> None:
    assert make_golden.SAMPLED_CODE_TIME == CODE_STEP
    noise = PhiloxNoise(int(golden["seed"]), golden["image_ids"])
    for t, expected in zip(golden["uniforms_times"], golden["uniforms"], strict=True):
        drawn = noise(int(t), expected.shape)
        assert drawn.dtype == np.float32
        np.testing.assert_array_equal(drawn, expected)


def test_schedule(golden: dict[str, Any]) -> None:
    abar = Schedule.linear().abar[[0, 1, 137, 500, 999]]
    np.testing.assert_allclose(abar, golden["abar"], rtol=1e-12)
    abar = Schedule.linear(250).abar[[0, 1, 137, 249]]
    np.testing.assert_allclose(abar, golden["abar_of_250"], rtol=1e-12)


def test_posterior(golden: dict[str, Any]) -> None:
    schedule = Schedule.linear()
    for i, t in enumerate(golden["diffusion_times"]):
        mean = posterior(
            golden["zt"][i].astype(np.float32),
            golden["soft_z0"][i],
            Coefficients.of(schedule.alpha_between(t, t - 1), float(schedule.abar[t - 1])),
        )
        assert mean.dtype == np.float32
        np.testing.assert_allclose(mean, golden["posterior"][i], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["bernoulli", "upstream"])
def test_first_draw_follows_the_forward_mean(golden: dict[str, Any], kind: Any) -> None:
    z0 = golden["z0"].astype(np.float32)
    for i, t in enumerate(golden["diffusion_times"]):
        uniforms = np.random.Generator(np.random.Philox(key=9)).random(z0.shape, np.float32)
        loop = Sampler(Schedule.linear(), noise_level=int(t), forward_noise=kind)
        state = loop.init(z0, lambda step, shape, u=uniforms: u)  # type: ignore[misc]
        expected = uniforms[i] < golden[f"mean_{kind}"][i]
        np.testing.assert_array_equal(state.z[i], expected)


@pytest.mark.parametrize("name", LOOPS)
def test_reverse_steps(golden: dict[str, Any], name: str) -> None:
    assert list(sampler(name).kept) == golden[f"loop_{name}_times"].tolist()


@pytest.mark.parametrize("name", LOOPS)
def test_loop(golden: dict[str, Any], flip_probability: FlipProbability, name: str) -> None:
    noise = PhiloxNoise(int(golden["seed"]), golden["image_ids"])
    z_org = (golden["code_probability"] > 0.5).astype(np.float32)
    state = sampler(name).run(z_org, flip_probability, noise)
    assert state.remaining == 0
    np.testing.assert_array_equal(state.mask, golden[f"loop_{name}_mask"])
    np.testing.assert_allclose(state.z, golden[f"loop_{name}_final"], rtol=0, atol=FINAL_TOLERANCE)


def test_an_image_in_a_batch_gets_what_it_gets_alone(
    golden: dict[str, Any], flip_probability: FlipProbability
) -> None:
    name = "paper_fewer"
    code = (golden["code_probability"] > 0.5).astype(np.float32)
    for i, image_id in enumerate(golden["image_ids"]):
        noise = PhiloxNoise(int(golden["seed"]), [image_id])
        state = sampler(name).run(code[i : i + 1], flip_probability, noise)
        np.testing.assert_array_equal(state.mask[0], golden[f"loop_{name}_mask"][i])
        np.testing.assert_allclose(
            state.z[0], golden[f"loop_{name}_final"][i], rtol=0, atol=FINAL_TOLERANCE
        )
