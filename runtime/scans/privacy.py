"""Names of people stay out of what a program prints."""

from __future__ import annotations

import logging
import warnings


def hide_names() -> None:
    """Silence libraries that quote what they complain of: in DICOM it may be a name.

    For programs; a library that is embedded leaves warnings and logs to its host.
    """
    warnings.filterwarnings("ignore", module=r"pydicom|highdicom")
    for name in ("pydicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
