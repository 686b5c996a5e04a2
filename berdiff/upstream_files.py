"""Upstream's checkpoint files: which one a path stands for, and the arrays it holds.

Files are opened with ``weights_only=True``: code inside one is never run.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from berdiff.runtime.errors import BerdiffError

Kind = Literal["autoencoder", "denoiser"]
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class _FileNames:
    """How upstream names the files of one kind."""

    ema: re.Pattern[str]
    plain: re.Pattern[str]
    shown: str


_FILE_NAMES: dict[Kind, _FileNames] = {
    "autoencoder": _FileNames(
        re.compile(r"(?P<data>binaryae)_ema_(?P<step>\d+)\.th"),
        re.compile(r"(?P<data>binaryae)_(?P<step>\d+)\.th"),
        "binaryae_ema_<step>.th or binaryae_<step>.th",
    ),
    "denoiser": _FileNames(
        re.compile(r"ema(?P<data>brats|OCT)0\.999_(?P<step>\d+)\.pt"),
        re.compile(r"(?P<data>brats|OCT)(?P<step>\d+)\.pt"),
        "emabrats0.999_<step>.pt, bratsNNNNNN.pt, or OCT in place of brats",
    ),
}
# How a state dict of each kind is recognised, whatever its file is called.
_MARKS: dict[Kind, str] = {"autoencoder": "ae.", "denoiser": "input_blocks."}
# The discriminator and the perceptual loss are saved with the autoencoder; only training uses them.
_TRAINING_ONLY = ("disc.", "perceptual.")


def choose_file(path: Path, kind: Kind) -> tuple[Path, list[str]]:
    """Choose the file a path stands for, and say what the user should know about the choice.

    A file stands for itself. Of a folder (for the autoencoder also the ``saved_models`` folder in
    it) the EMA file of the highest step is taken, or where there is none the other file of the
    highest step.

    Raises
    ------
    BerdiffError
        If there is no such file, or the folder holds models of more than one data set.
    """
    path = Path(path)
    names = _FILE_NAMES[kind]
    if path.is_dir():
        path, found = _newest(path, kind)
        notes = [f"{kind}: took {path}, the newest of {found}"]
    elif path.is_file():
        notes = []
    else:
        raise BerdiffError(f"{path}: no such file or folder")
    if raw := names.plain.fullmatch(path.name):
        note = f"{kind}: {path.name} holds raw weights; the authors use the averaged ones (EMA)"
        for beside in path.parent.iterdir():
            averaged = names.ema.fullmatch(beside.name)
            if averaged and averaged.groupdict() == raw.groupdict():
                note += f", here {beside.name}"
        notes.append(note)
    return path, notes


def _newest(folder: Path, kind: Kind) -> tuple[Path, int]:
    """Return the newest file of a kind, EMA first, and of how many it is."""
    names = _FILE_NAMES[kind]
    inside = folder / "saved_models"
    files = [*folder.iterdir(), *(inside.iterdir() if inside.is_dir() else ())]
    for pattern in (names.ema, names.plain):
        found = {file: match for file in files if (match := pattern.fullmatch(file.name))}
        if len(data := sorted({match["data"] for match in found.values()})) > 1:
            raise BerdiffError(
                f"{folder} holds models of {' and '.join(data)}; give the {kind} file itself"
            )
        if found:
            return max(found, key=lambda file: int(found[file]["step"])), len(found)
    raise BerdiffError(
        f"{folder}: no {kind} file in this folder, expected names like {names.shown}. "
        "If yours has another name, give the file itself"
    )


def read_weights(path: Path, kind: Kind) -> Weights:
    """Read the arrays of one network from an upstream file, under our names.

    Names lose upstream's ``ae.`` prefix, and arrays that only training uses are left out.

    Raises
    ------
    BerdiffError
        If the file cannot be read without running code from it, or is no state dict of this kind.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything, from EOFError to AttributeError
        raise BerdiffError(f"{path} cannot be read as PyTorch weights: {_reason(error)}") from error
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise BerdiffError(
            f"{path} holds a {type(content).__name__}, expected a state dict: arrays by name"
        )
    kinds = [k for k, mark in _MARKS.items() if any(key.startswith(mark) for key in content)]
    if kinds != [kind]:
        got = f"an upstream {kinds[0]}" if kinds else f"names such as {list(content)[:3]}"
        raise BerdiffError(
            f"{path} is no upstream {kind}: expected names that start with '{_MARKS[kind]}', "
            f"got {got}. Give the autoencoder first, then the denoiser"
        )
    if kind == "denoiser":
        return {name: _checked(name, value, path) for name, value in content.items()}
    if stray := [name for name in content if not name.startswith(("ae.", *_TRAINING_ONLY))]:
        raise BerdiffError(f"{path}: not the architecture of upstream: unexpected {stray[:3]}")
    return {
        name.removeprefix("ae."): _checked(name, value, path)
        for name, value in content.items()
        if name.startswith("ae.")
    }


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        # PyTorch wraps the finding in advice on how to run the code after all; leave that out.
        found = str(error.__context__ or "not a pickle").split(". ")[0].splitlines()[0]
        return f"it is damaged, or holds code or objects; only arrays are ever loaded ({found})"
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"it is damaged, cut short, or not a PyTorch file ({first[:160]})"


def _checked(name: str, value: object, path: Path) -> Tensor:
    """Refuse what is no plain array of real numbers that the file can really hold."""
    if not isinstance(value, Tensor):
        raise BerdiffError(f"{path}: '{name}' is a {type(value).__name__}, expected an array")
    if value.layout != torch.strided or value.device.type != "cpu" or not value.is_floating_point():
        raise BerdiffError(
            f"{path}: '{name}' is a {value.layout} array of {value.dtype} on {value.device}, "
            "expected dense floating-point numbers"
        )
    # An expanded view claims any size at no cost; copying it would fill the memory.
    if value.numel() * value.element_size() > path.stat().st_size:
        raise BerdiffError(
            f"{path}: '{name}' claims shape {list(value.shape)}, more than the file can hold"
        )
    return value
