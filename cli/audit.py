"""``berdiff audit``: has the log of a service been edited?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

audit = typer.Typer(
    help="Check the audit log of a service.", no_args_is_help=True, rich_markup_mode=None
)


@audit.callback()
def _group() -> None:
    pass


@audit.command("check")
def check(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="The log file.")],
    head: Annotated[
        str | None,
        typer.Option(
            metavar="HASH",
            help="Hash of the last line, as an earlier check said and as you kept elsewhere. It "
            "must still be in the log, or lines were cut off its end.",
        ),
    ] = None,
) -> None:
    """Recompute every hash of a log; exit code 1 names the first line that was edited.

    Without --head, lines that were cut off the end do not show.
    """
    import re

    from berdiff.runtime.services.audit import check as read

    if head is not None and not re.fullmatch("[0-9a-f]{64}", head):
        raise typer.BadParameter(
            f"expected 64 hexadecimal digits, got {head!r}", param_hint="--head"
        )
    summary = read(log, head)
    typer.echo(f"entries: {summary.entries}")
    typer.echo(f"first: {summary.first or 'none'}")
    typer.echo(f"last: {summary.last or 'none'}")
    typer.echo(f"head: {summary.head}")
