"""What the documentation tells people to type and to open is there, and what it lists is all."""

import dataclasses
import json
import re
import runpy
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer.main

from berdiff.cli.main import app

if TYPE_CHECKING:
    from berdiff.runtime.bundle import Bundle

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#]+)")


def _lines(page: Path) -> list[str]:
    """Command lines of a page, those continued with a backslash put together."""
    blocks = FENCED.findall(page.read_text())
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line]


def _commands(name: str) -> list[pytest.param]:
    return [
        pytest.param(shlex.split(line, comments=True)[1:], id=f"{page.name}: {line}")
        for page in PAGES
        for line in _lines(page)
        if line.startswith(name + " ")
    ]


@pytest.mark.parametrize("words", _commands("berdiff"))
def test_documented_command_has_these_options(words: list[str]) -> None:
    command = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    given = {word.split("=")[0] for word in words if word.startswith("-")}
    if given == {"--help"}:
        return
    options = {n: p for p in command.params for n in (*p.opts, *p.secondary_opts)}
    assert given - set(options) == set()
    required = {p.name for p in command.params if p.required and p.param_type_name == "option"}
    assert required - {options[name].name for name in given} == set()
    assert not hasattr(command, "commands") or not words or given, f"no such verb: {words}"


@pytest.mark.parametrize("words", _commands("make"))
def test_documented_make_target_exists(words: list[str]) -> None:
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for word in words if "=" not in word} <= rules


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    # mkdocs checks the pages in docs/, with their anchors; it does not see those beside it.
    targets = LINK.findall(page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def _page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def _first_cells(text: str, after: str) -> list[str]:
    """First cells of the table that follows a line, as the names they hold."""
    rows = text.split(after, 1)[1].lstrip("\n").split("\n\n", 1)[0].splitlines()[2:]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


def _fields(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def test_every_key_of_a_bundle_is_explained() -> None:
    from berdiff.runtime.image_features import CHANNEL_FEATURES, SHAPE_FEATURES
    from berdiff.runtime.intake import InputStatistics
    from berdiff.runtime.manifest import Manifest, SamplingDefaults, Threshold
    from berdiff.runtime.preprocessing import Preprocessing

    page = _page("bundle.md")
    assert sorted(_first_cells(page, "## Keys of `bundle.json`")) == sorted(_fields(Manifest))
    assert _first_cells(page, "\n`preprocessing`:") == _fields(Preprocessing)
    assert _first_cells(page, "says nothing:") == _fields(SamplingDefaults)
    assert _first_cells(page, "\n`threshold`:") == _fields(Threshold)
    assert _first_cells(page, "scans of `berdiff calibrate`:") == _fields(InputStatistics)
    features = [*SHAPE_FEATURES, *CHANNEL_FEATURES]
    assert sorted(_first_cells(page, "the range of intensities:")) == sorted(features)


def test_every_key_of_an_engine_is_explained() -> None:
    from berdiff.runtime.engines.options import BuildOptions
    from berdiff.runtime.engines.store import NetworkEngine, Sidecar

    page = _page("engines.md")
    assert _first_cells(page, "### engine.json") == _fields(Sidecar)
    assert _first_cells(page, "`networks`, each:") == _fields(NetworkEngine)
    (options,) = re.findall(r"^\| `options` \|(.*)$", page, re.MULTILINE)
    assert re.findall(r"`([^`]+)`", options) == _fields(BuildOptions)


def test_every_option_of_engines_is_explained() -> None:
    listed = {cell.split()[0] for cell in _first_cells(_page("engines.md"), "## Options")}
    command = typer.main.get_command(app).commands["build"]
    options = {p.opts[0] for p in command.params if p.param_type_name == "option"}
    assert listed == options - {"--help"}


def test_every_setting_of_a_training_is_explained() -> None:
    from berdiff import config, training_config
    from berdiff.runtime.preprocessing import Preprocessing

    page = _page("train.md")
    images = _first_cells(page, "### What the images are: `model.preprocessing`")
    assert sorted(images) == sorted(_fields(Preprocessing))
    networks = _first_cells(page, "### The networks: `model.autoencoder`, `model.denoiser`")
    assert set(networks) == {
        *_fields(config.AutoencoderConfig),
        *_fields(config.DenoiserConfig),
    }
    stages = _first_cells(page, "### The stages: `autoencoder`, `denoiser`")
    assert set(stages) == {
        *_fields(training_config.AutoencoderStage),
        *_fields(training_config.DenoiserStage),
    }
    for name in _fields(training_config.Augmentation):
        assert f"`{name}`" in page


@pytest.mark.parametrize("name", ["brats", "flair", "oct", "phantom"])
def test_presets_are_as_the_table_says(name: str) -> None:
    import torch

    from berdiff.autoencoder import BinaryAutoencoder
    from berdiff.denoiser import Denoiser
    from berdiff.training_config import load_preset

    preset = load_preset(name)
    pre, code = preset.model.preprocessing, preset.model.code_shape
    with torch.device("meta"):
        networks = (
            BinaryAutoencoder(preset.model.autoencoder),
            Denoiser(preset.model.denoiser, preset.model.schedule.num_timesteps),
        )
    sizes = [sum(p.numel() for p in network.parameters()) / 1e6 for network in networks]
    scale = "resized" if pre.spacing is None else f"{pre.spacing:g} mm"
    expected = [
        f"{pre.channels} x {pre.size[0]} x {pre.size[1]}, {scale}",
        f"{code.channels} x {code.height} x {code.width}",
        ", ".join(f"{size:.2f} M" for size in sizes),
        f"{preset.autoencoder.steps}, {preset.denoiser.steps}",
    ]
    (row,) = re.findall(rf"^\| `{name}` \|.*$", _page("train.md"), re.MULTILINE)
    assert [cell.strip() for cell in row.split("|")[2:6]] == expected


def test_every_parity_figure_is_explained_with_its_limit() -> None:
    from berdiff.runtime.precision import CALIBRATION_FIGURES, FIGURES, LOOP_FIGURES

    found = {}
    for row in re.findall(r"^\| `\w+_(?:error|rate|p999)` \|.*$", _page("precision.md"), re.M):
        _, name, _, *cells, _ = row.split("|")
        found[name.strip(" `")] = [float(cell.split()[0]) for cell in cells]
    below = CALIBRATION_FIGURES | LOOP_FIGURES  # fp32 is what they compare with
    expected = {name: list(figure[1:]) for name, figure in FIGURES.items()}
    assert found == expected | {name: list(figure[2:]) for name, figure in below.items()}


def test_every_column_of_the_results_is_explained() -> None:
    from berdiff.runtime.results import ScanResult, SliceResult

    page = _page("infer.md")
    assert _first_cells(page, "### results.csv") == _fields(ScanResult)
    for name in _fields(SliceResult):
        assert f"`{name}`" in page.split("`slices.csv` has", 1)[1].split("\n\n", 1)[0]


def test_python_examples_of_the_documentation_run(
    tiny_bundle: "Bundle",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from berdiff.phantoms import write_phantoms

    write_phantoms(tmp_path / "heads", 1, size=(32, 32), slices=4, file_format="nifti")
    (tmp_path / "heads" / "images").rename(tmp_path / "scans")
    shutil.copy(tmp_path / "scans" / "phantom-00000.nii.gz", tmp_path / "scan.nii.gz")
    (tmp_path / "bundle").symlink_to(tiny_bundle.path)
    monkeypatch.chdir(tmp_path)
    examples = PYTHON.findall(_page("python-api.md"))
    for number, example in enumerate(examples):
        exec(compile(example, f"python-api.md, example {number + 1}", "exec"), {})
    score, row = capsys.readouterr().out.splitlines()
    # Both examples do the same with the same scan, the second by way of `infer`.
    assert row.split() == ["phantom-00000", "ok", score]
    same = tmp_path / "results" / "maps" / "phantom-00000_anomaly.nii.gz"
    assert (tmp_path / "anomaly.nii.gz").read_bytes() == same.read_bytes()

    record = json.loads((tmp_path / "results" / "run.json").read_text())
    assert sorted(_first_cells(_page("infer.md"), "### run.json")) == sorted(record)


@pytest.mark.parametrize("name", ["detect_in_memory", "own_loop"])
def test_examples_run(
    name: str,
    tiny_bundle: "Bundle",
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", [name, str(tiny_bundle.path)])
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    figures = re.findall(
        r"(?:^score|change of the image:) (\d+\.\d+)$", capsys.readouterr().out, re.M
    )
    assert len(figures) == 1
    assert 0 < float(figures[0]) < 4
