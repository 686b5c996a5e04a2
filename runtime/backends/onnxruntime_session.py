"""Sessions of ONNX Runtime that run on the provider asked for, or not at all."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ..cuda.memory import library_error
from ..errors import BackendError, optional
from .shared_libraries import missing_libraries

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

_ERRORS_ONLY = 3  # the library logs to the terminal


def load(module: str = "onnxruntime") -> ModuleType:
    """Import the library, or a part of it, with what it reports to its makers turned off.

    Official builds for Windows report by default, since 1.29 those for Linux too. On being imported
    they give the machine an identity, open a file of events in the home folder and queue the first;
    only the variable, set before, prevents that. The call stops what a program began that imported
    the library first.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    optional("onnxruntime", "cpu").disable_telemetry_events()
    return optional(module, "cpu")


def open_session(
    library: Any,
    path: Path,
    provider: str,
    provider_options: Mapping[str, str],
    threads: int | None = None,
) -> Any:
    """Open a graph with every node on one provider.

    Parameters
    ----------
    library : module
        ONNX Runtime.
    path : Path
        ONNX file.
    provider : str
        One of `PROVIDERS`.
    provider_options : mapping of str to str
        Its options.
    threads : int, optional
        CPU threads per operator; None takes one per physical core.

    Raises
    ------
    BackendError
        If the library refuses the graph, or would run it elsewhere.
    """
    options = library.SessionOptions()
    options.graph_optimization_level = library.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    if provider != PROVIDERS["cpu"]:
        options.use_deterministic_compute = True
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    providers = [(provider, dict(provider_options))]
    try:
        session = library.InferenceSession(
            str(path), options, providers=providers, enable_fallback=0
        )
    except Exception as error:  # the library's own exceptions share no public base
        raise library_error(f"{path} cannot be loaded by ONNX Runtime: {error}") from error
    if session.get_providers()[0] != provider:
        raise BackendError(
            f"ONNX Runtime opened {path} on {session.get_providers()[0]} instead of {provider}"
        )
    return session


def provider_obstacle(library: Any) -> str | None:
    """Say that the installed ONNX Runtime is not one for GPUs, if so."""
    if PROVIDERS["cuda"] in library.get_available_providers():
        return None
    return (
        f"the installed ONNX Runtime {library.__version__} has no CUDA provider; replace it: "
        "pip uninstall onnxruntime && pip install 'berdiff[gpu]'"
    )


def library_obstacle(library: Any) -> str | None:
    """Say which libraries the CUDA provider misses, if any: it would compute on the CPU then."""
    if hasattr(library, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it misses
            library.preload_dlls()
    folder = Path(library.__file__).parent / "capi"
    missing = [
        name
        for file in folder.glob("libonnxruntime_providers_cuda.so")
        for name in missing_libraries(file)
    ]
    if not missing:
        return None
    version = getattr(library, "cuda_version", None) or "the version it was built for"
    return (
        f"the CUDA provider of ONNX Runtime {library.__version__} needs libraries that are not "
        f"found: {', '.join(missing)}; install CUDA {version} and cuDNN, or: "
        "pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )
