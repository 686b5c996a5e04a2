"""The precisions a bundle can have, and how far each may stray from float32.

Where the limits come from is told in ``docs/precision.md``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class Figure(NamedTuple):
    """What a figure compares, and its limit at each precision."""

    meaning: str
    fp32: float
    fp16: float
    bf16: float
    int8: float


# Against PyTorch in float32, on the golden vectors.
FIGURES = {
    "encoder_error": Figure("bit probabilities", 1e-4, 2e-2, 1e-1, 1e-4),
    "code_bit_rate": Figure("bits of the code that differ", 1e-3, 3e-3, 2e-2, 1e-3),
    "denoiser_error": Figure("flip probabilities", 1e-4, 6e-3, 6e-2, 5e-1),
    "decoder_error": Figure("decoded image", 1e-4, 6e-3, 4e-2, 1e-4),
    "step_bit_rate": Figure("bits that differ after one step", 1e-3, 1e-3, 1e-3, 3e-3),
    "step_mask_rate": Figure("mask bits that differ after one step", 1e-3, 1e-3, 5e-3, 3e-2),
    "step_code_error": Figure("healthy code after the last step", 1e-4, 4e-3, 3e-2, 3e-1),
    "loop_mask_rate": Figure("mask bits that differ after a loop", 1e-2, 5e-2, 1e-1, 1e-1),
    "loop_image_error": Figure("mean error of that loop's image", 1e-2, 5e-2, 1e-1, 1e-1),
    "map_error": Figure("its anomaly map: 1 - correlation", 1e-2, 5e-2, 1e-1, 2e-1),
    "batch_error": Figure("an image alone and in a batch", 0.0, 0.0, 0.0, 0.0),
}

# Against the same networks in float32, on healthy images; the export alone measures them.
CALIBRATION_FIGURES = {
    "calibration_flip_error": Figure("flip probabilities: largest error", 0.0, 6e-3, 6e-2, 5e-1),
    "calibration_flip_p999": Figure("the error that 0.1 % of them exceed", 0.0, 3e-3, 3e-2, 2e-1),
    "calibration_code_rate": Figure("bits of the code that differ", 0.0, 3e-3, 2e-2, 1e-3),
}
# These are limited to a share of what another seed of the loop changes.
LOOP_FIGURES = {
    "calibration_mask_rate": Figure("mask bits that differ after the loop", 0.0, 0.3, 0.6, 0.6),
    "calibration_bit_rate": Figure("bits of the healthy code that differ", 0.0, 0.3, 0.6, 0.6),
    "calibration_map_error": Figure("anomaly maps: 1 - correlation", 0.0, 0.3, 0.6, 0.6),
}


def limits(precision: Precision, device: str = "cpu") -> dict[str, float]:
    """Largest value that each figure of the golden vectors may have at a precision on a device."""
    allowed = {name: getattr(figure, precision) for name, figure in FIGURES.items()}
    if device != "cpu":
        # Libraries for GPUs choose kernels by batch size, and those may round differently.
        allowed["batch_error"] = allowed["denoiser_error"]
    return allowed
