"""Settings of the loop: a caller's where given, else the bundle's; and the loop they make."""

from __future__ import annotations

from dataclasses import replace

from .bundle import Bundle
from .errors import InputError
from .manifest import AnomalyMapKind, SamplingDefaults
from .sampler import Sampler


def fill_settings(
    bundle: Bundle,
    noise_level: int | None = None,
    steps: int | None = None,
    flip_threshold: float | None = None,
    anomaly_map: AnomalyMapKind | None = None,
) -> SamplingDefaults:
    """Fill in the bundle's defaults where an argument is None.

    The bundle's number of steps belongs to its noise level: with another noise level and no steps
    given, the number is kept where it fits and lowered to the noise level otherwise.

    Raises
    ------
    InputError
        If a setting is out of range.
    """
    defaults = bundle.manifest.sampling
    level = defaults.noise_level if noise_level is None else noise_level
    count = defaults.steps if steps is None else steps
    if steps is None and count is not None:
        count = min(count, level)
    try:
        return replace(
            defaults,
            noise_level=level,
            steps=count,
            flip_threshold=defaults.flip_threshold if flip_threshold is None else flip_threshold,
            anomaly_map=defaults.anomaly_map if anomaly_map is None else anomaly_map,
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def make_sampler(bundle: Bundle, settings: SamplingDefaults) -> Sampler:
    """Return the sampling loop of a bundle for given settings.

    Raises
    ------
    InputError
        If a setting is out of range.
    """
    try:
        return Sampler(
            schedule=bundle.schedule,
            noise_level=settings.noise_level,
            steps=settings.steps,
            flip_threshold=settings.flip_threshold,
            forward_noise=bundle.manifest.forward_noise,
        )
    except ValueError as error:
        raise InputError(str(error)) from error
