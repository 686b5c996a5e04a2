"""Which engine of a bundle a GPU gets, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from berdiff.runtime.bundle import Bundle
from berdiff.runtime.engines import store
from berdiff.runtime.engines.gpu import Gpu
from berdiff.runtime.engines.library import TENSORRT, TENSORRT_RTX, Library
from berdiff.runtime.engines.options import BuildOptions
from berdiff.runtime.engines.store import (
    NETWORKS,
    NetworkEngine,
    Sidecar,
    StoredEngine,
    engine_key,
    find_engine,
    stored_engines,
)
from berdiff.runtime.errors import BackendError
from berdiff.runtime.files import sha256_file
from berdiff.runtime.manifest import Threshold

ADA = Gpu("NVIDIA GeForce RTX 4090", (8, 9))
ORIN = Gpu("Orin", (8, 7))
HOPPER = Gpu("NVIDIA H100 80GB HBM3", (9, 0))
VERSIONS = {"tensorrt": "10.16.1", "tensorrt_rtx": "1.7.1"}


@pytest.fixture(autouse=True)
def libraries(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Both libraries are installed as far as their versions go, which a test may change."""
    versions = dict(VERSIONS)
    monkeypatch.setattr(
        Library, "load", lambda self: SimpleNamespace(__version__=versions[self.module])
    )
    return versions


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    return Bundle.open(Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle")))


def put(
    bundle: Bundle,
    library: Library = TENSORRT,
    gpu: Gpu | None = ADA,
    target: str | None = None,
    created: str = "2026-01-01T00:00:00+00:00",
    options: BuildOptions | None = None,
    **changes: Any,
) -> Path:
    """Store engines that hold nothing of use, as a build would."""
    options = options or BuildOptions(bundle.manifest.dynamic_batch)
    on = None if library is TENSORRT_RTX else gpu
    target = target or (gpu.architecture if gpu else "ampere+")
    key = engine_key(bundle, library, target, on, options)
    folder = bundle.path / "engines" / key
    folder.mkdir(parents=True)
    networks = {}
    for name in NETWORKS:
        file = folder / f"{name}.engine"
        file.write_bytes(f"{name} {key}".encode())
        onnx = bundle.manifest.files[f"onnx/{name}.onnx"].sha256
        networks[name] = NetworkEngine(
            onnx, sha256_file(file), file.stat().st_size, {}, {}, {}, {}, 1, 2, 3, (), 4.0
        )
    sidecar = Sidecar(
        store.SIDECAR_VERSION, key, library.name, library.version, bundle.manifest.precision,
        target, store.platform_here(), on, options, networks, created,
    )  # fmt: skip
    sidecar = dataclasses.replace(sidecar, **changes)
    (folder / "engine.json").write_bytes(store.sidecar_text(sidecar))
    return folder


def refusal(bundle: Bundle, library: Library = TENSORRT, gpu: Gpu = ADA) -> str:
    with pytest.raises(BackendError) as caught:
        find_engine(bundle, library, gpu)
    return str(caught.value)


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / "engine.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


# --- found ---------------------------------------------------------------------------------


@pytest.mark.parametrize("library", [TENSORRT, TENSORRT_RTX], ids=lambda library: library.name)
def test_what_was_stored_is_found(bundle: Bundle, library: Library) -> None:
    folder = put(bundle, library)
    found = find_engine(bundle, library, ADA)
    assert found.folder == folder
    assert found.digest == sha256_file(folder / "engine.json")
    assert found.sidecar.library == library.name
    assert found.files == {name: folder / f"{name}.engine" for name in NETWORKS}


def test_engines_are_no_part_of_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    put(bundle)
    assert Bundle.open(bundle.path) == bundle
    copy = Bundle.open(Path(shutil.copytree(bundle.path, tmp_path / "copy")))
    assert copy.digest == bundle.digest
    assert find_engine(copy, TENSORRT, ADA).folder.is_relative_to(copy.path)


def test_a_threshold_changes_the_bundle_and_not_its_engines(bundle: Bundle) -> None:
    folder = put(bundle)
    calibrated = bundle.with_threshold(Threshold(0.5, "here", "squared", 50, 5, 0.5))
    assert calibrated.digest != bundle.digest
    assert find_engine(calibrated, TENSORRT, ADA).folder == folder


def test_the_engine_for_this_very_architecture_comes_first(bundle: Bundle) -> None:
    own = put(bundle, TENSORRT_RTX, created="2026-01-01T00:00:00+00:00")
    portable = put(bundle, TENSORRT_RTX, target="ampere+", created="2026-02-02T00:00:00+00:00")
    assert find_engine(bundle, TENSORRT_RTX, ADA).folder == own
    blackwell = Gpu("NVIDIA RTX PRO 6000", (12, 0))
    assert find_engine(bundle, TENSORRT_RTX, blackwell).folder == portable


def test_then_the_one_built_last(bundle: Bundle) -> None:
    sizes = [(1, 1, 1), (1, 4, 8), (1, 2, 2)]
    days = ["2026-01-02", "2026-01-03", "2026-01-01"]
    folders = [
        put(bundle, options=BuildOptions(size), created=f"{day}T00:00:00+00:00")
        for size, day in zip(sizes, days, strict=True)
    ]
    assert len(set(folders)) == 3
    assert find_engine(bundle, TENSORRT, ADA).folder == folders[1]


@pytest.mark.parametrize(
    ("compatibility", "gpu", "fits"),
    [
        ("none", ADA, True),
        ("none", Gpu("NVIDIA L4", (8, 9)), False),
        ("same-cc", Gpu("NVIDIA L4", (8, 9)), True),
        ("same-cc", HOPPER, False),
        ("ampere+", HOPPER, True),
        ("ampere+", Gpu("NVIDIA T4", (7, 5)), False),
    ],
)
def test_hardware_compatibility(bundle: Bundle, compatibility: Any, gpu: Gpu, fits: bool) -> None:
    sizes = bundle.manifest.dynamic_batch
    put(bundle, options=BuildOptions(sizes, hardware_compatibility=compatibility))
    if fits:
        assert find_engine(bundle, TENSORRT, gpu)
    else:
        assert "built on NVIDIA GeForce RTX 4090 (sm_89)" in refusal(bundle, gpu=gpu)


# --- refused -------------------------------------------------------------------------------


def test_no_engine_names_the_command_that_builds_one(bundle: Bundle) -> None:
    command = f"berdiff build {bundle.path} --engine"
    assert refusal(bundle).endswith(f"{command} tensorrt")
    assert refusal(bundle, TENSORRT_RTX).endswith(f"{command} tensorrt-rtx --target sm_89")
    assert f"{command} tensorrt (tensorrt-rtx knows no sm_87)" in refusal(
        bundle, TENSORRT_RTX, ORIN
    )


def test_another_library_is_no_substitute(bundle: Bundle) -> None:
    put(bundle, TENSORRT_RTX)
    assert "holds no tensorrt engine" in refusal(bundle)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"library_version": "10.3.0"}, "built by tensorrt 10.3.0, here is 10.16.1"),
        ({"precision": "fp16"}, "built in fp16, the bundle is in fp32"),
        ({"platform": "linux-aarch64"}, "built on linux-aarch64, this is "),
        ({"gpu": HOPPER}, "built on NVIDIA H100 80GB HBM3 (sm_90)"),
        ({"gpu": None}, "does not say which GPU it was built on"),
    ],
)
def test_what_does_not_fit_is_listed_with_its_reason(
    bundle: Bundle, changes: dict[str, Any], reason: str
) -> None:
    folder = put(bundle, **changes)
    said = refusal(bundle)
    assert f"\n  {folder.name}: {reason}" in said
    assert said.endswith(f"build one with: berdiff build {bundle.path} --engine tensorrt")


