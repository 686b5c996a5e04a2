"""How many images fit on a device: from the engines' own figures, never by trying."""

from __future__ import annotations

from ..errors import BackendError
from .device import OutOfDeviceMemory
from .networks import DeviceNetworks

_MIB = 2**20
# How libraries say it, each in its own words and none by a type of error.
_EXHAUSTED = (
    *("out of memory", "outofmemory", "out_of_memory", "memoryallocation"),
    *("failed to allocate memory", "available memory of", "bad_alloc"),
)


def library_error(message: str) -> BackendError:
    """Error for what a library has said: `OutOfDeviceMemory` where that is what it means."""
    text = message.lower()
    exhausted = any(sign in text for sign in _EXHAUSTED)
    return OutOfDeviceMemory(message) if exhausted else BackendError(message)


def largest_batch(
    networks: DeviceNetworks, loop_bytes_per_image: int, free_bytes: int, reserve: int = 0
) -> int:
    """Find the largest batch for which networks and loop fit into a device's memory.

    Parameters
    ----------
    networks : DeviceNetworks
        Opened, with no batch prepared; their memory must not shrink as the batch grows.
    loop_bytes_per_image : int
        Bytes that the loop keeps on the device for every image of the batch.
    free_bytes : int
        Bytes free on the device now, that is, with the networks open: what they hold already
        (``networks.device_bytes(0)``) is not counted again.
    reserve : int
        Bytes to leave free, for others.

    Returns
    -------
    int
        At least 1, at most ``networks.max_batch``.

    Raises
    ------
    OutOfDeviceMemory
        If not even one image fits; says how much is missing.
    """
    held = networks.device_bytes(0)

    def needed(batch: int) -> int:
        return networks.device_bytes(batch) - held + batch * loop_bytes_per_image

    room = free_bytes - reserve
    if needed(1) > room:
        raise OutOfDeviceMemory(
            f"one image needs {needed(1) / _MIB:.0f} MiB on the device besides the "
            f"{held / _MIB:.0f} MiB of the networks' weights; {free_bytes / _MIB:.0f} MiB are "
            f"free, of which {reserve / _MIB:.0f} MiB are to stay free. Stop what else uses the "
            "GPU, or export the bundle in a smaller precision"
        )
    fits, too_many = 1, networks.max_batch + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if needed(middle) <= room:
            fits = middle
        else:
            too_many = middle
    return fits
