"""What a library must do to run a bundle's networks inside the loop on a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

# Inputs, then the output, of each network: the names in the bundle's ONNX files.
TENSORS = {
    "encoder": ("image", "probability"),
    "denoiser": ("code", "t", "flip_probability"),
    "decoder": ("code", "image"),
}


class DeviceNetworks(Protocol):
    """Encoder, denoiser and decoder on a device's memory and stream.

    Attributes
    ----------
    max_batch : int
        Largest batch of one call.
    capturable : bool
        Whether `enqueue` may be recorded into a CUDA graph.
    """

    max_batch: int
    capturable: bool

    def device_bytes(self, batch: int) -> int:
        """Device memory the library needs for a batch, weights included, by its own figures.

        For batch 0, what it holds as soon as it is open.
        """
        ...

    def prepare(self, batch: int) -> None:
        """Get ready for a batch size; graphs captured before are void.

        Raises
        ------
        OutOfDeviceMemory
            If there is no room for it; the batch prepared before is lost too.
        """
        ...

    def enqueue(self, network: str, inputs: Mapping[str, int], output: int) -> None:
        """Put one network on the stream, for the prepared batch.

        Parameters
        ----------
        network : str
            A key of `TENSORS`.
        inputs : mapping of str to int
            Address of every input, by name.
        output : int
            Address of the output.

        Raises
        ------
        BackendError
            If the library refuses.
        """
        ...

    def describe(self) -> dict[str, str]:
        """What runs, for a report: library, version, engine digest, settings."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...
