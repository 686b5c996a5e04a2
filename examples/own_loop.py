"""Write the reverse loop yourself: every step is a function from one state to the next.

    python examples/own_loop.py BUNDLE

This one looks at the mask after each step, and averages the healthy images of several noises.
"""

import sys

import numpy as np

from berdiff.runtime.backends import open_backend
from berdiff.runtime.bundle import Bundle
from berdiff.runtime.philox import PhiloxNoise
from berdiff.runtime.sampler import Sampler

SEEDS = (0, 1, 2)


def main(path: str) -> None:
    bundle = Bundle.open(path)
    model, defaults = bundle.manifest.preprocessing, bundle.manifest.sampling
    sampler = Sampler(
        schedule=bundle.schedule,
        noise_level=defaults.noise_level,
        steps=defaults.steps,
        flip_threshold=defaults.flip_threshold,
        forward_noise=bundle.manifest.forward_noise,
    )
    # Yours: images of the model's grid in [0, 1], as Preprocessing.to_grid makes them.
    images = np.random.default_rng(0).random((1, model.channels, *model.size), np.float32)

    healthy = np.zeros_like(images)
    with open_backend(bundle) as backend:
        code = (backend.encode(images) > 0.5).astype(np.float32)
        for seed in SEEDS:
            noise = PhiloxNoise(seed, image_ids=[1])
            state = sampler.init(code, noise)
            released = []
            while state.remaining:
                state = sampler.step(state, backend.flip_probability, noise)
                released.append(f"{state.mask.mean():.0%}")
            print(f"seed {seed}: bits released after each step: {' '.join(released)}")
            healthy += np.clip(backend.decode(state.z), 0, 1) / len(SEEDS)
    print(f"mean change of the image: {np.abs(healthy - images).mean():.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
