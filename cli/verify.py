"""``berdiff verify``: does a bundle compute here what it should?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def verify(
    model: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle to check.")],
    device: Annotated[str, typer.Option("--device", "-d", help="Device to run on.")] = "cpu",
    backend: Annotated[str, typer.Option(help="Engine backend.")] = "onnxruntime",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads. Default: one per physical core.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check every file of a bundle, and replay its golden vectors on this machine.

    Exit code 1 if a file was altered or a result differs by more than its limit.
    """
    import json
    from dataclasses import asdict

    from berdiff.runtime.backends import open_backend
    from berdiff.runtime.bundle import Bundle
    from berdiff.runtime.errors import BackendError
    from berdiff.runtime.verify import verify as replay

    bundle = Bundle.open(model)
    with open_backend(bundle, backend, device, threads) as opened:
        engine, checks = opened.describe(), replay(bundle, opened)
    failed = [check.name for check in checks if not check.passed]
    if as_json:
        result = {
            "bundle": {"name": bundle.manifest.name, "digest": bundle.digest},
            "engine": engine,
            "checks": [{**asdict(check), "passed": check.passed} for check in checks],
            "passed": not failed,
        }
        typer.echo(json.dumps(result, indent=2))
    else:
        typer.echo(", ".join(f"{key} {value}" for key, value in engine.items()))
        for check in checks:
            verdict = "ok" if check.passed else "FAILED"
            typer.echo(
                f"{verdict:7}{check.name:18}{check.value:9.2e}  limit {check.limit:.0e}  "
                f"{check.meaning}"
            )
    if failed:
        raise BackendError(
            f"{engine['backend']} on {engine['device']} does not compute what {model} was exported "
            f"to compute ({', '.join(failed)}); do not use it on this machine"
        )
