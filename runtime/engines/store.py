"""The ``engines`` folder of a bundle: what is in it, and which engine a GPU may use."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import re
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from ..bundle import GRAPHS, Bundle
from ..errors import BackendError, BerdiffError
from ..files import sha256_file
from ..strict import read_json, to_json
from .gpu import Gpu
from .library import TENSORRT, TENSORRT_RTX, Library
from .options import PORTABLE, RTX_TARGETS, BuildOptions

ENGINES_FOLDER = "engines"
SIDECAR_NAME = "engine.json"
SIDECAR_VERSION = 1
NETWORKS = tuple(Path(name).stem for name in GRAPHS)


@dataclass(frozen=True)
class NetworkEngine:
    """One network's engine, as it was built and inspected.

    Attributes
    ----------
    onnx_sha256 : str
        Digest of the ONNX file it was built from.
    sha256, size : str, int
        Digest and size in bytes of the engine file.
    inputs, outputs : dict of str to str
        Type of each, by name: "float32", "int64".
    compute : dict of str to int
        Convolutions and matrix products of the network, by the type they are computed in.
    weights : dict of str to int
        Bytes of constants that the engine's layers read, by type.
    layers : int
        Layers of the engine.
    weight_bytes, scratch_bytes : int
        Device memory for weights, and for intermediate values at the largest batch.
    warnings : tuple of str
        What the library warned of during the build; none of it says that the engine runs
        otherwise than its ONNX file.
    build_seconds : float
        Time the build took.
    """

    onnx_sha256: str
    sha256: str
    size: int
    inputs: dict[str, str]
    outputs: dict[str, str]
    compute: dict[str, int]
    weights: dict[str, int]
    layers: int
    weight_bytes: int
    scratch_bytes: int
    warnings: tuple[str, ...]
    build_seconds: float


@dataclass(frozen=True)
class Sidecar:
    """The whole of ``engine.json``.

    Attributes
    ----------
    schema_version : int
        Raised when a key changes its meaning or a key is added.
    key : str
        Name of the folder.
    library, library_version : str
        What built the engines, and is needed to run them.
    precision : str
        Of the bundle.
    target : str
        GPU architecture it was built for, as "sm_89", or "ampere+".
    platform : str
        Operating system and processor of the machine that built it.
    gpu : Gpu or None
        GPU it was built on; None where none was needed.
    options : BuildOptions
        How it was built.
    networks : dict of str to NetworkEngine
        By name: encoder, denoiser, decoder.
    created : str
        When, in UTC.
    software : dict of str to str
        Versions at the time.
    """

    schema_version: int
    key: str
    library: str
    library_version: str
    precision: str
    target: str
    platform: str
    gpu: Gpu | None
    options: BuildOptions
    networks: dict[str, NetworkEngine]
    created: str
    software: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredEngine:
    """Engines of one build, in a bundle.

    Attributes
    ----------
    folder : Path
        Where they lie.
    sidecar : Sidecar
        Their checked ``engine.json``.
    digest : str
        SHA-256 of ``engine.json``, which holds those of the engine files.
    """

    folder: Path
    sidecar: Sidecar
    digest: str

    @cached_property
    def files(self) -> dict[str, Path]:
        """Engine files by network, each compared with its recorded size and digest.

        Raises
        ------
        BackendError
            If one is missing, altered or not inside the folder.
        """
        return {name: self._checked(name) for name in NETWORKS}

    def check(self) -> None:
        """Compare the engine files with their records; raises as `files` does."""
        _ = self.files

    def _checked(self, network: str) -> Path:
        file, record = engine_file(self.folder, network), self.sidecar.networks[network]
        problem = None
        if not file.is_file():
            problem = "is missing"
        elif file.is_symlink() or not file.resolve().is_relative_to(self.folder.resolve()):
            problem = "leads out of the bundle"
        elif file.stat().st_size != record.size:
            problem = f"was altered: {file.stat().st_size} bytes, expected {record.size}"
        elif sha256_file(file) != record.sha256:
            problem = f"was altered: its SHA-256 differs from {SIDECAR_NAME}"
        if problem:
            raise BackendError(f"{file} {problem}; {rebuild(self.folder.parents[1], self.sidecar)}")
        return file


def engine_file(folder: Path, network: str) -> Path:
    """Where an engine lies inside the folder of its build."""
    return folder / f"{network}.engine"


def platform_here() -> str:
    """Operating system and processor, as "linux-x86_64"."""
    return f"{platform.system().lower()}-{platform.machine().lower()}"


def onnx_digests(bundle: Bundle) -> dict[str, str]:
    """Digests of a bundle's graphs, by network."""
    return {Path(name).stem: bundle.manifest.files[name].sha256 for name in GRAPHS}


