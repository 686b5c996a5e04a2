"""A bundle: the folder that is the deployable detector, read with every file checked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .errors import BerdiffError, BundleError
from .files import sha256_file, write_atomic
from .intake import InputStatistics
from .manifest import READABLE_VERSIONS, SCHEMA_VERSION, FileRecord, Manifest, Threshold
from .schedule import Schedule
from .strict import from_json, to_json

MANIFEST_NAME = "bundle.json"
GRAPHS = ("onnx/encoder.onnx", "onnx/denoiser.onnx", "onnx/decoder.onnx")


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    Attributes
    ----------
    path : Path
        The folder.
    manifest : Manifest
        Its checked ``bundle.json``.
    digest : str
        SHA-256 of ``bundle.json``, which holds the digests of all other files and so identifies
        the whole detector.
    """

    path: Path
    manifest: Manifest
    digest: str

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read a bundle and check every file's size and SHA-256.

        Raises
        ------
        BundleError
            If the folder is no bundle, was written for a newer schema, holds an unknown key, or a
            file is missing or altered; names the file and the key.
        """
        path = Path(path)
        source = path / MANIFEST_NAME
        if not source.is_file():
            raise BundleError(
                f"{path} is not a bundle: it has no {MANIFEST_NAME}. "
                "Make one with: berdiff export CHECKPOINT -o BUNDLE"
            )
        data = source.read_bytes()
        bundle = cls(path, _parse(data, source), hashlib.sha256(data).hexdigest())
        for name in GRAPHS:
            if name not in bundle.manifest.files:
                raise BundleError(f"{source}: files: missing key '{name}'")
        for name in bundle.manifest.files:
            bundle._check(name)
        return bundle

    def file(self, name: str) -> Path:
        """Path of a file named in the manifest.

        Raises
        ------
        BundleError
            If the manifest does not name it.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.path / MANIFEST_NAME}: files: missing key '{name}'")
        return self.path / name

    @property
    def schedule(self) -> Schedule:
        """The noise schedule the manifest describes."""
        spec = self.manifest.schedule
        return Schedule.linear(spec.num_timesteps, spec.beta_start, spec.beta_end)

    def with_threshold(
        self, threshold: Threshold, input_statistics: InputStatistics | None = None
    ) -> Bundle:
        """Write what a calibration found into ``bundle.json`` and return the bundle read again.

        Parameters
        ----------
        threshold : Threshold
            Of masks.
        input_statistics : InputStatistics, optional
            None keeps what the bundle has.
        """
        changed = dataclasses.replace(
            self.manifest,
            threshold=threshold,
            input_statistics=input_statistics or self.manifest.input_statistics,
        )
        write_manifest(self.path, changed)
        return Bundle.open(self.path)

    def _check(self, name: str) -> None:
        where = f"{self.path / MANIFEST_NAME}: files: '{name}'"
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name:
            raise BundleError(f"{where} leads out of the bundle")
        file, record = self.path / name, self.manifest.files[name]
        if not file.is_file():
            raise BundleError(f"{file} is missing; the bundle is incomplete, copy it again")
        if file.is_symlink() or not file.resolve().is_relative_to(self.path.resolve()):
            raise BundleError(f"{where} leads out of the bundle")
        size = file.stat().st_size
        if size != record.size:
            raise BundleError(f"{file} was altered: {size} bytes, expected {record.size}")
        if sha256_file(file) != record.sha256:
            raise BundleError(f"{file} was altered: its SHA-256 differs from {MANIFEST_NAME}")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``bundle.json``, whole or not at all, as of the newest schema."""
    manifest = dataclasses.replace(manifest, schema_version=SCHEMA_VERSION)
    write_atomic(Path(folder) / MANIFEST_NAME, to_json(manifest).encode())


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Digest and size of every file below `folder` but ``bundle.json``."""
    return {
        file.relative_to(folder).as_posix(): FileRecord(sha256_file(file), file.stat().st_size)
        for file in sorted(Path(folder).rglob("*"))
        if file.is_file() and file.relative_to(folder).as_posix() != MANIFEST_NAME
    }


def _parse(data: bytes, source: Path) -> Manifest:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{source} is not valid JSON: {error}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise BundleError(f"{source}: schema_version: expected an integer, got {version!r}")
    if version not in READABLE_VERSIONS:
        raise BundleError(
            f"{source}: schema_version: got {version}, this berdiff reads "
            f"{' and '.join(map(str, READABLE_VERSIONS))}; "
            + ("update berdiff" if version > SCHEMA_VERSION else "export the checkpoint again")
        )
    try:
        return from_json(Manifest, content, str(source))
    except BerdiffError as error:
        raise BundleError(str(error)) from error
