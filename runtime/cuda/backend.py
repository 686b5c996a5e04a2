"""A backend whose networks and loop live on a GPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..closing import Closing
from ..deadline import UNLIMITED, Deadline
from ..errors import BackendError
from ..manifest import SamplingDefaults
from ..philox import PhiloxNoise
from ..sampler import Sampler
from ..walk import Walk
from .arrays import ArrayView
from .device import Device
from .loop import OUTPUTS, DeviceLoop
from .networks import DeviceNetworks

FloatArray = NDArray[np.float32]

_ASK_EVERY = 0.02  # seconds, while another thread has the device


class DeviceBackend(Closing):
    """The networks of a bundle on one device; callers take turns.

    Parameters
    ----------
    name : str
        Of the backend, as in `berdiff.runtime.backends.BACKENDS`.
    bundle : Bundle
        Opened.
    device : Device
        Where everything happens.
    networks : DeviceNetworks
        The bundle's networks there.
    """

    def __init__(self, name: str, bundle: Bundle, device: Device, networks: DeviceNetworks) -> None:
        self.name = name
        self.device = device.name
        self._device = device
        self._loop: DeviceLoop | None = DeviceLoop(bundle, device, networks)
        self._num_timesteps = bundle.manifest.schedule.num_timesteps
        self._described = {
            "backend": name,
            "device": device.name,
            "gpu": device.gpu,
            "compute capability": ".".join(map(str, device.compute_capability)),
            **networks.describe(),
        }
        self._turn = threading.Lock()

    def encode(self, images: FloatArray) -> FloatArray:
        """Bit probabilities; see `Backend.encode`."""
        return self._run("encoder", {"image": images})

    def flip_probability(self, code: FloatArray, t: int) -> FloatArray:
        """Flip probabilities; see `Backend.flip_probability`."""
        if not 0 <= t < self._num_timesteps:
            raise BackendError(f"steps lie between 0 and {self._num_timesteps - 1}, got {t}")
        return self._run("denoiser", {"code": code, "t": np.array([t], np.int64)})

    def decode(self, code: FloatArray) -> FloatArray:
        """Images; see `Backend.decode`."""
        return self._run("decoder", {"code": code})

    def walk(
        self,
        images: FloatArray,
        noise: PhiloxNoise,
        sampler: Sampler,
        settings: SamplingDefaults,
        deadline: Deadline = UNLIMITED,
    ) -> Walk:
        """Encode, walk back, decode and compare on the device; see `berdiff.runtime.walk.walk`."""
        with self._turn_before(deadline) as loop:
            return loop.walk(images, noise, sampler, settings, deadline)

    def view(self, images: Any) -> ArrayView:
        """Look at another library's images on this device; see `Device.view`."""
        with self._turn:
            self._opened()
            return self._device.view(images)

    def walk_on_device(
        self,
        images: ArrayView,
        noise: PhiloxNoise,
        sampler: Sampler,
        settings: SamplingDefaults,
        deadline: Deadline = UNLIMITED,
    ) -> tuple[dict[str, Any], NDArray[np.bool_]]:
        """Walk images that lie on the device, and leave the result there.

        Parameters
        ----------
        images : ArrayView
            float32 ``[N, C, H, W]`` in [0, 1], from `view`.
        noise, sampler, settings, deadline
            As for `berdiff.runtime.walk.walk`.

        Returns
        -------
        arrays : dict of str to DeviceArray
            `OUTPUTS` by name, owned by the caller.
        sound : ndarray of bool, shape (N,)
            Images that every network answered with numbers.
        """
        with self._turn_before(deadline) as loop:
            batch = images.shape[0]
            shapes = {name: loop.layout.arrays(batch)[name] for name in OUTPUTS}
            buffers = {
                name: self._device.allocate(int(np.prod(shape)) * np.dtype(dtype).itemsize)
                for name, (shape, dtype) in shapes.items()
            }
            addresses = {name: buffer.pointer for name, buffer in buffers.items()}
            sound = loop.walk_on_device(
                images.pointer, noise, sampler, settings, addresses, deadline
            )
            return {
                name: self._device.export(buffer, *shapes[name]) for name, buffer in buffers.items()
            }, sound

    def describe(self) -> dict[str, str]:
        """What runs, for a report."""
        batch = {} if self._loop is None else {"largest batch": str(self._loop.batch)}
        return self._described | batch

    def close(self) -> None:
        """Release everything on the device."""
        with self._turn:
            if self._loop is not None:
                self._device.activate()
                self._loop.close()
                self._loop = None

    @contextmanager
    def _turn_before(self, deadline: Deadline) -> Iterator[DeviceLoop]:
        """Wait for the device, as long as the deadline allows, and have it for the block."""
        while not self._turn.acquire(timeout=_ASK_EVERY):
            deadline.check()
        try:
            deadline.check()
            yield self._opened()
        finally:
            self._turn.release()

    def _opened(self) -> DeviceLoop:
        """Return the loop, with the device made that of this thread."""
        if self._loop is None:
            raise BackendError("the backend is closed")
        self._device.activate()
        return self._loop

    def _run(self, network: str, feeds: Mapping[str, NDArray[Any]]) -> FloatArray:
        with self._turn:
            return self._opened().run_network(network, feeds)