@pytest.mark.parametrize("network", NETWORKS)
def test_an_engine_of_another_onnx_file_is_refused(bundle: Bundle, network: str) -> None:
    put(bundle)
    files = dict(bundle.manifest.files)
    name = f"onnx/{network}.onnx"
    files[name] = dataclasses.replace(files[name], sha256="0" * 64)
    changed = dataclasses.replace(bundle.manifest, files=files)
    said = refusal(dataclasses.replace(bundle, manifest=changed))
    assert f"built from another {network}.onnx" in said


@pytest.mark.parametrize(
    ("target", "gpu"),
    [("sm_86", ADA), ("ampere+", Gpu("T4", (7, 5))), ("ampere+", ORIN), ("ampere+", HOPPER)],
)
def test_an_rtx_engine_for_other_gpus_is_refused(bundle: Bundle, target: str, gpu: Gpu) -> None:
    put(bundle, TENSORRT_RTX, target=target)
    assert f"built for {target}" in refusal(bundle, TENSORRT_RTX, gpu)


def test_an_update_of_the_library_is_noticed(bundle: Bundle, libraries: dict[str, str]) -> None:
    put(bundle, TENSORRT_RTX)
    assert find_engine(bundle, TENSORRT_RTX, ADA)
    libraries["tensorrt_rtx"] = "1.8.0"
    assert "built by tensorrt-rtx 1.7.1, here is 1.8.0" in refusal(bundle, TENSORRT_RTX)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("damage", ["byte", "length", "missing", "link"])
