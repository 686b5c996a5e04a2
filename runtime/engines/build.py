"""From a bundle's ONNX files to engines: built, inspected, stored; or nothing at all."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType

from ..bundle import Bundle
from ..environment import software
from ..errors import BackendError, BerdiffError
from ..files import atomic_folder
from .compile import Job, Progress, build_network
from .gpu import Gpu, gpu_here
from .inspection import TYPE_OF
from .library import TENSORRT_RTX, Library
from .options import PORTABLE, BuildOptions, check_options, check_target
from .store import (
    ENGINES_FOLDER,
    NETWORKS,
    SIDECAR_NAME,
    SIDECAR_VERSION,
    NetworkEngine,
    Sidecar,
    StoredEngine,
    engine_key,
    platform_here,
    read_engine,
    sidecar_text,
)


@dataclass(frozen=True)
class Built:
    """Engines of a bundle.

    Attributes
    ----------
    engine : StoredEngine
        Where they lie, and their sidecar.
    new : bool
        Whether they were built now; False where they were there already.
    """

    engine: StoredEngine
    new: bool


def build_engines(
    bundle: Bundle,
    library: Library,
    *,
    target: str | None = None,
    options: BuildOptions | None = None,
    device: str = "cuda:0",
    timing_cache: Path | None = None,
    progress: Progress | None = None,
) -> Built:
    """Build the engines of a bundle and store them in it, unless they are there already.

    Parameters
    ----------
    bundle : Bundle
        Opened, that is, checked. Its ``bundle.json`` and digest stay as they are.
    library : Library
        What builds the engines, and will run them in the same version.
    target : str, optional
        GPU architecture, as "sm_89", for TensorRT for RTX; None builds its portable engine.
        TensorRT builds for the GPU of this machine only.
    options : BuildOptions, optional
        Default: the bundle's batch sizes, and the library's own defaults.
    device : str
        GPU of this machine that TensorRT builds on and for: "cuda:0", "cuda:1", ...
    timing_cache : Path, optional
        File in which TensorRT keeps what it has timed, for the next build; made if it is not
        there.
    progress : callable, optional
        Called with the network, what is being done, and how far that is.

    Raises
    ------
    BackendError
        If the library, the GPU or an option does not go together, a network cannot be built, or
        an engine does not compute in the types of its ONNX file. Nothing is written then.
    MissingDependency
        If the library is not installed.
    """
    options = options or BuildOptions(bundle.manifest.dynamic_batch)
    trt, gpu = check_build(
        library, target=target, options=options, device=device, timing_cache=timing_cache
    )
    chosen = built_for(target, gpu)
    key = engine_key(bundle, library, chosen, gpu, options)
    folder = bundle.path / ENGINES_FOLDER / key
    stored = intact_engine(folder)
    if stored is not None:
        return Built(stored, new=False)
    job = Job(library, trt, bundle, chosen, gpu, options, timing_cache, progress)
    try:
        _write(job, folder, key)
    except BaseException:
        with contextlib.suppress(OSError):  # where it holds other engines
            folder.parent.rmdir()
        raise
    return Built(read_engine(folder), new=True)


def check_build(
    library: Library,
    *,
    target: str | None,
    options: BuildOptions,
    device: str = "cuda:0",
    timing_cache: Path | None = None,
) -> tuple[ModuleType, Gpu | None]:
    """Refuse what the library or this machine cannot do, before any work is done.

    Parameters are those of `build_engines`, and so are the errors.

    Returns
    -------
    ModuleType, Gpu or None
        The loaded library, and the GPU it will build on, where it needs one.
    """
    check_target(library, target)
    check_options(library, options, timing_cache)
    trt, gpu = _ready(library, device)
    _check_release(trt, options)
    return trt, gpu


def built_for(target: str | None, gpu: Gpu | None) -> str:
    """Name what is built: the target asked for, the GPU it is built on, or any from Ampere on."""
    return target or (PORTABLE if gpu is None else gpu.architecture)


def intact_engine(folder: Path) -> StoredEngine | None:
    """What an earlier build of the same key left; where that is damaged, remove it."""
    if not (folder / SIDECAR_NAME).is_file():
        return None
    try:
        stored = read_engine(folder)
        stored.check()
    except BackendError:
        shutil.rmtree(folder)
        return None
    return stored


def _write(job: Job, folder: Path, key: str) -> None:
    """Build all networks into a new folder, with their sidecar; or leave nothing."""
    with atomic_folder(folder) as part:
        records = {network: build_network(job, network, part) for network in NETWORKS}
        _check_precision(job.bundle, records["denoiser"])
        sidecar = Sidecar(
            schema_version=SIDECAR_VERSION,
            key=key,
            library=job.library.name,
            library_version=job.library.version,
            precision=job.bundle.manifest.precision,
            target=job.target,
            platform=platform_here(),
            gpu=job.gpu,
            options=job.options,
            networks=records,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            software=software(),
        )
        (part / SIDECAR_NAME).write_bytes(sidecar_text(sidecar))


def _ready(library: Library, device: str) -> tuple[ModuleType, Gpu | None]:
    """Load the library and, where it builds on the GPU, look at that; all reasons at once."""
    problems: list[BerdiffError] = []
    trt, gpu = None, None
    try:
        trt = library.load()
    except BerdiffError as error:
        problems.append(error)
    if library is not TENSORRT_RTX:
        try:
            gpu = gpu_here(device)
        except BerdiffError as error:
            problems.append(
                BackendError(
                    f"{library.name} builds by timing kernels on the GPU that will run them, and "
                    f"{error}"
                )
            )
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise BackendError(". Besides, ".join(str(problem).rstrip(".") for problem in problems))
    assert trt is not None
    return trt, gpu


def _check_release(trt: ModuleType, options: BuildOptions) -> None:
    """Refuse options that this release of the library does not know."""
    if options.hardware_compatibility == "same-cc" and not hasattr(
        trt.HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY"
    ):
        raise BackendError(
            f"TensorRT {trt.__version__} knows no hardware compatibility 'same-cc'; "
            "expected none or ampere+"
        )


def _check_precision(bundle: Bundle, denoiser: NetworkEngine) -> None:
    """Refuse engines of a bundle whose denoiser is not in the bundle's precision."""
    precision = bundle.manifest.precision
    wanted, total = TYPE_OF[precision], sum(denoiser.compute.values())
    if 2 * denoiser.compute.get(wanted, 0) <= total:
        raise BackendError(
            f"{bundle.path} says it is in {precision}, but of the {total} convolutions and matrix "
            f"products of its denoiser the engine computes {denoiser.compute.get(wanted, 0)} in "
            f"{wanted}: {denoiser.compute}; export the checkpoint again"
        )
