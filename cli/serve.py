"""``berdiff serve``: what runs for as long as a scanner or an archive sends."""

from __future__ import annotations

import typer

from .serve_dicom import serve_dicom
from .serve_mrd import serve_mrd

serve = typer.Typer(
    help="Serve a detector to scanners and archives.", no_args_is_help=True, rich_markup_mode=None
)


@serve.callback()
def _group() -> None:
    pass


serve.command("dicom")(serve_dicom)
serve.command("mrd")(serve_mrd)
