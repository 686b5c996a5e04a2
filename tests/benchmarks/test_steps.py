"""The measurement of steps: where they lie, that the loop is the detector's, that it goes on."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pytest
from fakes import fake_detector

from berdiff.phantoms import write_phantoms
from berdiff.runtime.philox import PhiloxNoise

if TYPE_CHECKING:
    from berdiff.runtime.bundle import Bundle

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("steps")


@pytest.mark.parametrize("stop", [2, 50, 300])
def test_every_spacing_keeps_both_ends_and_as_many_steps_as_asked(
    steps: ModuleType, stop: int
) -> None:
    for spacing in steps.SPACINGS.values():
        for count in {2, min(5, stop), stop // 2 + 1, stop}:
            kept = spacing(count, stop)
            assert len(kept) == count
            assert (kept[0], kept[-1]) == (0, stop - 1)
            assert all(gap > 0 for gap in np.diff(kept))
    gaps = np.diff(steps.dense_at_start(10, 300))
    assert all(np.diff(gaps) >= -1)  # grow, but for rounding
    assert gaps[-1] > 5 * gaps[0]


def test_equal_gaps_are_the_detectors_own(steps: ModuleType) -> None:
    """What is measured is what `--steps` does, bit for bit."""
    detector = fake_detector()
    settings = detector.settings(noise_level=200, steps=20)
    own = detector.sampler(settings)
    measured = steps.Combination(200, "uniform", 20).sampler(detector, settings)
    code = (np.random.default_rng(0).random((2, 2, 8, 10)) < 0.5).astype(np.float32)
    noise = PhiloxNoise(0, [1, 2])
    first, second = (
        sampler.run(code, detector.backend.flip_probability, noise) for sampler in (own, measured)
    )
    np.testing.assert_array_equal(first.z, second.z)
    np.testing.assert_array_equal(first.flips, second.flips)


@pytest.mark.slow
def test_measures_what_is_missing_and_reports_all(
    steps: ModuleType,
    tiny_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_phantoms(tmp_path / "sick", 3, size=(32, 32), lesions=True)
    write_phantoms(tmp_path / "well", 3, seed=1, size=(32, 32))
    out = tmp_path / "out"
    command = f"steps {tiny_bundle.path} --images {tmp_path}/sick/images --masks "
    command += f"{tmp_path}/sick/masks --healthy {tmp_path}/well/images -o {out} --levels 10 20"
    monkeypatch.setattr(sys, "argv", command.split())
    steps.main()
    rows = {path.name: path.read_bytes() for path in out.glob("L*.json")}
    kept = {f"L10-uniform-{n}" for n in (5, 10)} | {f"L20-uniform-{n}" for n in (5, 10, 20)}
    kept |= {f"L{level}-dense-at-{end}-5" for level in (10, 20) for end in "0L"}
    kept |= {f"L20-dense-at-{end}-10" for end in "0L"} | {"L0-uniform-0"}
    assert set(rows) == {f"{name}.json" for name in kept}
    alone = json.loads(rows["L0-uniform-0.json"])["maps"]["change"]["pixel_ap"]
    truth = json.loads(rows["L10-uniform-5.json"])["maps"]["squared"]["pixel_ap"]
    assert 0 < alone < truth < 1  # without the loop nothing changes: a guess
    assert (out / "steps.png").read_bytes().startswith(b"\x89PNG")
    table = capsys.readouterr().out
    assert "| 20 | 20 | " in table
    assert "| 20 | 10 | " in table

    (out / "L20-uniform-5.json").unlink()
    monkeypatch.setattr(sys, "argv", [*command.split(), "--batch-size", "2"])
    steps.main()
    assert "L20-uniform-5: " in (again := capsys.readouterr().out)
    assert "L20-uniform-10: " not in again
    with_time = {path.name: path.read_bytes() for path in out.glob("L*.json")}
    first, second = (json.loads(both["L20-uniform-5.json"]) for both in (rows, with_time))
    assert first["maps"] == second["maps"]

    monkeypatch.setattr(sys, "argv", [*command.split(), "--seed", "1"])
    with pytest.raises(SystemExit, match="another bundle or other images"):
        steps.main()
