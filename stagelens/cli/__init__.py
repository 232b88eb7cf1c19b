"""The command line: the same functions that the dashboard's jobs run."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Annotated, Any

import typer

from stagelens import __version__
from stagelens.compute import processes
from stagelens.compute.bounded import NoAnswer, no_panic
from stagelens.contracts import StageLensError

from . import (
    adding_scores,
    answering,
    answering_for,
    asking,
    attributing,
    carding,
    checking,
    contributing,
    dashboard,
    drawing,
    exporting,
    following,
    gating,
    helping,
    lineages,
    locating,
    making,
    removing,
    reporting,
    selecting,
    sharing,
    sizing,
    smoothing,
    spurious,
    training_data,
    without_data,
)
from .ending import at_end
from .terminal import one_line, say

app = typer.Typer(
    name="stagelens",
    help="Which stage of a model's training is to credit or to blame, how much, and what would "
    "the model do without it?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help texts put defaults in brackets, which rich would read as tags
)
for group in (
    making,
    dashboard,
    attributing,
    contributing,
    training_data,
    smoothing,
    selecting,
    without_data,
    spurious,
    locating,
    following,
    gating,
    lineages,
    removing,
    exporting,
    reporting,
    carding,
    sharing,
    answering,
    adding_scores,
    answering_for,
    asking,
    checking,
    sizing,
    drawing,
    helping,
):
    app.add_typer(group.commands)


_SHARED = ("attribute", "verify")
"""Commands whose work the processes of a launcher share; the main one does all others alone."""


def _print_version(asked: bool) -> None:
    if asked:
        say(f"stagelens {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    """Options of every command; ``--debug`` is read in :func:`_run`."""
    if processes.is_worker() and context.invoked_subcommand not in _SHARED:
        raise typer.Exit


_HEAD_START = 3.0
"""Seconds for the main process to report a failure: once one exits, the launcher ends all."""


def main() -> None:
    """Run the command line; an error is one line on stderr and exit status 1."""
    # Read when torch is loaded: its threads then sleep while they wait for each other, instead of
    # slowing down other work on the machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "--debug" not in sys.argv:
        # What a library in Rust prints when it panics, beside the line that we print ourselves.
        os.environ["RUST_BACKTRACE"] = "0"
    if not processes.is_worker():
        _run()
        return
    # The main process alone prints; the others would repeat it.
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            _run()
        except SystemExit as ended:
            if ended.code:
                time.sleep(_HEAD_START)
            raise


@contextmanager
def _terminated_in_order() -> Iterator[None]:
    """Let SIGTERM end the block like an exception, so that half-written files are removed."""

    def end(number: int, _frame: Any) -> None:
        # A second one must not interrupt the clean-up.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(128 + number)  # as shells report a signal

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run() -> None:
    with _terminated_in_order():
        try:
            with no_panic(), at_end:
                app(standalone_mode=True)
        except (StageLensError, OSError, NoAnswer) as error:
            # A launcher may end this process now; it is about to end, and says why first.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            # An error has left the command and its parsed options by the time it gets here.
            if "--debug" in sys.argv:
                raise
            say(f"stagelens: {one_line(error)}", err=True)
            sys.exit(1)
