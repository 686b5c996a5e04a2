"""Write golden_small.npz: inputs and expected outputs of a tiny model, computed by the oracle.

Run `python tests/reference/make_golden.py` after a change of the method (never to make a failing
test pass). Weights are not stored: they are a function of the parameter name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy_diffusion as diffusion
import numpy_networks as networks
from numpy.typing import NDArray
from numpy_networks import AutoencoderSpec, DenoiserSpec
from parameter_shapes import autoencoder_shapes, denoiser_shapes

PATH = Path(__file__).with_name("golden_small.npz")

# Height and width differ, so that a swapped axis shows.
IMAGE_SIZE = (32, 48)
CODE_SIZE = (16, 24)
AUTOENCODER = AutoencoderSpec(
    in_channels=2, base=32, multipliers=(1, 2), blocks=1, code_channels=8, embedding=64
)
DENOISER = DenoiserSpec(
    code_channels=8, base=32, multipliers=(1, 2), blocks=2, attention_levels=(1,)
)

DENOISER_TIMES = (0, 50, 999)
DIFFUSION_TIMES = (137, 900)
# Both words of the seed and of an image id are in use.
SEED = 0x1234_0000_000A
IMAGE_IDS = (3, 0xFEDC_BA98_0000_0001)
SAMPLED_CODE_TIME = 0xFFFFFFFF
UNIFORMS_SHAPE = (3, 5, 7)

LOOPS: dict[str, dict[str, object]] = {
    "paper_full": {"kind": "bernoulli", "noise_level": 8, "steps": None, "flip_threshold": 0.5},
    "upstream_full": {"kind": "upstream", "noise_level": 8, "steps": None, "flip_threshold": 0.5},
    "paper_fewer": {"kind": "bernoulli", "noise_level": 40, "steps": 6, "flip_threshold": 0.6},
    "upstream_fewer": {"kind": "upstream", "noise_level": 40, "steps": 6, "flip_threshold": 0.6},
}

# No decision of a stored loop is closer than this, so float32 rounding cannot change one.
CLOSEST_DECISION = 2e-6

PHILOX_KNOWN = (
    # counter, key
    ((0, 0, 0, 0), (0, 0)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)),
)

Golden = dict[str, NDArray[Any]]


def generator(key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key))


def autoencoder_weights() -> dict[str, networks.Array]:
    return networks.named_weights(autoencoder_shapes(AUTOENCODER))


def denoiser_weights() -> dict[str, networks.Array]:
    return networks.named_weights(denoiser_shapes(DENOISER))


def flip_probability(weights: networks.Weights) -> diffusion.FlipProbability:
    return lambda z, t: networks.denoise(weights, DENOISER, z, t)


def network_golden() -> Golden:
    """Encoder, decoder and denoiser on random inputs."""
    ae, unet = autoencoder_weights(), denoiser_weights()
    image = generator(2000).random((2, AUTOENCODER.in_channels, *IMAGE_SIZE), np.float32)
    probability = networks.encode(ae, AUTOENCODER, image)
    code = probability > 0.5
    golden: Golden = {
        "weights_sum": np.array([sum(float(v.sum()) for v in w.values()) for w in (ae, unet)]),
        "image": image,
        "code_probability": probability,
        "reconstruction": networks.decode(ae, AUTOENCODER, code),
    }
    # Both times at once: a denoiser must take one t per sample.
    times = np.array(DENOISER_TIMES[1:])
    both = networks.denoise(unet, DENOISER, code, times)
    golden["denoiser_times"] = times
    golden["denoiser"] = both
    golden["denoiser_t0"] = networks.denoise(unet, DENOISER, code[:1], DENOISER_TIMES[0])
    return golden


def diffusion_golden() -> Golden:
    """Schedule, forward means and posterior."""
    times = np.array(DIFFUSION_TIMES)
    abar = diffusion.cumulative_alphas()
    shape = (len(times), 2, *CODE_SIZE)
    z0 = generator(2001).random(shape, np.float32) < 0.5
    zt = generator(2002).random(shape, np.float32) < 0.5
    soft = generator(2003).random(shape, np.float32)
    at, before = (abar[t].reshape(-1, 1, 1, 1) for t in (times, times - 1))
    return {
        "diffusion_times": times,
        "abar": abar[[0, 1, 137, 500, 999]],
        "abar_of_250": diffusion.cumulative_alphas(250)[[0, 1, 137, 249]],
        "z0": z0,
        "zt": zt,
        "soft_z0": soft,
        "mean_bernoulli": diffusion.forward_mean(z0, at, "bernoulli"),
        "mean_upstream": diffusion.forward_mean(z0, at, "upstream"),
        "posterior": diffusion.posterior(soft, zt, at / before, before),
    }


def philox_golden() -> Golden:
    """Known answers, and uniforms of a code whose size is no multiple of four."""
    times = np.array([0, 200, SAMPLED_CODE_TIME], np.uint32)
    noise = diffusion.philox_noise(SEED, list(IMAGE_IDS))
    return {
        "philox_counter": np.array([c for c, _ in PHILOX_KNOWN], np.uint32),
        "philox_key": np.array([k for _, k in PHILOX_KNOWN], np.uint32),
        "philox_words": np.array([diffusion.philox(c, k) for c, k in PHILOX_KNOWN], np.uint32),
        "seed": np.array(SEED, np.uint64),
        "image_ids": np.array(IMAGE_IDS, np.uint64),
        "uniforms_times": times,
        "uniforms": np.stack(
            [noise(int(t), (len(IMAGE_IDS), *UNIFORMS_SHAPE)) for t in times], dtype=np.float32
        ),
    }


def run_loop(name: str, z_org: NDArray[Any]) -> diffusion.Loop:
    return diffusion.masked_loop(
        z_org.astype(np.float64),
        flip_probability(denoiser_weights()),
        diffusion.philox_noise(SEED, list(IMAGE_IDS)),
        diffusion.cumulative_alphas(),
        **LOOPS[name],  # type: ignore[arg-type]
    )


def loop_golden(code_probability: NDArray[Any]) -> Golden:
    """The masked loop: all steps and fewer steps, with both kinds of noise."""
    golden: Golden = {}
    for name in LOOPS:
        run = run_loop(name, code_probability > 0.5)
        closest = min(run.closest_draw, run.closest_flip)
        if closest < CLOSEST_DECISION:
            raise SystemExit(f"{name}: a decision is only {closest:.1e} away; take another SEED")
        golden |= {
            f"loop_{name}_final": run.final,
            f"loop_{name}_mask": run.mask,
            f"loop_{name}_times": np.array(run.times),
        }
    return golden


def make_golden() -> Golden:
    golden = network_golden() | diffusion_golden() | philox_golden()
    golden |= loop_golden(golden["code_probability"])
    uniforms = diffusion.philox_noise(SEED, list(IMAGE_IDS))
    shape = golden["code_probability"].shape
    golden["sampled_code"] = uniforms(SAMPLED_CODE_TIME, shape) < golden["code_probability"].astype(
        np.float32
    )
    return golden


def stored(name: str, values: NDArray[Any]) -> NDArray[Any]:
    """Values as they go into the file: tensors in float32, scalars of the schedule in float64."""
    keep_double = name.startswith(("abar", "weights"))
    return values.astype(np.float32) if values.dtype == np.float64 and not keep_double else values


def load() -> Golden:
    """Everything golden_small.npz holds."""
    with np.load(PATH) as file:
        return dict(file)


def main() -> None:
    golden = make_golden()
    arrays: dict[str, Any] = {name: stored(name, values) for name, values in golden.items()}
    np.savez_compressed(PATH, **arrays)
    for name, values in golden.items():
        print(f"{name:24} {values.dtype!s:8} {values.shape}")  # noqa: T201
    print(f"{PATH.name}: {PATH.stat().st_size / 1000:.0f} kB")  # noqa: T201


if __name__ == "__main__":
    main()
