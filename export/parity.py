"""The gate of the export: what was written must compute what PyTorch computes."""

from __future__ import annotations

from berdiff.runtime.backends import Backend
from berdiff.runtime.bundle import Bundle
from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.precision import CALIBRATION_FIGURES, LOOP_FIGURES
from berdiff.runtime.sampler import FloatArray
from berdiff.runtime.verify import Check, verify

from .agreement import differences, flip_errors, outcomes


class ParityError(BerdiffError):
    """An exported graph whose results differ from PyTorch's by more than a limit."""


def check_parity(bundle: Bundle, backend: Backend) -> list[Check]:
    """Compare a bundle with the golden vectors PyTorch computed for it.

    Parameters
    ----------
    bundle : Bundle
        With its golden vectors.
    backend : Backend
        The bundle's networks, opened.

    Returns
    -------
    list of Check
        The figures with their limits, for the manifest.

    Raises
    ------
    ParityError
        Naming every figure that exceeds its limit.
    """
    return _gate(
        verify(bundle, backend),
        "the exported graphs do not compute what PyTorch computes",
        "Try another --opset, or another release of torch or onnxscript",
    )


def check_calibration(
    bundle: Bundle, reference: Backend, backend: Backend, images: FloatArray
) -> list[Check]:
    """Compare a bundle with itself in float32, on healthy images.

    What comes of the loop may differ by a share of what another seed changes.

    Parameters
    ----------
    bundle : Bundle
        To judge.
    reference, backend : Backend
        The networks in float32, and the bundle's, opened.
    images : ndarray of float32, shape (N, C, H, W)
        Healthy, on the model's grid, in [0, 1].

    Returns
    -------
    list of Check
        The figures with their limits, for the manifest.

    Raises
    ------
    ParityError
        Naming every figure that exceeds its limit.
    """
    precision = bundle.manifest.precision
    expected = outcomes(bundle, reference, images)
    by_chance = differences(outcomes(bundle, reference, images, seed=1), expected)
    figures = flip_errors(reference, backend, expected)
    figures |= differences(outcomes(bundle, backend, images), expected)
    checks = []
    for name, figure in (CALIBRATION_FIGURES | LOOP_FIGURES).items():
        limit = getattr(figure, precision)
        if name in LOOP_FIGURES:
            limit *= by_chance[name]
        checks.append(Check(name, figure.meaning, figures[name], limit))
    return _gate(
        checks,
        f"on the calibration images, {precision} does not find what float32 finds",
        "Export with another --precision",
    )


def _gate(checks: list[Check], trouble: str, advice: str) -> list[Check]:
    failed = [
        f"{check.name} is {check.value:.3g}, limit {check.limit:.3g} ({check.meaning})"
        for check in checks
        if not check.passed
    ]
    if failed:
        raise ParityError(f"{trouble}: {'; '.join(failed)}. Nothing was written. {advice}")
    return checks
