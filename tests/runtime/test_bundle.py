"""A bundle that is not exactly what was written is refused, naming the file and the key."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from berdiff.runtime.backends import open_backend
from berdiff.runtime.bundle import GRAPHS, Bundle
from berdiff.runtime.errors import BundleError
from berdiff.runtime.files import sha256_file
from berdiff.runtime.image_features import feature_names
from berdiff.runtime.intake import fit
from berdiff.runtime.manifest import SCHEMA_VERSION, Threshold
from berdiff.runtime.precision import FIGURES
from berdiff.runtime.verify import verify

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def folder(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))


def edit(folder: Path, change: Edit) -> None:
    source = folder / "bundle.json"
    content = json.loads(source.read_text())
    change(content)
    source.write_text(json.dumps(content))


def assert_refused(folder: Path, *parts: str) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder)
    for part in parts:
        assert part in str(caught.value)


def test_opens_as_written(folder: Path, tiny_bundle: Bundle) -> None:
    opened = Bundle.open(folder)
    assert opened.manifest == tiny_bundle.manifest
    assert opened.digest == tiny_bundle.digest == sha256_file(folder / "bundle.json")


@pytest.mark.parametrize("name", [*GRAPHS, "golden/vectors.npz"])
def test_altered_byte(folder: Path, name: str) -> None:
    file = folder / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert_refused(folder, name, "SHA-256")


@pytest.mark.parametrize("name", [*GRAPHS, "golden/vectors.npz"])
def test_truncated_file(folder: Path, name: str) -> None:
    file = folder / name
    size = file.stat().st_size
    with open(file, "rb+") as stream:
        stream.truncate(size - 1)
    assert_refused(folder, name, f"{size - 1} bytes, expected {size}")


@pytest.mark.parametrize("name", [*GRAPHS, "golden/vectors.npz"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert_refused(folder, name, "missing")


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_that_is_not_listed(folder: Path, name: str) -> None:
    edit(folder, lambda content: content["files"].pop(name))
    assert_refused(folder, "bundle.json: files: missing key", name)


def test_no_bundle(tmp_path: Path) -> None:
    assert_refused(tmp_path, str(tmp_path), "berdiff export")


@pytest.mark.parametrize("text", ["{", "[]", '"bundle"', "{}", '{"schema_version": "1"}'])
def test_json_that_is_no_manifest(folder: Path, text: str) -> None:
    (folder / "bundle.json").write_text(text)
    assert_refused(folder, "bundle.json")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda content: content.update(colour="red"), "unknown key 'colour'"),
        (lambda content: content["sampling"].update(colour=1), "sampling: unknown key 'colour'"),
        (lambda content: content["files"][GRAPHS[0]].update(url=""), "unknown key 'url'"),
        (lambda content: content.pop("schedule"), "missing key 'schedule'"),
        (lambda content: content["code"].pop("height"), "code: missing key 'height'"),
        (lambda content: content["code"].update(height="16"), "code: height: expected int"),
        (lambda content: content.update(forward_noise="gauss"), "forward_noise: expected one of"),
        (lambda content: content["preprocessing"].update(size=[32]), "preprocessing: size"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_key_that_is_unknown_missing_or_ill_typed(folder: Path, change: Edit, key: str) -> None:
    edit(folder, change)
    assert_refused(folder, "bundle.json", key)


@pytest.mark.parametrize(("version", "advice"), [(4, "update berdiff"), (0, "export")])
def test_other_schema(folder: Path, version: int, advice: str) -> None:
    edit(folder, lambda content: content.update(schema_version=version, invented_later=True))
    assert_refused(folder, f"schema_version: got {version}", advice)


def version_1(folder: Path) -> Path:
    """A bundle as the first release wrote it."""
    vectors = folder / "golden" / "vectors.npz"
    with np.load(vectors) as file:
        arrays = {name: file[name] for name in file.files if name != "loop_image"}
    np.savez_compressed(vectors, **arrays)
    record = {"sha256": sha256_file(vectors), "size": vectors.stat().st_size}

    def change(content: dict[str, Any]) -> None:
        content.update(schema_version=1)
        for key in ("precision", "parity_limits", "input_statistics"):
            del content[key]
        content["files"]["golden/vectors.npz"] = record

    edit(folder, change)
    return folder


def test_version_1_is_read_and_works(folder: Path) -> None:
    bundle = Bundle.open(version_1(folder))
    assert bundle.manifest.schema_version == 1
    assert bundle.manifest.precision == "fp32"
    assert bundle.manifest.parity_limits == {}
    with open_backend(bundle, threads=1) as backend:
        checks = verify(bundle, backend)
    assert [check.name for check in checks] == list(FIGURES)
    assert all(check.passed for check in checks)


def test_version_2_is_read(folder: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content.update(schema_version=2)
        for owner, key in ((content, "input_statistics"), (content["preprocessing"], "background")):
            del owner[key]

    edit(folder, change)
    manifest = Bundle.open(folder).manifest
    assert (manifest.schema_version, manifest.input_statistics) == (2, None)
    assert manifest.preprocessing.background == 0


def test_what_is_written_is_of_the_newest_version(folder: Path) -> None:
    threshold = Threshold(0.25, "30 healthy images", "squared", 50, 5, 0.5)
    after = Bundle.open(version_1(folder)).with_threshold(threshold)
    assert after.manifest.schema_version == SCHEMA_VERSION
    assert after.manifest.threshold == threshold


def test_precision_that_is_none(folder: Path) -> None:
    edit(folder, lambda content: content.update(precision="fp8"))
    assert_refused(folder, "bundle.json: precision: expected one of ['fp32', 'fp16'", '"fp8"')


@pytest.mark.parametrize("name", ["../secret", "onnx/../../secret", "/etc/hostname", "..\\secret"])
def test_path_that_leads_out(folder: Path, name: str) -> None:
    (folder.parent / "secret").write_text("x")
    record = {"sha256": sha256_file(folder.parent / "secret"), "size": 1}
    edit(folder, lambda content: content["files"].update({name: record}))
    assert_refused(folder, "bundle.json: files", name, "leads out")


def test_link_that_leads_out(folder: Path) -> None:
    outside = folder.parent / "decoder.onnx"
    shutil.move(folder / GRAPHS[2], outside)
    (folder / GRAPHS[2]).symlink_to(outside)
    assert_refused(folder, GRAPHS[2], "leads out")


def test_folder_that_is_a_link_out(folder: Path) -> None:
    shutil.move(folder / "onnx", folder.parent / "onnx")
    (folder / "onnx").symlink_to(folder.parent / "onnx")
    assert_refused(folder, "files: 'onnx/", "leads out")


def test_a_file_the_manifest_does_not_name_is_not_given_out(tiny_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"missing key 'engines/plan'"):
        tiny_bundle.file("engines/plan")


def test_a_threshold_is_written_and_read_back(folder: Path) -> None:
    before = Bundle.open(folder)
    threshold = Threshold(0.25, "30 healthy images", "squared", 50, 5, 0.5)
    after = before.with_threshold(threshold)
    assert after.manifest.threshold == threshold
    assert after == Bundle.open(folder)
    assert after.digest != before.digest


def test_statistics_are_kept_until_there_are_others(folder: Path) -> None:
    threshold = Threshold(0.25, "30 healthy images", "squared", 50, 5, 0.5)
    rows = np.random.default_rng(0).normal(0.5, 0.1, (2, 30, 15))
    first, second = (fit(part, ("flair",)) for part in rows)
    assert first != second
    bundle = Bundle.open(folder)
    assert bundle.manifest.input_statistics is None
    assert bundle.with_threshold(threshold, first).manifest.input_statistics == first
    assert Bundle.open(folder).with_threshold(threshold).manifest.input_statistics == first
    assert bundle.with_threshold(threshold, second).manifest.input_statistics == second


def test_statistics_of_other_images_are_refused(folder: Path) -> None:
    rows = np.random.default_rng(0).normal(0.5, 0.1, (30, 15))
    found = fit(rows, ("t1",))
    assert found is not None
    edit(folder, lambda content: content.update(input_statistics=dataclasses.asdict(found)))
    assert_refused(folder, "bundle.json", "input_statistics are of", feature_names(("t1",))[6])
