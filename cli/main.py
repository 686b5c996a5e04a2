"""The ``berdiff`` command: its verbs, and how its errors end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from berdiff import __version__
from berdiff.runtime.errors import BerdiffError, PartialFailure

from .audit import audit
from .bench import bench
from .build import build
from .calibrate import calibrate
from .demo import demo
from .evaluate import evaluate
from .export import export
from .import_ import import_checkpoint
from .infer import infer
from .info import info
from .phantoms import phantoms
from .serve import serve
from .train import train
from .verify import verify

app = typer.Typer(
    help="Find anomalies in medical images with a masked Bernoulli diffusion model.",
    epilog="`berdiff VERB --help` explains a verb. Exit codes: 0 done, 1 error, 2 wrong usage, "
    "3 some scans failed, 130 interrupted.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    # Plain text: it survives logs and pipes, and spares the start the import of a formatter.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"berdiff {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


app.command("demo")(demo)
app.command("phantoms")(phantoms)
app.command("train")(train)
app.command("import")(import_checkpoint)
app.command("export")(export)
app.command("build")(build)
app.command("verify")(verify)
app.command("info")(info)
app.command("calibrate")(calibrate)
app.command("infer")(infer)
app.command("evaluate")(evaluate)
app.command("bench")(bench)
app.add_typer(serve, name="serve")
app.add_typer(audit, name="audit")


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: the entry point of the ``berdiff`` script.

    Parameters
    ----------
    arguments : sequence of str, optional
        What follows ``berdiff``; taken from ``sys.argv`` when not given.

    Raises
    ------
    SystemExit
        Always. 0: done; 1: an error the message explains; 2: wrong usage; 3: some scans of a run
        failed and are listed; 130: interrupted. Any other exception is a defect of the program
        and leaves its traceback.
    """
    try:
        app(args=arguments, prog_name="berdiff")
    except BerdiffError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(3 if isinstance(error, PartialFailure) else 1) from None
