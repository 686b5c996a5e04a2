"""Encode, walk back, decode and compare a batch without leaving the device.

The steps are those of `berdiff.runtime.sampler` and `berdiff.runtime.walk`, one kernel each, and
give the same bits where the networks answer the same. The host uploads the images and the table of
the schedule, then only asks for work: denoiser and step kernel are recorded once per batch size
and replayed, and find step number and coefficients in device memory.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..deadline import UNLIMITED, Deadline
from ..errors import BackendError
from ..manifest import AnomalyMapKind, CodeKind, SamplingDefaults
from ..philox import PhiloxNoise
from ..sampler import Sampler
from ..walk import Walk, timed
from .arrays import Buffer
from .device import Device, Graph, OutOfDeviceMemory
from .kernels import KINDS, SIGNATURES
from .layout import Layout, settings_record, step_records
from .memory import largest_batch
from .networks import DeviceNetworks

FloatArray = NDArray[np.float32]
Part = TypeVar("Part")

ALIGNMENT = 256
RESERVED_BYTES = (
    64 << 20
)  # left to the driver, which loads code and keeps graphs in the same memory

# What the loop leaves behind, for a caller who wants it on the device.
OUTPUTS = ("map", "flip_mean", "reconstruction")

# Steps are asked for ahead of the device. Under a deadline, only so many: then the host waits.
_STEPS_AHEAD = 4


class DeviceLoop:
    """The loop of a bundle on a device. Not for several threads at once.

    Parameters
    ----------
    bundle : Bundle
        Opened.
    device : Device
        Where everything happens.
    networks : DeviceNetworks
        The bundle's networks there.

    Attributes
    ----------
    batch : int
        Largest number of images walked together: what fits by the library's own figures. Halved,
        with a warning, when the device has no room after all.
    """

    def __init__(self, bundle: Bundle, device: Device, networks: DeviceNetworks) -> None:
        self.layout = Layout.of(bundle)
        self.device = device
        self.networks = networks
        self.batch = largest_batch(
            networks, self.layout.nbytes(1), device.memory()[0], RESERVED_BYTES
        )
        self._block: Buffer | None = None
        self._prepared = 0
        self._at: dict[str, int] = {}
        self._graph: Graph | None = None

    def walk(
        self,
        images: FloatArray,
        noise: PhiloxNoise,
        sampler: Sampler,
        settings: SamplingDefaults,
        deadline: Deadline = UNLIMITED,
    ) -> Walk:
        """Do on the device what `berdiff.runtime.walk.walk` does on the host.

        Raises
        ------
        OutOfDeviceMemory
            If not even one image fits.
        """

        def walk(part: slice) -> Walk:
            own = PhiloxNoise(noise.seed, noise.image_ids[part])
            return self._walk(images[part], own, sampler, settings, deadline)

        return _joined(self._in_parts(len(images), walk))

    def walk_on_device(
        self,
        image: int,
        noise: PhiloxNoise,
        sampler: Sampler,
        settings: SamplingDefaults,
        outputs: Mapping[str, int],
        deadline: Deadline = UNLIMITED,
    ) -> NDArray[np.bool_]:
        """Walk images that are on the device already, and leave the result there.

        Parameters
        ----------
        image : int
            Address of float32 ``[N, C, H, W]`` in [0, 1]; N is the number of the noise's images.
        noise, sampler, settings
            As for `berdiff.runtime.walk.walk`.
        outputs : mapping of str to int
            Addresses for `OUTPUTS`: float32 ``[N, H, W]``, ``[N, h, w]`` and ``[N, C, H, W]``. What
            belongs to an image that is not sound is NaN.
        deadline : Deadline
            As for `berdiff.runtime.walk.walk`.

        Returns
        -------
        ndarray of bool, shape (N,)
            Which images are sound; everything is done when it is returned.
        """
        kind = settings.anomaly_map
        if kind == "flips":
            raise BackendError(
                "the map 'flips' is made on the host from the flip mean; ask for another kind, or "
                "take the flip mean"
            )
        batch = len(noise.image_ids)
        self.prepare(batch)
        self._begin(noise, sampler, settings.code, image)
        self._steps(sampler, deadline)
        self._finish(image, kind, outputs)
        unsound = self._fetch("unsound")
        for name in OUTPUTS:
            values = math.prod(self.layout.arrays(1)[name][0])
            self._launch("blank", batch * values, self._at["unsound"], outputs[name], values)
        self.device.synchronise()
        return unsound == 0

    def prepare(self, batch: int) -> None:
        """Get memory, engines and the recorded step ready for a batch size."""
        if batch == self._prepared:
            return
        self._forget()
        starts, sizes = self.layout.offsets(batch)
        needed = sum(sizes.values())
        if self._block is None or self._block.nbytes < needed:
            if self._block is not None:
                self._block.close()
                self._block = None
            self._block = self.device.allocate(needed)
        self._at = {name: self._block.pointer + start for name, start in starts.items()}
        self.networks.prepare(batch)
        self.device.upload(np.zeros(1, np.int64), self._at["t"])
        self._prepared = batch

    def run_network(self, network: str, feeds: Mapping[str, NDArray[Any]]) -> FloatArray:
        """Run one network on arrays of the host: what a `Backend` is made of.

        Parameters
        ----------
        network : {"encoder", "denoiser", "decoder"}
            Which.
        feeds : mapping of str to ndarray
            Inputs by the names of the ONNX file.

        Raises
        ------
        BackendError
            If an input has another shape than the bundle's.
        """
        target = {"encoder": "answer", "denoiser": "answer", "decoder": "decoded"}[network]

        def run(part: slice) -> FloatArray:
            self.prepare(part.stop - part.start)
            for name, array in feeds.items():
                piece = array if name == "t" else array[part]
                self.device.upload(np.ascontiguousarray(piece), self._at[name])
            inputs = {name: self._at[name] for name in feeds}
            self.networks.enqueue(network, inputs, self._at[target])
            return self._fetch(target)

        return np.concatenate(self._in_parts(self._batch_of(network, feeds), run))

    def close(self) -> None:
        """Release everything."""
        self._forget()
        self.networks.close()
        if self._block is not None:
            self._block.close()
            self._block = None

    def _in_parts(self, count: int, run: Callable[[slice], Part]) -> list[Part]:
        """Do something for `count` images, as many at a time as fit."""
        parts, start = [], 0
        while start < count:
            part = slice(start, min(start + self.batch, count))
            try:
                parts.append(run(part))
            except OutOfDeviceMemory as error:
                self._halve(part.stop - part.start, error)
            else:
                start = part.stop
        return parts

    # --- one batch ---

    def _walk(
        self,
        images: FloatArray,
        noise: PhiloxNoise,
        sampler: Sampler,
        settings: SamplingDefaults,
        deadline: Deadline,
    ) -> Walk:
        timings: dict[str, float] = {}
        kind = settings.anomaly_map
        with timed(timings, "encode"):
            self.prepare(len(images))
            self.device.upload(np.ascontiguousarray(images), self._at["image"])
            self._begin(noise, sampler, settings.code, self._at["image"])
            self.device.synchronise()
        with timed(timings, "loop"):
            self._steps(sampler, deadline)
            self.device.synchronise()
        with timed(timings, "decode"):
            self._finish(self._at["image"], kind, {name: self._at[name] for name in OUTPUTS})
            self.device.synchronise()
        with timed(timings, "maps"):
            return Walk(
                None if kind == "flips" else self._fetch("map"),
                self._fetch("flip_mean"),
                self._fetch("reconstruction"),
                self._fetch("unsound") == 0,
                timings,
            )

    def _begin(self, noise: PhiloxNoise, sampler: Sampler, code: CodeKind, image: int) -> None:
        """Encode, make the code, and noise it to step L."""
        at = self._at
        self.device.upload(noise.image_ids, at["ids"])
        self.device.upload(np.zeros(self._prepared, np.int32), at["unsound"])
        self.device.upload(settings_record(noise.seed, sampler, code), at["settings"])
        self.device.upload(step_records(sampler), at["steps"])
        self.networks.enqueue("encoder", {"image": image}, at["answer"])
        names = "settings ids answer code state flips unsound cursor".split()
        self._launch_on_bits("begin", names)

    def _steps(self, sampler: Sampler, deadline: Deadline) -> None:
        """Walk back to the soft healthy code."""
        if len(sampler.kept) > 1 and self._graph is None and self.networks.capturable:
            self._ask_denoiser()  # once outside: libraries set themselves up on the first call
            with self.device.capture() as graph:
                self._one_step()
            self._graph = graph
            # The call outside has moved nothing but the answer and the cursor.
            self.device.upload(np.array([-1], np.int32), self._at["cursor"])
        for step in range(len(sampler.kept) - 1):
            if deadline.limited and step % _STEPS_AHEAD == 0:
                self.device.synchronise()  # nothing reads the caller's memory when this ends here
                deadline.check()
            if self._graph is None:
                self._one_step()
            else:
                self._graph.launch()
        self._ask_denoiser()
        self._launch_on_bits("finish", "answer code state flips unsound".split())

    def _one_step(self) -> None:
        self._ask_denoiser()
        self._launch_on_bits("step", "settings steps cursor ids answer code state flips".split())

    def _ask_denoiser(self) -> None:
        at = self._at
        self.device.launch("advance", 1, *map(np.uint64, (at["steps"], at["cursor"], at["t"])))
        self.networks.enqueue("denoiser", {"code": at["code"], "t": at["t"]}, at["answer"])

    def _finish(self, image: int, kind: AnomalyMapKind, outputs: Mapping[str, int]) -> None:
        """Decode, compare with the images, and bring flips to one number per position."""
        at, layout, batch = self._at, self.layout, self._prepared
        self.networks.enqueue("decoder", {"code": at["code"]}, at["decoded"])
        unchanged = 0
        if kind == "change":
            self._launch_on_bits("own_code", ["state", "code"])
            unchanged = at["unchanged"]
            self.networks.enqueue("decoder", {"code": at["code"]}, unchanged)
        pixels = batch * layout.pixels
        # The map "flips" is not made of images, but the reconstruction is wanted all the same.
        number = KINDS.get(kind, KINDS["squared"])
        images = image, at["decoded"], unchanged, at["difference"], outputs["reconstruction"]
        sizes = layout.channels, layout.pixels
        self._launch("difference", pixels, number, *images, at["unsound"], *sizes)
        shape = layout.height, layout.width
        self._launch("median", pixels, at["difference"], outputs["map"], *shape)
        names = at["settings"], at["flips"], outputs["flip_mean"]
        code = layout.code_channels, layout.positions
        self._launch("flip_mean", batch * layout.positions, *names, *code)

    # --- small things ---

    def _launch_on_bits(self, kernel: str, names: list[str]) -> None:
        """Launch a kernel on the loop's arrays; a thread of it takes four bits of one image."""
        bits = self.layout.bits
        self._launch(kernel, self._prepared * -(-bits // 4), *map(self._at.get, names), bits)

    def _launch(self, kernel: str, count: int, *arguments: int | None) -> None:
        """Launch a kernel whose last argument is the batch."""
        values = (*arguments, self._prepared)
        kinds = SIGNATURES[kernel]
        self.device.launch(kernel, count, *(k(v) for k, v in zip(kinds, values, strict=True)))

    def _fetch(self, name: str) -> NDArray[Any]:
        shape, dtype = self.layout.arrays(self._prepared)[name]
        array = np.empty(shape, dtype)
        self.device.download(self._at[name], array)
        return array

    def _batch_of(self, network: str, feeds: Mapping[str, NDArray[Any]]) -> int:
        sizes = set()
        for name, array in feeds.items():
            if name == "t":
                continue
            expected = self.layout.arrays(1)[name][0][1:]
            if array.shape[1:] != expected or not len(array):
                raise BackendError(
                    f"the {network} got {name} of shape {array.shape}, "
                    f"expected [N, {', '.join(map(str, expected))}]"
                )
            sizes.add(len(array))
        return sizes.pop()

    def _forget(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        self._prepared = 0

    def _halve(self, size: int, error: OutOfDeviceMemory) -> None:
        """Go on with smaller batches, and say so."""
        self._forget()
        if self._block is not None:
            self._block.close()
            self._block = None
        if size == 1:
            raise OutOfDeviceMemory(
                f"{self.device.name} has no room for one image ({error}); close other programs "
                "that use it, or take a smaller precision"
            ) from error
        self.batch = size // 2
        warnings.warn(
            f"{self.device.name} has no room for {size} images at a time; going on with "
            f"{self.batch}",
            RuntimeWarning,
            stacklevel=5,
        )


def _joined(parts: list[Walk]) -> Walk:
    if len(parts) == 1:
        return parts[0]
    maps = [part.anomaly_map for part in parts if part.anomaly_map is not None]
    return Walk(
        np.concatenate(maps) if maps else None,
        np.concatenate([part.flips for part in parts]),
        np.concatenate([part.reconstruction for part in parts]),
        np.concatenate([part.sound for part in parts]),
        {name: sum(part.timings[name] for part in parts) for name in parts[0].timings},
    )
