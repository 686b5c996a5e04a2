"""Settings of the networks and of the diffusion, as written in a checkpoint's ``config.json``."""

from __future__ import annotations

from dataclasses import dataclass, field

from berdiff.runtime.intake import InputStatistics, check_features
from berdiff.runtime.manifest import CodeShape, SamplingDefaults, ScheduleSpec
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.sampler import ForwardNoise, Sampler
from berdiff.runtime.schedule import Schedule

NORM_GROUPS = 32


@dataclass(frozen=True)
class AutoencoderConfig:
    """Binary autoencoder; the defaults are the published BraTS model.

    Attributes
    ----------
    in_channels : int
        Image channels C.
    base_channels : int
        Features at full resolution, a multiple of 32.
    channel_multipliers : tuple of int
        Features per level over `base_channels`; each level but the last halves the image.
    residual_blocks : int
        Residual blocks per level.
    code_channels : int
        K, bits per position.
    embedding_channels : int
        Features of the embedding a code is decoded from, a multiple of 32.
    """

    in_channels: int = 4
    base_channels: int = 32
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)
    residual_blocks: int = 2
    code_channels: int = 128
    embedding_channels: int = 256

    def __post_init__(self) -> None:
        """Refuse sizes that group normalisation cannot divide."""
        _check_positive(self)
        _check_groups("base_channels", self.base_channels)
        _check_groups("embedding_channels", self.embedding_channels)

    @property
    def downsampling(self) -> int:
        """Image pixels per code position, along each axis."""
        return 2 ** (len(self.channel_multipliers) - 1)


@dataclass(frozen=True)
class DenoiserConfig:
    """Guided-diffusion UNet on codes; the defaults are the published model.

    Attributes
    ----------
    code_channels : int
        K, channels in and out.
    base_channels : int
        Features at the code's resolution, a multiple of 32. A level with just 32 features has one
        per normalisation group, which cancels the shift that tells its blocks the step: give such
        a level 64 where the step must be known.
    channel_multipliers : tuple of int
        Features per level over `base_channels`; each level but the last halves the code.
    residual_blocks : int
        Residual blocks per level.
    attention_downsampling : tuple of int
        Downsampling factors at which attention blocks stand (2: at half the code's size).
    heads : int
        Attention heads.
    dropout : float
        Dropout in the residual blocks, while training.
    """

    code_channels: int = 128
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    residual_blocks: int = 2
    attention_downsampling: tuple[int, ...] = (2,)
    heads: int = 1
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse sizes that group normalisation or the heads cannot divide."""
        _check_positive(self)
        _check_groups("base_channels", self.base_channels)
        for multiplier in self.channel_multipliers:
            if self.base_channels * multiplier % self.heads:
                raise ValueError(f"{self.heads} heads do not divide {self.base_channels} channels")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")

    @property
    def downsampling(self) -> int:
        """Code positions per position of the coarsest level, along each axis."""
        return 2 ** (len(self.channel_multipliers) - 1)


@dataclass(frozen=True)
class ModelConfig:
    """Everything a checkpoint says of itself but the weights.

    Attributes
    ----------
    preprocessing : Preprocessing
        Intended input.
    autoencoder, denoiser : AutoencoderConfig, DenoiserConfig
        The two networks.
    schedule : ScheduleSpec
        Noise schedule.
    forward_noise : {"bernoulli", "upstream"}
        Forward process the denoiser is trained with.
    sampling : SamplingDefaults
        Suggested settings of the loop.
    name : str
        Name of the model, for people.
    provenance : dict of str to str
        Where the weights came from.
    input_statistics : InputStatistics or None
        What healthy input looks like; training measures it.
    """

    preprocessing: Preprocessing
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    forward_noise: ForwardNoise = "bernoulli"
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    name: str = "berdiff"
    provenance: dict[str, str] = field(default_factory=dict)
    input_statistics: InputStatistics | None = None

    def __post_init__(self) -> None:
        """Refuse networks that do not fit each other or the image, and loops that cannot run."""
        if self.autoencoder.in_channels != self.preprocessing.channels:
            raise ValueError(
                f"the autoencoder takes {self.autoencoder.in_channels} channels, "
                f"the preprocessing makes {self.preprocessing.channels}"
            )
        if self.denoiser.code_channels != self.autoencoder.code_channels:
            raise ValueError(
                f"the denoiser takes codes of {self.denoiser.code_channels} channels, "
                f"the autoencoder makes {self.autoencoder.code_channels}"
            )
        step = self.autoencoder.downsampling * self.denoiser.downsampling
        if any(length % step for length in self.preprocessing.size):
            raise ValueError(
                f"image size {self.preprocessing.size} must be a multiple of {step}, "
                "the downsampling of both networks together"
            )
        check_features(self.input_statistics, self.preprocessing.modalities)
        # Said here rather than by the first loop, which may come hours into a training.
        spec, loop = self.schedule, self.sampling
        schedule = Schedule.linear(spec.num_timesteps, spec.beta_start, spec.beta_end)
        Sampler(schedule, loop.noise_level, loop.steps, loop.flip_threshold, self.forward_noise)

    @property
    def code_shape(self) -> CodeShape:
        """Shape (K, h, w) of the code."""
        height, width = (n // self.autoencoder.downsampling for n in self.preprocessing.size)
        return CodeShape(self.autoencoder.code_channels, height, width)


def _check_positive(config: object) -> None:
    for name, value in vars(config).items():
        values = value if isinstance(value, tuple) else (value,)
        if any(isinstance(item, int) and item < 1 for item in values):
            raise ValueError(f"{name} must be positive, got {value}")
        if name == "channel_multipliers" and not values:
            raise ValueError("channel_multipliers must name at least one level")


def _check_groups(name: str, channels: int) -> None:
    if channels % NORM_GROUPS:
        raise ValueError(
            f"{name} must be a multiple of {NORM_GROUPS} (group normalisation), got {channels}"
        )
