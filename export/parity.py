"""The gate of the export: what was written must compute what PyTorch computes."""

from __future__ import annotations

from berdiff.runtime.backends import Backend
from berdiff.runtime.bundle import Bundle
from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.verify import verify


class ParityError(BerdiffError):
    """An exported graph whose results differ from PyTorch's by more than a limit."""


def check_parity(bundle: Bundle, backend: Backend) -> dict[str, float]:
    """Compare a bundle with the golden vectors PyTorch computed for it.

    Parameters
    ----------
    bundle : Bundle
        With its golden vectors.
    backend : Backend
        The bundle's networks, opened.

    Returns
    -------
    dict of str to float
        The figures, for the manifest.

    Raises
    ------
    ParityError
        Naming every figure that exceeds its limit.
    """
    checks = verify(bundle, backend)
    failed = [
        f"{check.name} is {check.value:.3g}, limit {check.limit:.3g} ({check.meaning})"
        for check in checks
        if not check.passed
    ]
    if failed:
        raise ParityError(
            f"the exported graphs do not compute what PyTorch computes: {'; '.join(failed)}. "
            "Nothing was written. Try another --opset, or another release of torch or onnxscript"
        )
    return {check.name: check.value for check in checks}
