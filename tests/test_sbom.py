"""``make sbom``: the bill of materials lists what an installation consists of, and no more."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from berdiff import __version__

ROOT = Path(__file__).resolve().parents[1]

LISTING = """
import json
from importlib import metadata
print(json.dumps({d.metadata["Name"]: d.version for d in metadata.distributions()}))
"""


@pytest.mark.slow
def test_it_lists_the_whole_installation(source: Path, tmp_path: Path) -> None:
    checkout = Path(shutil.copytree(source, tmp_path / "checkout"))
    for name in ("Makefile", "constraints.txt"):
        shutil.copy(ROOT / name, checkout)
    environment = Path(sys.prefix)
    variables = (f"PYTHON={sys.executable}", f"VENV={environment}")
    done = subprocess.run(
        # What the tests run in is there already: it is not to be installed again.
        ["make", "--assume-old", environment / ".ready-dev", "sbom", *variables],
        cwd=checkout,
        env={**os.environ, "MAKEFLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    text = (checkout / "build" / "sbom.cdx.json").read_text()
    bill = json.loads(text)
    assert bill["bomFormat"] == "CycloneDX"
    about = bill["metadata"]["component"]
    assert (about["name"], about["version"]) == ("berdiff", __version__)
    assert about["licenses"][0]["license"]["id"] == "Apache-2.0"
    assert bill["metadata"]["timestamp"]

    python = checkout / "build" / "sbom" / "environment" / "bin" / "python"
    installed = json.loads(subprocess.check_output([python, "-I", "-c", LISTING], text=True))
    assert installed.pop("berdiff") == __version__
    assert {c["name"]: c["version"] for c in bill["components"]} == installed
    assert {"numpy", "nibabel", "typer", "onnxruntime"} <= installed.keys()
    assert not {"torch", "pip", "setuptools", "cyclonedx-bom"} & installed.keys()
    assert all(c["purl"].startswith("pkg:pypi/") for c in bill["components"])

    depends = {entry["ref"]: entry.get("dependsOn", []) for entry in bill["dependencies"]}
    named = {re.split("[=@]", ref)[0] for ref in depends[about["bom-ref"]]}
    assert {"numpy", "nibabel", "typer", "onnxruntime"} <= named
    for path in (str(tmp_path), str(environment), "file:"):
        assert path not in text
