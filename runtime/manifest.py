"""The contents of ``bundle.json``: everything a runtime must know to use a detector correctly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from .intake import InputStatistics, check_features
from .precision import Precision
from .preprocessing import Preprocessing

SCHEMA_VERSION = 3
# Keys that came later have defaults, so that what was written before can still be read.
READABLE_VERSIONS = (1, 2, SCHEMA_VERSION)

CodeKind = Literal["threshold", "sample"]
AnomalyMapKind = Literal["squared", "signed", "absolute", "change", "flips"]


@dataclass(frozen=True)
class CodeShape:
    """Shape of the binary code: K channels of height h and width w."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class ScheduleSpec:
    """Linear beta schedule: T steps from `beta_start` to `beta_end` (scaled by 1000 / T)."""

    num_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02


@dataclass(frozen=True)
class SamplingDefaults:
    """What is used where the caller says nothing.

    Attributes
    ----------
    noise_level : int
        L, in original steps.
    steps : int or None
        Reverse steps spread over ``[0, L)``; None takes all L.
    flip_threshold : float
        P, in [0, 1].
    code : {"threshold", "sample"}
        How bits are made of bit probabilities: ``p > 0.5``, or a Bernoulli draw.
    anomaly_map : str
        Kind of the main anomaly map; see `berdiff.runtime.anomaly`.
    smoothing : float
        Standard deviation of a Gaussian that smooths the main map inside the foreground, as a
        share of the height H of the model's grid; 0: none.
    """

    noise_level: int = 200
    steps: int | None = None
    flip_threshold: float = 0.5
    code: CodeKind = "threshold"
    anomaly_map: AnomalyMapKind = "squared"
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Refuse names that mean nothing; the loop checks its own numbers."""
        if not 0 <= self.smoothing <= 1:
            raise ValueError(f"smoothing must lie in [0, 1], got {self.smoothing}")
        for name, known in (
            ("code", get_args(CodeKind)),
            ("anomaly_map", get_args(AnomalyMapKind)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )


@dataclass(frozen=True)
class Threshold:
    """A segmentation threshold and the settings it is valid for.

    Attributes
    ----------
    value : float
        Pixels of the anomaly map above it belong to the mask.
    source : str
        Where it came from, for a reader.
    anomaly_map, noise_level, steps, flip_threshold, smoothing
        The settings the healthy maps were made with.
    """

    value: float
    source: str
    anomaly_map: AnomalyMapKind
    noise_level: int
    steps: int | None
    flip_threshold: float
    smoothing: float = 0.0

    def mismatch(self, settings: SamplingDefaults) -> str | None:
        """Name the first setting in which `settings` differ from the calibration's, if any."""
        for name in ("anomaly_map", "noise_level", "steps", "flip_threshold", "smoothing"):
            if getattr(self, name) != getattr(settings, name):
                return name
        return None


@dataclass(frozen=True)
class FileRecord:
    """Digest and size in bytes of one file of the bundle."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """The whole of ``bundle.json``.

    Attributes
    ----------
    schema_version : int
        Raised when a key changes its meaning or a key is added.
    name : str
        Name of the detector, for people.
    preprocessing : Preprocessing
        Intended input and how a slice is brought to the model's grid.
    code : CodeShape
        Shape of the binary code.
    schedule : ScheduleSpec
        Noise schedule the denoiser was trained with.
    forward_noise : {"bernoulli", "upstream"}
        Forward process the denoiser was trained with.
    sampling : SamplingDefaults
        Default settings of the loop.
    threshold : Threshold or None
        Calibrated segmentation threshold; None until `berdiff calibrate` has run.
    input_statistics : InputStatistics or None
        What healthy input looks like; None where nobody has measured it.
    precision : {"fp32", "fp16", "bf16", "int8"}
        What the networks compute in; their inputs and outputs are float32 at every precision.
    parity : dict of str to float
        What the export measured against PyTorch.
    parity_limits : dict of str to float
        What each of those figures was allowed to be.
    provenance : dict of str to str
        Where the weights came from and what wrote the bundle.
    dynamic_batch : tuple of int
        Smallest, usual and largest batch that engines are to be built for.
    files : dict of str to FileRecord
        Every file of the bundle but ``bundle.json``, by POSIX path.
    """

    schema_version: int
    name: str
    preprocessing: Preprocessing
    code: CodeShape
    schedule: ScheduleSpec
    forward_noise: Literal["bernoulli", "upstream"]
    sampling: SamplingDefaults
    files: dict[str, FileRecord]
    threshold: Threshold | None = None
    input_statistics: InputStatistics | None = None
    dynamic_batch: tuple[int, int, int] = (1, 8, 32)
    precision: Precision = "fp32"
    parity: dict[str, float] = field(default_factory=dict)
    parity_limits: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse statistics of other images."""
        check_features(self.input_statistics, self.preprocessing.modalities)
