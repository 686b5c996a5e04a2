"""The whole detector as one graph."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import onnx
from onnx import helper

from berdiff import __version__
from berdiff.runtime.bundle import Bundle
from berdiff.runtime.manifest import Manifest, SamplingDefaults
from berdiff.runtime.provenance import NOTICE
from berdiff.runtime.sampling_settings import make_sampler

from .builder import DOUBLE, FLOAT, INT64, UINT64, Builder, Type, Values
from .loop import Plan, plan_in_graph, walk
from .maps import difference, finite, mean_of_bits, median, score, smoothed, stretched
from .noise import Given, Noise, Philox

# Raised when an input, an output or a key of the metadata goes or changes its meaning.
FORMAT = 1


def detector_graph(bundle: Bundle, noise_input: bool = False) -> onnx.ModelProto:
    """Put a bundle's networks, the loop and the maps into one graph.

    Parameters
    ----------
    bundle : Bundle
        Opened.
    noise_input : bool
        The noise is an input, and the settings are the bundle's: for engines that know neither
        64-bit unsigned integers nor float64.

    Returns
    -------
    ModelProto
        Inputs: ``image`` float32 ``[N, C, H, W]`` in [0, 1], ``image_id`` uint64 ``[N]``, ``seed``
        uint64; with defaults ``noise_level``, ``steps`` (int64) and ``flip_threshold`` (float32):
        some bindings of ONNX Runtime, such as those for JavaScript, know only inputs without.
        With `noise_input`: ``image`` and ``noise`` float32 ``[draws, N, K, h, w]``.
        Outputs: ``anomaly_map``, ``flip_map`` float32 ``[N, H, W]``, ``reconstruction`` float32
        ``[N, C, H, W]`` and ``score`` ``[N]`` (float64, or float32 with `noise_input`).
    """
    manifest = bundle.manifest
    networks = {
        name: onnx.load(str(bundle.file(f"onnx/{name}.onnx")))
        for name in ("encoder", "denoiser", "decoder")
    }
    g, settings = Builder("detector"), manifest.sampling
    inputs: list[tuple[str, Type, Sequence[int | str]]] = [
        ("image", FLOAT, ("N", *_image_shape(manifest)))
    ]
    noise: Noise
    if noise_input:
        code, draws = manifest.code, draws_of(bundle)
        inputs.append(("noise", FLOAT, (draws, "N", code.channels, code.height, code.width)))
        noise, threshold = Given("noise", draws), g.constant(settings.flip_threshold, np.float32)
        plan = _plan_of(g, bundle)
    else:
        inputs += [
            ("image_id", UINT64, ("N",)), ("seed", UINT64, ()), ("noise_level", INT64, ()),
            ("steps", INT64, ()), ("flip_threshold", FLOAT, ()),
        ]  # fmt: skip
        g.give_default("noise_level", settings.noise_level, np.int64)
        g.give_default("steps", settings.steps or 0, np.int64)
        g.give_default("flip_threshold", settings.flip_threshold, np.float32)
        noise, threshold = Philox(g, "seed", "image_id", manifest.code), "flip_threshold"
        plan = plan_in_graph(g, "noise_level", "steps", bundle)
    real = FLOAT if noise_input else DOUBLE
    outputs = _detect(g, networks, plan, threshold, noise, bundle, real)
    model = helper.make_model(
        g.graph(inputs, outputs),
        opset_imports=[helper.make_opsetid("", max(_opset(m) for m in networks.values()))],
        ir_version=max(model.ir_version for model in networks.values()),
        producer_name="berdiff",
        producer_version=__version__,
    )
    helper.set_model_props(model, metadata(bundle))
    onnx.checker.check_model(model, full_check=True)
    return model


def metadata(bundle: Bundle) -> dict[str, str]:
    """What a program must know to use the file correctly, as text in the file itself."""
    manifest = bundle.manifest
    return {
        "berdiff.format": str(FORMAT),
        "berdiff.name": manifest.name,
        "berdiff.bundle": bundle.digest,
        "berdiff.preprocessing": json.dumps(asdict(manifest.preprocessing)),
        "berdiff.sampling": json.dumps(asdict(manifest.sampling)),
        "berdiff.threshold": json.dumps(manifest.threshold and asdict(manifest.threshold)),
        "berdiff.precision": manifest.precision,
        "berdiff.use": NOTICE,
    }


def draws_of(bundle: Bundle) -> int:
    """How many draws of noise the graph takes whose noise is an input."""
    settings = bundle.manifest.sampling
    sampled = settings.code == "sample"
    return len(make_sampler(bundle, settings).kept) + sampled


def _detect(
    g: Builder,
    networks: dict[str, onnx.ModelProto],
    plan: Plan,
    threshold: str,
    noise: Noise,
    bundle: Bundle,
    real: Type,
) -> Values:
    """Write everything between the inputs and the outputs."""
    manifest, settings = bundle.manifest, bundle.manifest.sampling
    probability = g.network(networks["encoder"], {"image": "image"})
    half = g.constant(0.5, np.float32)
    drawn = noise.for_code(g) if settings.code == "sample" else half
    z_org = g.cast(g.op("Less", drawn, probability), FLOAT)
    code, _, flips = walk(g, networks["denoiser"], z_org, plan, threshold, noise, bundle)
    decoded = [g.network(networks["decoder"], {"code": code})]
    if settings.anomaly_map == "change":
        decoded.append(g.network(networks["decoder"], {"code": z_org}, prefix="own/"))
    zero, one = g.constant(0, np.float32), g.constant(1, np.float32)
    clipped = [g.op("Max", g.op("Min", value, one), zero) for value in decoded]

    sound = finite(g, probability)
    for value in (flips, *decoded):
        sound = g.op("And", sound, finite(g, value))
    return _outputs(g, clipped, flips, sound, settings, manifest, real)


def _outputs(
    g: Builder,
    clipped: list[str],
    flips: str,
    sound: str,
    settings: SamplingDefaults,
    manifest: Manifest,
    real: Type,
) -> Values:
    """Maps and score; 0 for an image that shows nothing, NaN where a network answered so."""
    (channels, *plane), code = _image_shape(manifest), manifest.code
    size = plane[0], plane[1]
    zero = g.constant(0, np.float32)
    shows = g.cast(g.op("Greater", "image", zero), FLOAT)
    inside = g.op("Greater", g.op("ReduceMax", shows, g.ints(1), keepdims=0), zero)
    flip = stretched(
        g, mean_of_bits(g, flips, code.channels), (code.height, code.width), size, real
    )
    if settings.anomaly_map == "flips":
        plain = flip
    else:
        plain = difference(g, settings.anomaly_map, "image", clipped[0], clipped[-1], channels)
    anomaly = median(g, plain, size)
    if settings.smoothing:
        anomaly = smoothed(g, anomaly, inside, settings.smoothing * size[0], size, real)
    points = score(g, anomaly, inside, size, real)

    flat = g.op("Reshape", g.cast(inside, FLOAT), g.ints(0, -1))
    shown = g.op("Greater", g.op("ReduceMax", flat, g.ints(1), keepdims=0), zero)
    for value, name, rank in (
        (anomaly, "anomaly_map", 3), (flip, "flip_map", 3), (clipped[0], "reconstruction", 4),
        (points, "score", 1),
    ):  # fmt: skip
        dtype = np.float64 if name == "score" and real == DOUBLE else np.float32
        shape = g.ints(-1, *[1] * (rank - 1))
        valid, seen = (g.op("Reshape", flag, shape) for flag in (sound, shown))
        blank = g.op("Where", valid, value, g.constant(np.nan, dtype))
        g.alias(g.op("Where", seen, blank, g.constant(0, dtype)), name)
    return [
        ("anomaly_map", FLOAT, ("N", *size)),
        ("flip_map", FLOAT, ("N", *size)),
        ("reconstruction", FLOAT, ("N", channels, *size)),
        ("score", real, ("N",)),
    ]


def _plan_of(g: Builder, bundle: Bundle) -> Plan:
    """The bundle's own steps, as constants."""
    sampler = make_sampler(bundle, bundle.manifest.sampling)
    level, keep, floor = sampler.forward()
    count = len(sampler.kept)
    steps = [sampler.reverse(index) for index in reversed(range(count))]
    tables = np.ones((4, count), np.float32)  # the last step has none
    for place, (_, coefficients) in enumerate(steps):
        if coefficients is not None:
            tables[:, place] = coefficients
    a, a_rest, b, b_rest = (g.constant(table, np.float32) for table in tables)
    return Plan(
        count=g.constant(count, np.int64),
        level=g.constant(level, np.int64),
        keep=g.constant(keep, np.float32),
        floor=g.constant(floor, np.float32),
        timesteps=g.constant([timestep for timestep, _ in steps], np.int64),
        coefficients=(a, a_rest, b, b_rest),
    )


def _image_shape(manifest: Manifest) -> tuple[int, int, int]:
    pre = manifest.preprocessing
    return pre.channels, *pre.size


def _opset(model: onnx.ModelProto) -> int:
    return int(model.opset_import[0].version)
