"""Output folders to make reports of."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from berdiff.runtime.components import Component, find_components
from berdiff.runtime.overlays import write_overlay
from berdiff.runtime.results import ScanResult, SliceResult, write_parts, write_results
from berdiff.runtime.volume_picture import write_volume_picture

NASTY = "a\"b'><img src=x onerror=alert(1)></script><script>document.title='owned'</script>&amp;"
RECORD = {
    "software": {"berdiff": "9.8.7", "numpy": "2.0"},
    "backend": "onnxruntime",
    "device": "cpu",
    "bundle": {"name": "head <b>model</b>", "digest": "ab" * 32},
    "input": "scans & more",
    "seed": 42,
    "options": {"batch_size": 8},
    "settings": {"noise_level": 200, "steps": None},
    "threshold": {"value": 0.125, "source": "bundle"},
    "warnings": ["mind the <gap>"],
    "started": "2024-01-02T03:04:05+00:00",
    "seconds": 12.5,
    "timings": {"loop": 9.5},
    "counts": {"slices": 7, "empty_slices": 1},
}


def ok(name: str, score: float, mask: int = 5) -> ScanResult:
    return ScanResult(name, f"{name}.png", "ok", slices=1, score=score, mask_pixels=mask)


def failure(name: str, reason: str) -> ScanResult:
    return ScanResult(name, f"{name}.png", "failed", reason)


def overlay(folder: Path, name: str, seed: int = 0, size: int = 40) -> None:
    random = np.random.default_rng(seed)
    image = random.random((size, size)).astype(np.float32)
    write_overlay(folder / "overlays" / f"{name}.png", image, image**4, image > 0.99, image)


def output(folder: Path, results: list[ScanResult]) -> Path:
    folder.mkdir(exist_ok=True)
    write_results(folder, results)
    (folder / "run.json").write_text(json.dumps(RECORD))
    return folder


def small_run(folder: Path) -> Path:
    """Three pictures and a failure, of a version that gave no verdicts."""
    output(
        folder,
        [
            ok("low", 0.1, 0),
            failure("bad", "cannot <i>read</i> it"),
            ok("high", 0.9),
            ok("mid", 0.5),
        ],
    )
    for seed, name in enumerate(("low", "high", "mid")):
        overlay(folder, name, seed)
    return folder


def volume(folder: Path, name: str, scores: list[float | None], **changes: object) -> ScanResult:
    """A scan with slices of these scores, two components, a picture and an overlay."""
    random = np.random.default_rng(len(scores))
    image = random.random((len(scores), 30, 40)).astype(np.float32)
    mask = np.zeros(image.shape, bool)
    mask[1, 4:8, 4:8] = mask[-1, 20:22, 30:33] = True
    worst = max(range(len(scores)), key=lambda index: scores[index] or 0)
    write_volume_picture(
        folder / "volumes" / f"{name}.png", image, image, mask, spacing_mm=(5, 1, 1),
        focus=(worst, 5, 5), scores=scores,
    )  # fmt: skip
    overlay(folder, name)
    affine = np.array([[-1.0, 0, 0, 90], [0, 1, 0, -120.5], [0, 0, 5, 7], [0, 0, 0, 1]])
    found = find_components(np.moveaxis(mask, 0, 2), np.moveaxis(image, 0, 2), affine, 5.0)
    given = {
        "slices": len(scores), "score": scores[worst], "worst_slice": worst, "slice_axis": 2,
        "mask_pixels": int(mask.sum()), "volume_ml": 0.11, "components": len(found),
        "largest_ml": found[0].volume_ml, "format": "nifti",
    } | changes  # fmt: skip
    parts = [SliceResult(index, score, 0) for index, score in enumerate(scores)]
    write_parts(folder, "slices.csv", SliceResult, [(name, parts), ("other", parts)])
    write_parts(folder, "components.csv", Component, [("other", found), (name, found)])
    return ScanResult(name, f"{name}.nii.gz", "ok", **given)


def judged_run(folder: Path) -> Path:
    """One volume, which is suspect, two pictures, and failures of both kinds."""
    folder.mkdir()
    suspect = {"verdict": "suspect", "verdict_reason": "unlike <b>heads</b>", "ood": 1.5}
    results = [
        volume(folder, "head", [None, 0.2, 0.8, 0.4], **suspect),
        dataclasses.replace(ok("fine", 0.3), verdict="ok", ood=0.25),
        dataclasses.replace(ok("plain", 0.1), verdict="ok"),
        dataclasses.replace(failure("sheared", "axes <i>meet</i>"), verdict="rejected"),
        failure("late", "the model answered with NaN"),
    ]
    overlay(folder, "fine")
    return output(folder, results)
