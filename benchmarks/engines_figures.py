"""Arithmetic, tables and plot of `engines.py`: from runs to what is reported."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

COLUMNS = (
    *("batch", "contender", "ms/step", "least", "ms/image", "least", "images/s"),
    *("step x published", "step x fp32", "image x published"),
    *("of arithmetic floor", "of bandwidth floor"),
)
Key = tuple[str, int]  # contender and batch size
WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
PUBLISHED = "published"


@dataclass(frozen=True)
class Network:
    """Size of the model.

    Attributes
    ----------
    parameters : int
        Of the denoiser.
    step_gflop, encode_gflop, decode_gflop : float
        GFLOP per image: one call of the denoiser, the encoder, the decoder; a multiplication and
        an addition are two.
    """

    parameters: int
    step_gflop: float
    encode_gflop: float
    decode_gflop: float


@dataclass(frozen=True)
class Peak:
    """What the machine could do at best.

    Attributes
    ----------
    tflops : dict of str to float
        Dense matrix products by precision, in TFLOP/s (for int8 in TOP/s).
    gbs : float
        Memory bandwidth in GB/s.
    source : str
        Where the numbers come from.
    """

    tflops: dict[str, float]
    gbs: float
    source: str


def _datasheet(tf32: float, half: float, int8: float, gbs: float, of: str = "") -> Peak:
    tflops = {"fp32": tf32, "fp16": half, "bf16": half, "int8": int8}
    return Peak(tflops, gbs, f"data sheet{of}, dense, fp32 as TF32")


# By what the driver's name of the GPU contains; the first that fits counts.
PEAKS = {
    "H200": Peak(
        {"fp32": 494, "fp16": 790, "bf16": 790, "int8": 1979},
        4300,
        "fp16, bf16 and bandwidth measured, others from the data sheet",
    ),
    "H100 PCIe": _datasheet(378, 756, 1513, 2000),
    "H100": _datasheet(494, 989, 1979, 3350),
    "A100": _datasheet(156, 312, 624, 2039),
    "L40S": _datasheet(183, 362, 733, 864),
    "L4": _datasheet(60, 121, 242, 300),
    "RTX 6000 Ada": _datasheet(182, 364, 728, 960),
    "RTX 4090": _datasheet(83, 165, 661, 1008),
    # Half of what is given as sparse, without the DLA; the smaller boards have the same name.
    "Orin": _datasheet(21, 43, 85, 205, " of AGX Orin 64 GB"),
    # From the sparse FP4, each doubling of the width halving it.
    "Thor": _datasheet(129, 259, 517, 273, " of AGX Thor, from its FP4"),
}


def peak_of(gpu: str) -> Peak | None:
    """Numbers of a GPU that is known by name."""
    return next((peak for name, peak in PEAKS.items() if name in gpu), None)


def floors_ms(network: Network, peak: Peak, precision: str, batch: int) -> tuple[float, float]:
    """Milliseconds one step takes at least: for its arithmetic, and for reading the weights."""
    arithmetic = network.step_gflop * batch / peak.tflops[precision]
    bandwidth = network.parameters * WEIGHT_BYTES[precision] / (peak.gbs * 1e6)
    return arithmetic, bandwidth


@dataclass(frozen=True)
class Row:
    """One contender at one batch size.

    Attributes
    ----------
    contender, family, precision : str
        Which.
    batch : int
        Batch size; `images` of it are processed by a run (one, where it takes one at a time).
    step_ms, step_ms_least : float
        Milliseconds per reverse step of the whole run; median and minimum of the rounds.
    image_ms, image_ms_least : float
        Milliseconds per image for encoding, loop and decoding.
    step_times_published, step_times_fp32 : float or None
        How many times as fast as the published way, and as fp32 of the same family: medians of
        milliseconds per step and image.
    image_times_published : float or None
        The same for whole images, which few steps bring closer together.
    arithmetic_share, bandwidth_share : float
        Share of the step's median time that the floor would take.
    first_ms : float
        The first run at this batch size, which does not count otherwise.
    host_mib, device_mib : float or None
        Highest memory of the process so far, and memory taken on the GPU beyond the context.
    largest_batch : int or None
        What fits on the GPU at once, where the contender knows; a larger batch ran in parts.
    """

    contender: str
    family: str
    precision: str
    batch: int
    images: int
    step_ms: float
    step_ms_least: float
    image_ms: float
    image_ms_least: float
    step_times_published: float | None
    step_times_fp32: float | None
    image_times_published: float | None
    arithmetic_share: float
    bandwidth_share: float
    first_ms: float
    host_mib: float | None
    device_mib: float | None
    largest_batch: int | None


def rows(runs: Sequence[Mapping[str, Any]], steps: int, network: Network, peak: Peak) -> list[Row]:
    """Condense runs: the first of a contender at a batch size warms up, the others count.

    Parameters
    ----------
    runs : sequence of mapping
        With keys "contender", "family", "precision", "batch", "images", "encode", "loop", "decode"
        (seconds), "host_mib", "device_mib"; in the order they were made.
    """
    groups: dict[Key, list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["contender"], run["batch"]), []).append(run)
    counted = {key: group for key, group in groups.items() if len(group) > 1}
    steps_ms = {
        key: [1000 * run["loop"] / steps for run in group[1:]] for key, group in counted.items()
    }
    per_image = {key: [ms / counted[key][0]["images"] for ms in steps_ms[key]] for key in counted}
    images_ms = {key: [_image_ms(run) for run in group[1:]] for key, group in counted.items()}

    def ratio(times: Mapping[Key, list[float]], mine: Key, **wanted: str) -> float | None:
        """How much longer the contender that is wanted takes, per image, at the same batch size."""
        for key, (first, *_) in counted.items():
            if key[1] == mine[1] and all(first[name] == value for name, value in wanted.items()):
                return statistics.median(times[key]) / statistics.median(times[mine])
        return None

    found = []
    for key, (first, *rest) in counted.items():
        family, precision = first["family"], first["precision"]
        step = statistics.median(steps_ms[key])
        arithmetic, bandwidth = floors_ms(network, peak, precision, first["images"])
        found.append(
            Row(
                contender=key[0],
                family=family,
                precision=precision,
                batch=key[1],
                images=first["images"],
                step_ms=step,
                step_ms_least=min(steps_ms[key]),
                image_ms=statistics.median(images_ms[key]),
                image_ms_least=min(images_ms[key]),
                step_times_published=ratio(per_image, key, family=PUBLISHED),
                step_times_fp32=ratio(per_image, key, family=family, precision="fp32"),
                image_times_published=ratio(images_ms, key, family=PUBLISHED),
                arithmetic_share=arithmetic / step,
                bandwidth_share=bandwidth / step,
                first_ms=_image_ms(first) * first["images"],
                host_mib=rest[-1]["host_mib"],
                device_mib=max((run["device_mib"] or 0 for run in rest), default=0) or None,
                largest_batch=int(rest[-1]["largest_batch"]) if rest[-1]["largest_batch"] else None,
            )
        )
    return sorted(found, key=lambda row: row.batch)


def _image_ms(run: Mapping[str, Any]) -> float:
    return 1000 * (run["encode"] + run["loop"] + run["decode"]) / run["images"]


def markdown(result: Mapping[str, Any]) -> str:
    """Tables of a result: times, start-up and memory, what was left out and why."""
    lines = [
        f"{key}: {value}  " for key, value in result["conditions"].items() if value is not None
    ]
    lines += ["", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in result["rows"]:
        cells = [
            str(row["batch"]),
            row["contender"] + _in_parts(row),
            f"{row['step_ms']:.3g}",
            f"{row['step_ms_least']:.3g}",
            f"{row['image_ms']:.4g}",
            f"{row['image_ms_least']:.4g}",
            f"{1000 / row['image_ms']:.3g}",
            _optional(row["step_times_published"], ".2f"),
            _optional(row["step_times_fp32"], ".2f"),
            _optional(row["image_times_published"], ".2f"),
            f"{row['arithmetic_share']:.1%}",
            f"{row['bandwidth_share']:.1%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "| contender | start-up s | warm-up s | first run s, by batch | host MiB | device MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, opening in result["openings"].items():
        mine = [row for row in result["rows"] if row["contender"] == name]
        cells = [
            name,
            f"{opening['open_s']:.2f}",
            f"{opening['warm_up_s']:.2f}",
            ", ".join(f"{row['batch']}: {row['first_ms'] / 1000:.2f}" for row in mine),
            ", ".join(f"{row['batch']}: {_optional(row['host_mib'], '.0f')}" for row in mine),
            ", ".join(f"{row['batch']}: {_optional(row['device_mib'], '.0f')}" for row in mine),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    if result["left_out"]:
        lines += ["", "Left out:", ""]
        lines += [f"* {name}: {reason}" for name, reason in result["left_out"].items()]
    return "\n".join(lines) + "\n"


def _in_parts(row: Mapping[str, Any]) -> str:
    largest = row["largest_batch"]
    return f" (in parts of {largest})" if largest and largest < row["batch"] else ""


def _optional(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def plot(result: Mapping[str, Any], target: Path) -> None:
    """Milliseconds per image and share of the higher floor, against the batch size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    names = list(dict.fromkeys(row["contender"] for row in result["rows"]))
    for number, name in enumerate(names):
        mine = [row for row in result["rows"] if row["contender"] == name]
        batches = [row["batch"] for row in mine]
        style = {"marker": "osv^D*"[number % 6], "label": name}
        left.plot(batches, [row["image_ms"] for row in mine], **style)
        shares = [100 * max(row["arithmetic_share"], row["bandwidth_share"]) for row in mine]
        right.plot(batches, shares, **style)
    for axes, title in (
        (left, "ms per image"),
        (right, "floor / time per step, %"),
    ):
        axes.set_title(title)
        axes.set_xlabel("batch size")
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
    ticks = sorted({row["batch"] for row in result["rows"]})
    for axes in (left, right):
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
    left.set_yscale("log")
    right.legend(fontsize="small")
    figure.savefig(target, dpi=120)
    pyplot.close(figure)


def as_json(found: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows ready for ``json.dumps``."""
    return [asdict(row) for row in found]
