"""What a run over a folder is asked to do, with every default resolved."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass

from berdiff import __version__

from .bundle import Bundle
from .detection import ThresholdSource
from .detector_record import DetectorRecord
from .errors import InputError
from .manifest import SamplingDefaults
from .provenance import Provenance
from .sampling_settings import fill_settings, make_sampler
from .scans import InputFormat
from .writers import OUTPUT_TYPES, OutputType


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
    output_types : tuple of str
        What is written, of `OUTPUT_TYPES`; empty: PNG for pictures, NIfTI for everything else.
    input_format : str
        "auto", or the one layout to look for; see `find_scans`.
    accept_contrast : bool
        Process scans whose header names another contrast than the model takes, as suspect.
    min_slices : int
        Volumes with fewer slices are refused: a series cut off in transfer looks complete.
    num_parts, part_id : int
        Take every `num_parts`-th scan, beginning with number `part_id`, into a folder of its own.
    workers : int
        Threads that read, and threads that write.
    memory : int
        Bytes of scans between reading and writing above which no further one is read.
    """

    batch_size: int = 8
    seed: int = 0
    noise_level: int | None = None
    steps: int | None = None
    flip_threshold: float | None = None
    threshold: float | None = None
    resume: bool = False
    output_types: tuple[OutputType, ...] = ()
    input_format: InputFormat = "auto"
    accept_contrast: bool = False
    min_slices: int = 1
    num_parts: int = 1
    part_id: int = 0
    workers: int = 2
    memory: int = 2**31

    def check(self) -> None:
        """Refuse what no detector could make sense of.

        Raises
        ------
        InputError
            Naming the option.
        """
        if self.batch_size < 1:
            raise InputError(f"batch size must be 1 or more, got {self.batch_size}")
        if not 0 <= self.seed < 2**64:
            raise InputError(f"seed must lie between 0 and 2^64 - 1, got {self.seed}")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise InputError(f"threshold must be a number, got {self.threshold}")
        if self.num_parts < 1 or not 0 <= self.part_id < self.num_parts:
            raise InputError(
                f"got part {self.part_id} of {self.num_parts}; parts count from 0 to their number "
                "less 1"
            )
        if self.workers < 1:
            raise InputError(f"workers must be 1 or more, got {self.workers}")
        unknown = set(self.output_types) - set(OUTPUT_TYPES)
        if unknown:
            raise InputError(
                f"unknown output type {', '.join(sorted(unknown))}; known: "
                f"{', '.join(OUTPUT_TYPES)}"
            )

    def settings(self, bundle: Bundle) -> SamplingDefaults:
        """Settings of the loop with a bundle, none of them left open.

        Raises
        ------
        InputError
            If an option is out of range.
        """
        self.check()
        settings = fill_settings(
            bundle,
            noise_level=self.noise_level,
            steps=self.steps,
            flip_threshold=self.flip_threshold,
        )
        make_sampler(bundle, settings)  # refuses what is out of range, before anything is written
        return settings


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
    def make(cls, detector: DetectorRecord, options: RunOptions) -> RunPlan:
        """Resolve options against a detector.

        Raises
        ------
        InputError
            If one is out of range.
        """
        settings = options.settings(detector.bundle)
        threshold, warnings = _threshold(detector.bundle, options, settings)
        decisive = {
            "berdiff": __version__,
            "backend": detector.backend,
            "device": detector.device,
            "seed": options.seed,
            "settings": dataclasses.asdict(settings),
            "threshold": threshold,
            "output_types": options.output_types,
            "accept_contrast": options.accept_contrast,
        }
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
        return cls(options, settings, threshold, digest, warnings)

    def provenance(
        self, detector: DetectorRecord, threshold: tuple[float, ThresholdSource], sha256: str
    ) -> Provenance:
        """What made the results of one scan."""
        return Provenance(
            model=detector.bundle.manifest.name,
            bundle=detector.bundle.digest,
            software=__version__,
            backend=detector.backend,
            device=detector.device,
            seed=self.options.seed,
            settings=dataclasses.asdict(self.settings),
            threshold=threshold[0],
            threshold_source=threshold[1],
            input_sha256=sha256,
        )


def _threshold(
    bundle: Bundle, options: RunOptions, settings: SamplingDefaults
) -> tuple[tuple[float, ThresholdSource] | None, tuple[str, ...]]:
    """The threshold for all scans, None for Otsu's; and what the user should know about it."""
    if options.threshold is not None:
        return (options.threshold, "option"), ()
    calibrated = bundle.manifest.threshold
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
