"""The OpenRecon recipe: what can be known of it without Docker and a scanner."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer.main

from berdiff import __version__
from berdiff.cli.main import app
from berdiff.runtime.services.mrd.parameters import (
    CONFIGS,
    PARAMETERS,
    Request,
    check_config,
    read_parameters,
)

ROOT = Path(__file__).resolve().parents[4]
FOLDER = ROOT / "examples" / "openrecon"
LABEL: dict[str, Any] = json.loads((FOLDER / "label.json").read_text())
# The keys that the labels of public OpenRecon applications (schema 1.1.0) hold, and their types.
RECONSTRUCTION = {
    "transfer_protocol": dict,
    "port": int,
    "emitter": str,
    "injector": str,
    "can_process_adjustment_data": bool,
    "can_use_gpu": bool,
    "min_count_required_gpus": int,
    "min_required_gpu_memory": int,
    "min_required_memory": int,
    "min_count_required_cpu_cores": int,
    "content_qualification_type": str,
}
REGULATORY = (
    "device_trade_name production_identifier manufacturer_address made_in manufacture_date "
    "material_number gtin udi safety_advices special_operating_instructions "
    "additional_relevant_information"
).split()


def instructions(word: str) -> list[str]:
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    return [line.split(" ", 1)[1] for line in lines if line.startswith(word + " ")]


def test_the_label_holds_what_the_schema_asks_for() -> None:
    assert set(LABEL) == {"general", "reconstruction", "parameters"}
    general = LABEL["general"]
    assert set(general) == {"name", "version", "vendor", "information", "id"} | {
        "regulatory_information"
    }
    assert list(general["regulatory_information"]) == REGULATORY
    assert all(isinstance(value, str) for value in general["regulatory_information"].values())
    reconstruction = LABEL["reconstruction"]
    assert {key: type(value) for key, value in reconstruction.items()} == RECONSTRUCTION
    assert reconstruction["emitter"] == reconstruction["injector"] == "image"
    assert reconstruction["content_qualification_type"] == "RESEARCH"
    assert general["version"] == __version__
    assert len(LABEL["parameters"]) <= 14  # more than the scanner's user interface shows


@pytest.mark.parametrize("entry", LABEL["parameters"], ids=lambda entry: entry["id"])
def test_the_server_takes_what_the_label_offers(entry: dict[str, Any]) -> None:
    values = [value["id"] for value in entry.get("values", [])]
    assert set(entry) - {"values"} == {"id", "label", "type", "information", "default"}
    if entry["type"] == "boolean":
        values = [True, False]
    assert entry["default"] in values
    if entry["id"] == "config":
        assert set(values) <= set(CONFIGS)
        check_config(entry["default"])
        return
    assert entry["id"] in PARAMETERS
    for value in values:
        for sent in (value, str(value)):  # scanners send both
            text = json.dumps({"parameters": {entry["id"]: sent}})
            assert getattr(read_parameters(text, Request()), entry["id"]) == value
    assert getattr(Request(), entry["id"]) == entry["default"]


def test_every_parameter_is_one_of_a_request() -> None:
    assert set(PARAMETERS) == {field.name for field in dataclasses.fields(Request)}


def test_what_the_image_runs_is_there() -> None:
    (command,) = (json.loads(line) for line in instructions("CMD"))
    found: Any = typer.main.get_command(app)
    assert metadata.entry_points(group="console_scripts", name=command[0])
    for word in command[1:3]:
        found = found.commands[word]
    given = found.make_context("mrd", list(command[3:])).params
    assert given["port"] == LABEL["reconstruction"]["port"] == int(*instructions("EXPOSE"))
    assert str(given["model"]) == instructions("COPY")[1].split()[1]


def test_what_the_image_installs_is_there() -> None:
    (line,) = instructions("RUN")
    wanted = shlex.split(line)[-1]
    named = re.fullmatch(r"/opt/berdiff\[(.+)\]", wanted)
    assert named
    assert set(named[1].split(",")) <= set(metadata.metadata("berdiff").get_all("Provides-Extra"))


def test_every_parameter_is_explained() -> None:
    page = (ROOT / "docs" / "mrd.md").read_text()
    rows = page.split("## Parameters", 1)[1].split("\n## ", 1)[0]
    assert re.findall(r"^\| `(\w+)`", rows, re.MULTILINE) == list(PARAMETERS)
