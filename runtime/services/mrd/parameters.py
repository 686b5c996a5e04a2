"""What a client may ask for, by name and range; nothing that it sends selects code."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from ...detector import Detector
from ...errors import InputError
from ...manifest import SamplingDefaults
from .wire import ProtocolError

CONFIGS = ("berdiff", "openrecon")
MapType = Literal["uint16", "float32"]


@dataclass(frozen=True)
class Request:
    """What a session is asked to do. None takes what the server was started with, or the bundle's.

    Attributes
    ----------
    seed : int or None
        Of the noise.
    steps, noiselevel, flipthreshold
        Settings of the loop.
    threshold : float or None
        Of the mask.
    channels : tuple of str
        Which modality each volume is, in the order of series and contrasts; of models with several.
    slices : int or None
        How many slices a volume must have.
    maptype : {"uint16", "float32"}
        Pixels of the maps.
    sendoriginals, sendflips, sendmask, sendreconstruction : bool
        What is returned besides the anomaly map.
    """

    seed: int | None = None
    steps: int | None = None
    noiselevel: int | None = None
    flipthreshold: float | None = None
    threshold: float | None = None
    channels: tuple[str, ...] = ()
    slices: int | None = None
    maptype: MapType = "uint16"
    sendoriginals: bool = True
    sendflips: bool = False
    sendmask: bool = False
    sendreconstruction: bool = False

    def settings(self, detector: Detector) -> SamplingDefaults:
        """Fill in the bundle's settings, and check what comes out.

        Raises
        ------
        InputError
            If one is out of range.
        """
        settings = detector.settings(self.noiselevel, self.steps, self.flipthreshold)
        detector.sampler(settings)
        return settings


def check_config(name: str) -> None:
    """Refuse every name of a configuration but this server's.

    Raises
    ------
    ProtocolError
        Naming those that there are.
    """
    if name not in CONFIGS:
        raise ProtocolError(
            f"there is no configuration {_shown(name)}; this server has {' and '.join(CONFIGS)}"
        )


def check_config_text(text: str) -> None:
    """Take a configuration sent as text: a name, or Gadgetron's XML, which asks for nothing here.

    Raises
    ------
    ProtocolError
        If it is anything else.
    """
    if not text.lstrip().startswith("<"):
        check_config(text.strip())


def read_parameters(text: str, before: Request) -> Request:
    """Read the parameters a client sends as JSON; values may be strings.

    Parameters
    ----------
    text : str
        ``{"parameters": {...}}``; other keys beside it are the client's own affair.
    before : Request
        What held so far.

    Raises
    ------
    ProtocolError, InputError
        Naming the parameter that is unknown or out of range.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise ProtocolError("the text with the parameters is not JSON") from None
    given = content.get("parameters") if isinstance(content, dict) else None
    if not isinstance(given, dict):
        raise ProtocolError('the text with the parameters is not {"parameters": {...}}')
    changes: dict[str, Any] = {}
    for name, value in given.items():
        if name in ("config", "customconfig"):  # OpenRecon's own: the configuration once more
            if value not in ("", None):
                check_config(str(value))
        elif name not in _READERS:
            raise InputError(
                f"there is no parameter {_shown(name)}; there are {', '.join(sorted(_READERS))}"
            )
        elif value not in ("", None):
            try:
                changes[name] = _READERS[name](value)
            except ValueError as error:
                raise InputError(f"parameter {name}: got {_shown(value)}, {error}") from None
    return replace(before, **changes)


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        try:
            number = int(value) if isinstance(value, int | str) else math.nan
        except ValueError:
            number = math.nan
        if isinstance(value, bool) or not low <= number <= high:
            raise ValueError(f"expected a whole number from {low} to {high}")
        return int(number)

    return read


def _real(low: float, high: float) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        try:
            number = float(value) if isinstance(value, int | float | str) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if isinstance(value, bool) or not low <= number <= high:
            raise ValueError(f"expected a number from {low:g} to {high:g}")
        return number

    return read


def _yes(value: Any) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}
    if (answer := known.get(str(value).lower())) is None:
        raise ValueError("expected true or false")
    return answer


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, str):
        raise ValueError("expected names with commas between them")
    return tuple(name.strip() for name in value.split(","))


def _map_type(value: Any) -> MapType:
    if value not in get_args(MapType):
        raise ValueError(f"expected {' or '.join(get_args(MapType))}")
    return cast(MapType, value)


def _shown(value: Any) -> str:
    """Quote a little of what somebody sent, in a form that can be printed."""
    return ascii(value)[:60]


_READERS: dict[str, Callable[[Any], Any]] = {
    "seed": _whole(0, 2**64 - 1),
    "steps": _whole(2, 10_000),
    "noiselevel": _whole(1, 10_000),
    "flipthreshold": _real(0, 1),
    "threshold": _real(0, 1e6),
    "channels": _names,
    "slices": _whole(1, 10_000),
    "maptype": _map_type,
    "sendoriginals": _yes,
    "sendflips": _yes,
    "sendmask": _yes,
    "sendreconstruction": _yes,
}
PARAMETERS = tuple(_READERS)
