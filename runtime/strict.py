"""Dataclasses to JSON and back, with every unknown, missing or ill-typed key refused by name."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from .errors import BerdiffError

T = TypeVar("T")

_SCALARS = (str, int, float, bool)


def from_json(cls: type[T], data: Any, where: str) -> T:
    """Build a dataclass from decoded JSON.

    Parameters
    ----------
    cls : type
        A dataclass whose fields are ``int``, ``float``, ``str``, ``bool``, ``Literal``, ``| None``,
        ``tuple``, ``dict[str, X]`` or other such dataclasses.
    data : object
        What ``json.loads`` returned.
    where : str
        File (and key) to name in errors, for example ``"bundle.json"``.

    Returns
    -------
    cls
        The checked value. A key with a default may be absent.

    Raises
    ------
    BerdiffError
        Naming the file and the key that is unknown, missing or of the wrong type.
    """
    if not isinstance(data, dict):
        raise BerdiffError(f"{where}: expected an object, got {_shown(data)}")
    hints, fields = _shape(cls)  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise BerdiffError(
                f"{where}: unknown key '{key}'; expected only {', '.join(sorted(fields))}. "
                "Was the file written by a newer berdiff?"
            )
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], f"{where}: {name}")
        elif _required(field):
            raise BerdiffError(f"{where}: missing key '{name}'")
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise BerdiffError(f"{where}: {error}") from error


def read_json(cls: type[T], path: Path) -> T:
    """Read a JSON file into a dataclass; see `from_json`.

    Raises
    ------
    BerdiffError
        If the file is no JSON, or a key does not fit; names file and key.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise BerdiffError(f"{path} is not valid JSON: {error}") from error
    return from_json(cls, content, str(path))


def to_json(value: Any) -> str:
    """Return a dataclass as indented JSON with a final newline; NaN and infinity are refused."""
    return json.dumps(dataclasses.asdict(value), indent=2, allow_nan=False) + "\n"


@functools.cache
def _shape(cls: type) -> tuple[dict[str, Any], dict[str, dataclasses.Field[Any]]]:
    """Types and fields of a dataclass. Resolving them takes longer than all the rest."""
    return typing.get_type_hints(cls), {field.name: field for field in dataclasses.fields(cls)}


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _shown(value: Any) -> str:
    text = json.dumps(value, default=repr, skipkeys=True)
    return text if len(text) <= 60 else text[:57] + "..."


def _convert(hint: Any, value: Any, where: str) -> Any:
    if hint in _SCALARS:
        return _convert_scalar(hint, value, where)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), value, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (inner,) = [arg for arg in args if arg is not type(None)]
        return _convert(inner, value, where)
    if origin is typing.Literal:
        if value not in args:
            raise BerdiffError(f"{where}: expected one of {list(args)}, got {_shown(value)}")
        return value
    if origin is tuple:
        return _convert_tuple(args, value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise BerdiffError(f"{where}: expected an object, got {_shown(value)}")
        for key in value:
            if not isinstance(key, str):
                raise BerdiffError(f"{where}: expected names as keys, got {key!r}")
        return {key: _convert(args[1], item, f"{where}.{key}") for key, item in value.items()}
    return _convert_scalar(hint, value, where)


def _convert_tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise BerdiffError(f"{where}: expected a list, got {_shown(value)}")
    if len(args) == 2 and args[1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(value) != len(args):
        raise BerdiffError(f"{where}: expected {len(args)} values, got {_shown(value)}")
    return tuple(
        _convert(arg, item, f"{where}[{index}]")
        for index, (arg, item) in enumerate(zip(args, value, strict=True))
    )


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # JSON's integers have no limit, floats have
            value = float(value)
    wrong = not isinstance(value, hint) or (hint is int and isinstance(value, bool))
    if wrong or (hint is float and not math.isfinite(value)):
        raise BerdiffError(f"{where}: expected {hint.__name__}, got {_shown(value)}")
    return value