def engine_key(
    bundle: Bundle,
    library: Library,
    target: str,
    gpu: Gpu | None,
    options: BuildOptions,
    version: str | None = None,
) -> str:
    """Name of the folder for an engine: readable, and different where the engine would be.

    `version` is that of the library where it builds elsewhere; None: of the one installed here.
    """
    parts = [library.name, version or library.version, target]
    if gpu is not None and options.hardware_compatibility == "none":
        parts.append(re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-"))
    parts += [bundle.manifest.precision, "b" + "-".join(map(str, options.dynamic_batch))]
    where = None if library is TENSORRT_RTX else platform_here()
    identity = [*parts, where, asdict(options), sorted(onnx_digests(bundle).items())]
    return "-".join([*parts, hashlib.sha256(repr(identity).encode()).hexdigest()[:12]])


def engine_folders(bundle: Bundle) -> list[Path]:
    """Folders in a bundle that hold the sidecar of a build, by key."""
    root = bundle.path / ENGINES_FOLDER
    folders = sorted(root.iterdir()) if root.is_dir() else []
    return [folder for folder in folders if (folder / SIDECAR_NAME).is_file()]


def stored_engines(bundle: Bundle) -> list[StoredEngine]:
    """All engines in a bundle whose sidecar can be read, by key.

    Raises
    ------
    BackendError
        If a sidecar is damaged or was written by a newer berdiff; names file and key.
    """
    return [read_engine(folder) for folder in engine_folders(bundle)]


def read_engine(folder: Path) -> StoredEngine:
    """Read the sidecar of one build.

    Raises
    ------
    BackendError
        If it is damaged or was written by a newer berdiff; names file and key.
    """
    file = folder / SIDECAR_NAME
    try:
        sidecar = read_json(Sidecar, file)
    except BerdiffError as error:
        raise BackendError(f"{error}; remove the folder {folder} and build again") from error
    problem = None
    if sidecar.schema_version != SIDECAR_VERSION:
        problem = f"schema_version: got {sidecar.schema_version}, expected {SIDECAR_VERSION}"
    elif sidecar.key != folder.name:
        problem = f"key: got '{sidecar.key}', expected the folder's name"
    elif set(sidecar.networks) != set(NETWORKS):
        problem = f"networks: got {sorted(sidecar.networks)}, expected {sorted(NETWORKS)}"
    if problem:
        raise BackendError(f"{file}: {problem}; remove the folder {folder} and build again")
    return StoredEngine(folder, sidecar, sha256_file(file))


def intact_keys(bundle: Bundle) -> frozenset[str]:
    """Keys of the engines in a bundle that are as they were written."""
    intact = set()
    for folder in engine_folders(bundle):
        with contextlib.suppress(BackendError, OSError):
            read_engine(folder).check()
            intact.add(folder.name)
    return frozenset(intact)


def find_engine(bundle: Bundle, library: Library, gpu: Gpu) -> StoredEngine:
    """Choose the engine of a bundle that this library runs on this GPU.

    Of several, one built for this very architecture comes first, then the one built last.

    Parameters
    ----------
    bundle : Bundle
        Opened, that is, checked.
    library : Library
        The library that will run it; its version must be the one that built the engine.
    gpu : Gpu
        The GPU that will run it.

    Raises
    ------
    BackendError
        If there is none: lists what there is and why it does not fit, with the command that
        builds the right one. Also if the engine's files are not as they were written.
    """
    found = [engine for engine in stored_engines(bundle) if engine.sidecar.library == library.name]
    reasons = [misfit(engine.sidecar, bundle, library, gpu) for engine in found]
    fitting = [engine for engine, reason in zip(found, reasons, strict=True) if reason is None]
    if fitting:
        best = max(
            fitting,
            key=lambda e: (e.sidecar.target == gpu.architecture, e.sidecar.created, e.folder.name),
        )
        best.check()
        return best
    listing = "".join(
        f"\n  {engine.folder.name}: {reason}" for engine, reason in zip(found, reasons, strict=True)
    )
    raise BackendError(
        f"{bundle.path} holds no {library.name} engine for {gpu.name} ({gpu.architecture})"
        + (f"; there are:{listing}\n" if listing else "; ")
        + f"build one with: {command(bundle.path, library, gpu)}"
    )


def misfit(sidecar: Sidecar, bundle: Bundle, library: Library, gpu: Gpu) -> str | None:
    """Say why an engine of a bundle must not run with this library on this GPU, if so."""
    if sidecar.library_version != library.version:
        return f"built by {library.name} {sidecar.library_version}, here is {library.version}"
    if sidecar.precision != bundle.manifest.precision:
        return f"built in {sidecar.precision}, the bundle is in {bundle.manifest.precision}"
    for network, digest in onnx_digests(bundle).items():
        if sidecar.networks[network].onnx_sha256 != digest:
            return f"built from another {network}.onnx"
    if library is TENSORRT_RTX:
        fits = sidecar.target == gpu.architecture or (
            sidecar.target == PORTABLE and gpu.architecture in RTX_TARGETS[1:]
        )
        return None if fits else f"built for {sidecar.target}"
    if sidecar.platform != platform_here():
        return f"built on {sidecar.platform}, this is {platform_here()}"
    return _misfit_of_gpu(sidecar, gpu)


def command(path: Path, library: Library, gpu: Gpu | None = None) -> str:
    """Write the command line that builds the engine for a GPU."""
    if gpu is None or library is not TENSORRT_RTX:
        return f"berdiff build {path} --engine {library.name}"
    if gpu.architecture not in RTX_TARGETS:
        return (
            f"berdiff build {path} --engine {TENSORRT.name} ({library.name} knows no "
            f"{gpu.architecture})"
        )
    return f"berdiff build {path} --engine {library.name} --target {gpu.architecture}"


def rebuild(path: Path, sidecar: Sidecar) -> str:
    """Say how to replace a damaged engine."""
    target = f" --target {sidecar.target}" if sidecar.library == TENSORRT_RTX.name else ""
    return f"build it again with: berdiff build {path} --engine {sidecar.library}{target}"


def _misfit_of_gpu(sidecar: Sidecar, gpu: Gpu) -> str | None:
    built_on = sidecar.gpu
    if built_on is None:
        return "does not say which GPU it was built on"
    compatibility = sidecar.options.hardware_compatibility
    fits = built_on == gpu
    if compatibility == "same-cc":
        fits = built_on.compute_capability == gpu.compute_capability
    elif compatibility == "ampere+":
        fits = gpu.compute_capability >= (8, 0)
    return None if fits else f"built on {built_on.name} ({built_on.architecture})"


def sidecar_text(sidecar: Sidecar) -> bytes:
    """A sidecar as it is written."""
    return to_json(sidecar).encode()
