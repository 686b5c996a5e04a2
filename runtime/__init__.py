"""What runs a detector: bundles, the sampling loop, engines, scans. Never imports torch.

The names listed in ``__all__`` are what other software builds on, `API_VERSION` says which set of
them this is: its first number rises when a name goes or changes its meaning, the second when one
is added. Everything else below this package may change with any release.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bundle import Bundle
    from .detection import Detection, DeviceDetection, ScanDetection
    from .detector import Detector
    from .errors import (
        BackendError,
        BerdiffError,
        BundleError,
        Cancelled,
        DeadlineExceeded,
        InputError,
        MissingDependency,
    )
    from .manifest import SamplingDefaults
    from .preprocessing import Preprocessing

API_VERSION = (1, 0)

__all__ = [
    "API_VERSION",
    "BackendError",
    "BerdiffError",
    "Bundle",
    "BundleError",
    "Cancelled",
    "DeadlineExceeded",
    "Detection",
    "Detector",
    "DeviceDetection",
    "InputError",
    "MissingDependency",
    "Preprocessing",
    "SamplingDefaults",
    "ScanDetection",
]

# Loaded when first used: a verb that only prints its help needs none of them.
_HOMES = {
    "bundle": ("Bundle",),
    "detection": ("Detection", "DeviceDetection", "ScanDetection"),
    "detector": ("Detector",),
    "errors": (
        *("BackendError", "BerdiffError", "BundleError", "Cancelled", "DeadlineExceeded"),
        *("InputError", "MissingDependency"),
    ),
    "manifest": ("SamplingDefaults",),
    "preprocessing": ("Preprocessing",),
}


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f".{module}", __name__), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
