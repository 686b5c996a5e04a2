"""The precisions a bundle can have, and how far each may stray from float32.

Every limit is a few times the largest value that was measured on sound graphs, trained and
untrained; ``docs/precision.md`` tells what was measured on what.
"""

from __future__ import annotations

from typing import Literal, get_args

Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# Figures of the golden vectors: what is compared with PyTorch, and the limit at each precision.
FIGURES: dict[str, tuple[str, tuple[float, float, float, float]]] = {
    "encoder_error": ("bit probabilities", (1e-4, 1e-2, 1e-1, 1e-1)),
    "code_bit_rate": ("bits of the code that differ", (1e-3, 1e-2, 1e-1, 1e-1)),
    "denoiser_error": ("flip probabilities", (1e-4, 1e-2, 1e-1, 1e-1)),
    "decoder_error": ("decoded image", (1e-4, 1e-2, 1e-1, 1e-1)),
    "step_bit_rate": ("bits that differ after one step of the loop", (1e-3, 1e-2, 1e-1, 1e-1)),
    "step_mask_rate": ("mask bits that differ after one step", (1e-3, 1e-2, 1e-1, 1e-1)),
    "step_code_error": ("healthy code after the last step", (1e-4, 1e-2, 1e-1, 1e-1)),
    "loop_mask_rate": ("mask bits that differ after a whole loop", (1e-2, 1e-1, 1e-1, 1e-1)),
    "loop_image_error": ("mean error of that loop's image", (1e-2, 1e-1, 1e-1, 1e-1)),
    "map_error": ("anomaly map of that loop: 1 - correlation", (1e-2, 1e-1, 1e-1, 1e-1)),
    "batch_error": ("an image alone and in a batch", (0.0, 0.0, 0.0, 0.0)),
}


def limits(precision: Precision) -> dict[str, float]:
    """Largest value each figure of the golden vectors may have at a precision."""
    column = PRECISIONS.index(precision)
    return {name: by_precision[column] for name, (_, by_precision) in FIGURES.items()}
