"""A bundle on every node: read where it lies, or sent there once, and checked either way."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bundle import MANIFEST_NAME, Bundle
from ..engines.store import ENGINES_FOLDER
from ..errors import BundleError, optional
from ..files import atomic_folder, file_lock, sha256_file
from .connection import Cluster

CACHE_VARIABLE = "BERDIFF_CACHE"


@dataclass(frozen=True)
class SharedBundle:
    """What a node needs to open a bundle; goes to the nodes as it is.

    Attributes
    ----------
    path : str
        Where it lies on the machine that shared it.
    digest : str
        Digest of the bundle.
    key : str
        SHA-256 over the names and digests of all files that were shared.
    files : dict of str to ObjectRef
        Content of each of them in Ray's object store, by path in the bundle; empty where all nodes
        are on one machine.
    """

    path: str
    digest: str
    key: str
    files: dict[str, Any]

    def open(self) -> Bundle:
        """Open the bundle on this node.

        It is read at its own path where a bundle of the same digest lies there, as on a shared
        file system. Else its files are fetched into the node's cache, by the first process that
        asks for them, and opened there.

        Raises
        ------
        BundleError
            If what arrived is not what was sent.
        """
        local = Path(self.path)
        manifest = local / MANIFEST_NAME
        if manifest.is_file() and sha256_file(manifest) == self.digest:
            return Bundle.open(local)
        if not self.files:
            raise BundleError(f"{local} is gone, or was altered since the run began")
        folder = cache_folder() / "bundles" / self.key
        with file_lock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                self._fetch(folder)
        bundle = Bundle.open(folder)
        if bundle.digest != self.digest:
            raise BundleError(
                f"{folder} holds a bundle of digest {bundle.digest}, expected {self.digest}; "
                "remove that folder"
            )
        return bundle

    def _fetch(self, folder: Path) -> None:
        ray = optional("ray", "cluster")
        with atomic_folder(folder) as part:
            for name, reference in self.files.items():
                file = part / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(ray.get(reference))


def share(bundle: Bundle, cluster: Cluster, *, engines: bool = True) -> SharedBundle:
    """Make a bundle available to the nodes of a cluster, once per node.

    Parameters
    ----------
    bundle : Bundle
        Opened, that is, checked.
    cluster : Cluster
        Where it will be opened.
    engines : bool
        Whether its engines go with it.
    """
    names = [MANIFEST_NAME, *bundle.manifest.files]
    folder = bundle.path / ENGINES_FOLDER
    if engines and folder.is_dir():
        found = (file for file in folder.glob("*/*") if file.is_file() and not file.is_symlink())
        names += [file.relative_to(bundle.path).as_posix() for file in found]
    names.sort()
    digests = [(name, sha256_file(bundle.path / name)) for name in names]
    key = hashlib.sha256(repr(digests).encode()).hexdigest()
    files: dict[str, Any] = {}
    if cluster.address != "local":
        files = {name: cluster.ray.put((bundle.path / name).read_bytes()) for name in names}
    return SharedBundle(str(bundle.path.resolve()), bundle.digest, key, files)


def cache_folder() -> Path:
    """Where a node keeps what it was sent: $BERDIFF_CACHE, or berdiff in the user's cache."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "berdiff"
