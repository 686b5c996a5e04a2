"""The one-file detector, written where it finds what the runtime finds, or not at all."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from berdiff.runtime.backends.onnxruntime_session import PROVIDERS, load, open_session
from berdiff.runtime.bundle import Bundle
from berdiff.runtime.detector import Detector
from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.files import write_atomic
from berdiff.runtime.philox import CODE_STEP, PhiloxNoise
from berdiff.runtime.precision import limits
from berdiff.runtime.sampling_settings import make_sampler
from berdiff.runtime.strict import to_json
from berdiff.runtime.verify import Golden, map_error

from .graph import FORMAT, detector_graph

FloatArray = NDArray[np.float32]

_SEEDS = (0, 2**64 - 1)


@dataclass(frozen=True)
class SingleFile:
    """What ``detector.json`` says of ``detector.onnx``.

    Attributes
    ----------
    format : int
        Of the file's inputs, outputs and metadata.
    file : str
        Its name.
    sha256 : str
        Its digest.
    size : int
        Its bytes.
    bundle : str
        Digest of the bundle it was made of.
    noise_input : bool
        Whether the noise is an input.
    precision : str
        What the networks compute in.
    agreement : dict of str to float
        How far its results on the bundle's golden images are from the runtime's: largest
        difference of "anomaly_map", "flip_map", "reconstruction" and "score", and "map_error",
        1 - correlation of the anomaly maps.
    limit : float
        What map_error was allowed to be.
    """

    format: int
    file: str
    sha256: str
    size: int
    bundle: str
    noise_input: bool
    precision: str
    agreement: dict[str, float]
    limit: float


def write_single_file(bundle: Bundle, folder: Path, noise_input: bool = False) -> SingleFile:
    """Write a bundle as one ONNX file: image in; maps, reconstruction and score out.

    Parameters
    ----------
    bundle : Bundle
        Opened.
    folder : Path
        Where ``detector.onnx`` and ``detector.json`` are written; those there are replaced. With
        `noise_input` they are ``detector-noise.onnx`` and ``detector-noise.json``.
    noise_input : bool
        See `detector_graph`.

    Returns
    -------
    SingleFile
        What ``detector.json`` holds.

    Raises
    ------
    BerdiffError
        If the bundle is in bf16, or what the file finds is not what the runtime finds. Nothing is
        written then.
    """
    precision = bundle.manifest.precision
    if precision == "bf16":
        raise BerdiffError(
            "a single file in bf16 could not be checked: ONNX Runtime has no such convolutions on "
            "the CPU; export with --precision fp32, fp16 or int8"
        )
    name = "detector-noise" if noise_input else "detector"
    data = detector_graph(bundle, noise_input).SerializeToString()
    agreement, limit = _agreement(bundle, data, noise_input), limits(precision)["map_error"]
    if not agreement["map_error"] <= limit:
        raise BerdiffError(
            f"the single file does not find what the runtime finds: 1 - correlation of the "
            f"anomaly maps is {agreement['map_error']:.1e}, allowed is {limit:.0e}; nothing was "
            "written"
        )
    record = SingleFile(
        format=FORMAT,
        file=f"{name}.onnx",
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        bundle=bundle.digest,
        noise_input=noise_input,
        precision=precision,
        agreement=agreement,
        limit=limit,
    )
    write_atomic(Path(folder) / record.file, data)
    write_atomic(Path(folder) / f"{name}.json", to_json(record).encode())
    return record


def draw_noise(bundle: Bundle, ids: list[int], seed: int) -> FloatArray:
    """Draw what a file whose noise is an input takes, as the runtime draws it.

    Returns
    -------
    ndarray of float32, shape (draws, N, K, h, w)
        In [0, 1): for the noising, for each reverse step but the last, and for sampled codes.
    """
    settings, code = bundle.manifest.sampling, bundle.manifest.code
    sampler, noise = make_sampler(bundle, settings), PhiloxNoise(seed, ids)
    steps = [sampler.forward()[0]]
    steps += [sampler.reverse(index)[0] for index in range(len(sampler.kept) - 1, 0, -1)]
    if settings.code == "sample":
        steps.append(CODE_STEP)
    shape = (len(ids), code.channels, code.height, code.width)
    return np.stack([noise(step, shape) for step in steps])


def _agreement(bundle: Bundle, data: bytes, noise_input: bool) -> dict[str, float]:
    """Compare with the runtime on the golden images, with two seeds."""
    images = Golden.load(bundle).image
    ids = [2**64 - 1 - number for number in range(len(images))]
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "detector.onnx")
        path.write_bytes(data)
        session = open_session(load(), path, PROVIDERS["cpu"], {})
    names = [output.name for output in session.get_outputs()]
    with Detector.open(bundle) as detector:
        for seed in _SEEDS:
            feeds: Mapping[str, Any] = {"image": images}
            if noise_input:
                feeds = {**feeds, "noise": draw_noise(bundle, ids, seed)}
            else:
                feeds = {
                    **feeds,
                    "image_id": np.array(ids, np.uint64),
                    "seed": np.array(seed, np.uint64),
                }
            got = dict(zip(names, session.run(None, feeds), strict=True))
            expected = detector.detect(images, ids, seed)
            for name in names:
                error = float(np.max(np.abs(got[name] - getattr(expected, name))))
                figures[name] = max(error, figures.get(name, 0.0))
            error = map_error(got["anomaly_map"], expected.anomaly_map)
            figures["map_error"] = max(error, figures.get("map_error", 0.0))
    return figures
