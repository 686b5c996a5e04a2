"""How a backend on a GPU is put together."""

from __future__ import annotations

from collections.abc import Callable

from ..bundle import Bundle
from ..cuda.backend import DeviceBackend
from ..cuda.device import Device, open_device
from ..cuda.networks import DeviceNetworks
from ..errors import BerdiffError


def open_on_device(
    name: str,
    bundle: Bundle,
    device: str,
    open_networks: Callable[[Bundle, Device], DeviceNetworks],
) -> DeviceBackend:
    """Open a GPU, a bundle's networks on it, and the loop around them.

    Parameters
    ----------
    name : str
        Of the backend.
    bundle : Bundle
        Opened, that is, checked.
    device : str
        "cuda:0" and so on.
    open_networks : callable
        Opens the networks with the backend's library.
    """
    opened = open_device(device)
    networks = open_networks(bundle, opened)
    try:
        return DeviceBackend(name, bundle, opened, networks)
    except BaseException:
        networks.close()
        raise


def why_not(devices: Callable[[], list[str]]) -> str | None:
    """Say why a backend that needs a GPU has no devices here, if so."""
    try:
        devices()
    except BerdiffError as error:
        return str(error)
    return None
