"""What is installed and what this machine is, for reports."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from berdiff import __version__

# Distributions that can change a result or a timing.
_LIBRARIES = (
    *("numpy", "nibabel", "scipy", "pillow"),
    *("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "cuda-core", "cuda-bindings"),
    *("torch", "onnx", "onnxscript", "safetensors", "accelerate"),
    *("scikit-learn", "matplotlib"),
)


def software() -> dict[str, str]:
    """Versions of this package, Python and every installed library that matters; loads none."""
    found = {"berdiff": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """Operating system, architecture, kind and number of processors."""
    return {
        "system": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "processors": str(os.cpu_count()),
    }


def _processor() -> str:
    """Product name, which Linux tells on PCs; elsewhere what the system calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or "unknown"
