"""What may stand in ``fleet.yaml``, and which nodes a target fits."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from berdiff.runtime.bundle import Bundle
from berdiff.runtime.cluster.connection import Node
from berdiff.runtime.cluster.fleet_plan import FleetTarget, read_fleet
from berdiff.runtime.engines.verification import Verification
from berdiff.runtime.errors import BerdiffError

ROOT = Path(__file__).resolve().parents[3]
RTX = "name: a, engine: tensorrt-rtx"
TRT = "name: a, engine: tensorrt"


def read(tmp_path: Path, text: str) -> Any:
    file = tmp_path / "fleet.yaml"
    file.write_text(text)
    return read_fleet(file)


def one(tmp_path: Path, keys: str) -> FleetTarget:
    (target,) = read(tmp_path, f"targets:\n- {{{keys}}}\n").targets
    return target


# --- the file ------------------------------------------------------------------------------


def test_every_key_arrives(tmp_path: Path) -> None:
    found = one(
        tmp_path,
        "name: server, engine: tensorrt, target: sm_80, gpu: A100, library_version: '10.3.0', "
        "precision: fp16, dynamic_batch: [1, 4, 8], workspace: 2GiB, "
        "builder_optimization_level: 5, hardware_compatibility: same-cc, "
        "resources: {bench: 0.5}, labels: {site: lab}, cpus: 4",
    )
    assert found == FleetTarget(
        *("server", "tensorrt", "sm_80", "A100", "10.3.0", "fp16", (1, 4, 8), "2GiB", 5),
        *("same-cc", {"bench": 0.5}, {"site": "lab"}, 4.0),
    )
    options = found.options((1, 8, 32))
    assert options.dynamic_batch == (1, 4, 8)
    assert options.workspace == 2 << 30
    assert one(tmp_path, RTX).options((1, 8, 32)).dynamic_batch == (1, 8, 32)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (f"{RTX}, nmae: b", r"targets\[0\]: unknown key 'nmae'"),
        ("name: a", r"targets\[0\]: missing key 'engine'"),
        ("name: ' ', engine: tensorrt", "name: expected text"),
        ("name: a, engine: magic", r"targets\[0\]: engine: expected one of"),
        (f"{RTX}, target: sm_90", "build BUNDLE --engine tensorrt"),
        (f"{TRT}, target: ampere+", "target: expected an architecture like sm_90"),
        (f"{TRT}, library_version: 10.3", "library_version: expected str, got 10.3"),
        (f"{TRT}, precision: fp8", "precision: expected one of"),
        (f"{TRT}, dynamic_batch: [1, 8]", "dynamic_batch: expected 3 values"),
        (f"{TRT}, dynamic_batch: [2, 4, 8]", "give --dynamic-batch 1,4,8"),
        (f"{TRT}, dynamic_batch: [1, 8, 4]", "MIN <= OPT <= MAX"),
        (f"{TRT}, workspace: much", "workspace: expected an amount of memory"),
        (f"{TRT}, builder_optimization_level: 6", "level must lie between 0 and 5"),
        (f"{RTX}, builder_optimization_level: 3", "does nothing with tensorrt-rtx"),
        (f"{RTX}, hardware_compatibility: same-cc", "does nothing with tensorrt-rtx"),
        (f"{TRT}, resources: {{GPU: 2}}", r"resources\.GPU: give cpus and gpu instead"),
        (f"{TRT}, resources: {{bench: 0}}", r"resources\.bench: expected a whole number"),
        (f"{TRT}, cpus: 1.5", "cpus: expected a whole number or a part of 1, got 1.5"),
        (f"{TRT}, labels: {{site: yes}}", r"labels\.site: expected str, got true"),
        (f"{TRT}, labels: {{site: in()}}", r"labels\.site: expected value, !value"),
        (f"{TRT}, name: b", "key 'name' is given twice"),
    ],
)
def test_a_target_that_is_refused(tmp_path: Path, keys: str, said: str) -> None:
    with pytest.raises(BerdiffError, match=rf"fleet\.yaml.*{said}"):
        one(tmp_path, keys)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected an object, got null"),
        ("targets: []", "expected at least one"),
        ("targets: {}", "targets: expected a list"),
        ("targets: []\nfleet: 1", "unknown key 'fleet'"),
        ("targets: []\ntargets: []", "key 'targets' is given twice"),
        ("targets: [", "is not valid YAML"),
        ("targets: 2024-13-01", "is not valid YAML"),
        ("targets: !!python/object:os.system []", "is not valid YAML"),
        (f"targets: [{{{RTX}}}, {{{TRT}}}]", "two are called 'a'"),
        (
            f"targets: [{{{RTX}}}, {{name: b, engine: tensorrt-rtx, target: ampere+, cpus: 2}}]",
            "'a' and 'b' are the same engine",
        ),
        (
            f"targets: [{{{TRT}, gpu: L4}}, {{name: b, engine: tensorrt, gpu: L4}}]",
            "'a' and 'b' are the same engine",
        ),
    ],
)
def test_a_file_that_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BerdiffError, match=rf"fleet\.yaml.*{said}"):
        read(tmp_path, text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BerdiffError, match=r"absent\.yaml cannot be read"):
        read_fleet(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BerdiffError, match=r"binary\.yaml cannot be read"):
        read_fleet(tmp_path / "binary.yaml")


def test_what_makes_two_engines_of_one_library(tmp_path: Path) -> None:
    others = ("gpu: L4", "labels: {a: b}", "resources: {a: 1}", "precision: fp16")
    listed = [f"{{name: n{i}, engine: tensorrt, {keys}}}" for i, keys in enumerate(others)]
    assert len(read(tmp_path, f"targets: [{{{TRT}}}, {', '.join(listed)}]").targets) == 5


def test_a_bundle_in_another_precision(tiny_bundle: Bundle, tmp_path: Path) -> None:
    assert one(tmp_path, RTX).precision_problem(tiny_bundle) == ""
    assert one(tmp_path, f"{RTX}, precision: fp32").precision_problem(tiny_bundle) == ""
    problem = one(tmp_path, f"{RTX}, precision: fp16").precision_problem(tiny_bundle)
    assert "the bundle is in fp32, and fp16 was asked for; export" in problem


# --- nodes ---------------------------------------------------------------------------------


def node(labels: dict[str, str] | None = None, **resources: float) -> Node:
    return Node("id", "name", {"CPU": 2.0, **resources}, labels or {})


def test_who_takes_a_gpu(tmp_path: Path) -> None:
    assert one(tmp_path, RTX).task_options["num_gpus"] == 0
    assert one(tmp_path, TRT).task_options["num_gpus"] == 1
    verified = one(tmp_path, f"{RTX}, gpu: L4, resources: {{bench: 1}}")
    assert verified.task_options == {
        "num_cpus": 1.0,
        "num_gpus": 1,
        "resources": {"bench": 1.0, "accelerator_type:L4": 0.001},
        "label_selector": None,
    }
    assert verified.needs == "a CPU core, a GPU, accelerator type L4, resource bench: 1"


def test_what_a_node_must_have(tmp_path: Path) -> None:
    assert one(tmp_path, RTX).fits(node())
    assert not one(tmp_path, f"{RTX}, cpus: 3").fits(node())
    assert not one(tmp_path, TRT).fits(node())
    a100 = {"GPU": 1.0, "accelerator_type:A100": 1.0}
    assert one(tmp_path, f"{TRT}, gpu: A100").fits(node(**a100))
    assert not one(tmp_path, f"{TRT}, gpu: L4").fits(node(**a100))
    assert one(tmp_path, f"{RTX}, resources: {{bench: 2}}").fits(node(bench=2.0))
    assert not one(tmp_path, f"{RTX}, resources: {{bench: 2}}").fits(node(bench=1.0))


@pytest.mark.parametrize(
    ("selector", "fitting"),
    [
        ("lab", ["lab"]),
        ("'!lab'", ["clinic", None]),
        ("'in(lab, clinic)'", ["lab", "clinic"]),
        ("'!in(lab,clinic)'", [None]),
    ],
)
def test_labels(tmp_path: Path, selector: str, fitting: list[str | None]) -> None:
    target = one(tmp_path, f"{RTX}, labels: {{site: {selector}}}")
    for site in ("lab", "clinic", None):
        labels = {"other": "lab"} | ({"site": site} if site else {})
        assert target.fits(node(labels)) == (site in fitting)


# --- what is written about it --------------------------------------------------------------


def first_cells(after: str) -> list[str]:
    page = (ROOT / "docs" / "fleet.md").read_text()
    rows = page.split(after, 1)[1].split("\n| ", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in rows))


def test_every_key_is_explained() -> None:
    keys = [field.name for field in dataclasses.fields(FleetTarget)]
    assert sorted(first_cells("## Keys of `fleet.yaml`")) == sorted(keys)
    kept = [field.name for field in dataclasses.fields(Verification)]
    assert first_cells("### verification.json") == kept


def test_the_example_is_the_one_on_the_page(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "fleet.md").read_text()
    (shown,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert read(tmp_path, shown) == read_fleet(ROOT / "examples" / "fleet.yaml")
