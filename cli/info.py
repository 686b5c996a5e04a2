"""``berdiff info``: what a bundle is, or what this installation can do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def info(
    model: Annotated[
        Path | None,
        typer.Argument(metavar="[BUNDLE]", help="Bundle to describe. Default: this installation."),
    ] = None,
    system: Annotated[
        bool,
        typer.Option(
            "--system",
            help="What this machine has: GPU, driver, engines; what is missing, and how to get it.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Describe a bundle; without one, the installation: versions and engine backends."""
    import json

    if system:
        if model is not None:
            raise typer.BadParameter("describes the machine; give no bundle", param_hint="--system")
        content = _system() if as_json else _readable(_system())
    else:
        content = _installation() if model is None else _bundle(model)
    if as_json:
        typer.echo(json.dumps(content, indent=2))
        return
    if content.get("input_statistics"):
        content["input_statistics"] = _statistics(content["input_statistics"])
    typer.echo("\n".join(_lines(content)))


def _installation() -> dict[str, Any]:
    from dataclasses import asdict

    from berdiff.runtime.backends import available
    from berdiff.runtime.environment import machine, software

    backends = {name: asdict(found) for name, found in available().items()}
    return {"software": software(), "machine": machine(), "backends": backends}


def _system() -> dict[str, Any]:
    from dataclasses import asdict

    from berdiff.runtime.system import system

    return asdict(system())


def _readable(content: dict[str, Any]) -> dict[str, Any]:
    """Lists of records as lines of text: GPUs by device, what is missing by its command."""
    driver = content["driver"]
    driver["gpus"] = {gpu.pop("device"): ", ".join(_gpu_facts(gpu)) for gpu in driver["gpus"]}
    for backend in content["backends"].values():
        missing = backend.pop("missing")
        if missing:
            backend["missing for the GPU"] = {
                item["what"]: item["command"] or "no command can bring it" for item in missing
            }
    return content


def _gpu_facts(gpu: dict[str, Any]) -> list[str]:
    memory = "shared with the host" if gpu["unified_memory"] else "of its own"
    return [gpu["name"], gpu["architecture"], f"{gpu['memory_mib']} MiB {memory}"]


def _bundle(path: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from berdiff.runtime.bundle import Bundle
    from berdiff.runtime.engines.verification import engines_in_words

    bundle = Bundle.open(path)
    content = {"path": str(bundle.path), "digest": bundle.digest, **asdict(bundle.manifest)}
    engines = engines_in_words(bundle)
    return content | ({"engines": engines} if engines else {})


def _statistics(content: dict[str, Any]) -> dict[str, Any]:
    """What healthy images show, for people: without what only the distance needs."""
    ranges = {
        name: f"{low:g} to {high:g}"
        for name, low, high in zip(
            content["features"], content["low"], content["high"], strict=True
        )
    }
    return {"images": content["images"], "limit": content["limit"], **ranges}


def _lines(content: dict[str, Any], depth: int = 0) -> list[str]:
    """Nested mappings as indented ``key: value`` lines."""
    lines = []
    for key, value in content.items():
        if isinstance(value, dict) and value:
            lines += ["  " * depth + f"{key}:", *_lines(value, depth + 1)]
        else:
            lines.append("  " * depth + f"{key}: {_shown(value)}")
    return lines


def _shown(value: Any) -> str:
    if value is None or value in ((), {}):
        return "none"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