def test_damaged_engine(bundle: Bundle, tmp_path: Path, network: str, damage: str) -> None:
    file = put(bundle) / f"{network}.engine"
    data = file.read_bytes()
    expected = {
        "byte": "SHA-256 differs",
        "length": f"{len(data) + 1} bytes, expected {len(data)}",
        "missing": "is missing",
        "link": "leads out of the bundle",
    }[damage]
    if damage == "byte":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "length":
        file.write_bytes(data + b"0")
    else:
        file.unlink()
    if damage == "link":
        (tmp_path / "elsewhere").write_bytes(data)
        file.symlink_to(tmp_path / "elsewhere")
    said = refusal(bundle)
    assert file.name in said
    assert expected in said
    assert f"berdiff build {bundle.path} --engine tensorrt" in said


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c.update(colour="red"), "unknown key 'colour'"),
        (lambda c: c.pop("precision"), "missing key 'precision'"),
        (lambda c: c.update(schema_version=2), "schema_version: got 2, expected 1"),
        (lambda c: c.update(key="other"), "key: got 'other', expected the folder's name"),
        (lambda c: c["networks"].pop("decoder"), "networks: got ['denoiser', 'encoder']"),
        (lambda c: c["networks"]["decoder"].update(size="1"), "networks.decoder: size"),
        (lambda c: c["options"].update(dynamic_batch=[4, 2, 1]), "options: dynamic batch must be"),
    ],
)
def test_damaged_sidecar(
    bundle: Bundle, change: Callable[[dict[str, Any]], Any], named: str
) -> None:
    folder = put(bundle)
    edit(folder, change)
    said = refusal(bundle)
    assert said.startswith(str(folder / "engine.json"))
    assert named in said
    assert f"remove the folder {folder} and build again" in said


def test_an_unfinished_build_is_not_seen(bundle: Bundle) -> None:
    folder = put(bundle)
    part = folder.with_name(".part-of-a-build")
    folder.rename(part)
    (part / "engine.json").unlink()
    (bundle.path / "engines" / "notes.txt").write_text("a file")
    assert stored_engines(bundle) == []


# --- keys ----------------------------------------------------------------------------------


def test_a_key_can_be_read(bundle: Bundle) -> None:
    options = BuildOptions((1, 8, 32))
    key = engine_key(bundle, TENSORRT_RTX, "sm_89", None, options)
    assert re.fullmatch(r"tensorrt-rtx-1\.7\.1-sm_89-fp32-b1-8-32-[0-9a-f]{12}", key)
    key = engine_key(bundle, TENSORRT, "sm_90", HOPPER, options)
    assert key.startswith("tensorrt-10.16.1-sm_90-nvidia-h100-80gb-hbm3-fp32-b1-8-32-")


def test_a_key_differs_where_the_engine_would(
    bundle: Bundle, libraries: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(changed: Bundle = bundle, gpu: Gpu = ADA, **options: Any) -> str:
        chosen = BuildOptions(**({"dynamic_batch": (1, 8, 32)} | options))
        return engine_key(changed, TENSORRT, gpu.architecture, gpu, chosen)

    def other(**changes: Any) -> Bundle:
        return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, **changes))

    files = dict(bundle.manifest.files)
    files["onnx/decoder.onnx"] = dataclasses.replace(files["onnx/decoder.onnx"], sha256="0" * 64)
    keys = [
        key(),
        key(gpu=HOPPER),
        key(gpu=Gpu("NVIDIA L4", (8, 9))),
        key(dynamic_batch=(1, 8, 16)),
        key(workspace=1 << 30),
        key(builder_optimization_level=5),
        key(hardware_compatibility="ampere+"),
        key(other(precision="fp16")),
        key(other(files=files)),
    ]
    libraries["tensorrt"] = "11.4.0"
    keys.append(key())
    monkeypatch.setattr(store, "platform_here", lambda: "linux-sparc")
    keys.append(key())
    assert len(set(keys)) == len(keys)
    assert key(other(name="renamed")) == key()


def test_a_stored_engine_is_immutable(bundle: Bundle) -> None:
    put(bundle)
    found = find_engine(bundle, TENSORRT, ADA)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.digest = ""  # type: ignore[misc]
    assert isinstance(found, StoredEngine)
