"""What a run over a folder is asked to do, with every default resolved."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass

from berdiff import __version__

from .detector import Detector
from .errors import InputError
from .manifest import SamplingDefaults
from .scan_job import ThresholdSource


@dataclass(frozen=True)
class RunOptions:
    """Options of a run.

    Attributes
    ----------
    batch_size : int
        Slices per batch; changes speed and memory, never a result.
    seed : int
        64-bit seed.
    noise_level, steps, flip_threshold
        As `Sampler` has them; None takes the bundle's defaults.
    threshold : float or None
        Threshold of the mask; None takes the bundle's calibrated one, or Otsu's per scan.
    resume : bool
        Go on in an output folder that an earlier run began: what is finished, from the same input,
        bundle and options, is not done again.
    """

    batch_size: int = 8
    seed: int = 0
    noise_level: int | None = None
    steps: int | None = None
    flip_threshold: float | None = None
    threshold: float | None = None
    resume: bool = False


@dataclass(frozen=True)
class RunPlan:
    """Options with every default resolved.

    Attributes
    ----------
    options : RunOptions
        As given.
    settings : SamplingDefaults
        Settings of the loop, none of them left open.
    threshold : (float, str) or None
        Threshold of the mask and where it comes from; None: Otsu's, per scan.
    digest : str
        SHA-256 of everything but bundle and input that a result depends on.
    warnings : tuple of str
        What the user should know before relying on the results.
    """

    options: RunOptions
    settings: SamplingDefaults
    threshold: tuple[float, ThresholdSource] | None
    digest: str
    warnings: tuple[str, ...]

    @classmethod
    def make(cls, detector: Detector, options: RunOptions) -> RunPlan:
        """Resolve options against a detector.

        Raises
        ------
        InputError
            If one is out of range.
        """
        if options.batch_size < 1:
            raise InputError(f"batch size must be 1 or more, got {options.batch_size}")
        if not 0 <= options.seed < 2**64:
            raise InputError(f"seed must lie between 0 and 2^64 - 1, got {options.seed}")
        if options.threshold is not None and not math.isfinite(options.threshold):
            raise InputError(f"threshold must be a number, got {options.threshold}")
        settings = detector.settings(
            noise_level=options.noise_level,
            steps=options.steps,
            flip_threshold=options.flip_threshold,
        )
        detector.sampler(settings)  # refuses what is out of range, before anything is written
        threshold, warnings = _threshold(detector, options, settings)
        decisive = {
            "berdiff": __version__,
            "backend": detector.backend.name,
            "device": detector.backend.device,
            "seed": options.seed,
            "settings": dataclasses.asdict(settings),
            "threshold": threshold,
        }
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
        return cls(options, settings, threshold, digest, warnings)


def _threshold(
    detector: Detector, options: RunOptions, settings: SamplingDefaults
) -> tuple[tuple[float, ThresholdSource] | None, tuple[str, ...]]:
    """The threshold for all scans, None for Otsu's; and what the user should know about it."""
    if options.threshold is not None:
        return (options.threshold, "option"), ()
    calibrated = detector.bundle.manifest.threshold
    if calibrated is None:
        return None, ()
    name = calibrated.mismatch(settings)
    if name:
        warning = (
            f"the bundle's threshold was calibrated with {name} {getattr(calibrated, name)} and "
            f"this run uses {getattr(settings, name)}: Otsu's threshold per scan is taken instead"
        )
        return None, (warning,)
    return (calibrated.value, "bundle"), ()
