"""The command line: the same functions that the dashboard's jobs run."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from ..contracts import StageLensError
from ..terminal import one_line
from . import contributing, making, measuring, removing, reporting, spurious

app = typer.Typer(
    name="stagelens",
    help="Which stage of a model's training is to credit or to blame, how much, and what would "
    "the model do without it?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for group in (making, measuring, contributing, spurious, removing, reporting):
    app.add_typer(group.commands)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of every command; ``--debug`` is read in :func:`main`."""


def main() -> None:
    """Run the command line; an error is one line on stderr and exit status 1."""
    # Read when torch is loaded: its threads wait for each other asleep, where other work runs too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(standalone_mode=True)
    except (StageLensError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        typer.echo(f"stagelens: {one_line(error)}", err=True)
        sys.exit(1)
