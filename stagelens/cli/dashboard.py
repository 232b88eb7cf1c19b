"""The command that opens the dashboard."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from stagelens.contracts import StageLensError
from stagelens.runs.lineage import NEWEST
from stagelens.runs.remote import is_remote
from stagelens.runs.run import open_run

from .given_data import DatasetOption

commands = typer.Typer()

_PACKAGE = Path(__file__).resolve().parents[1]


@commands.command(
    epilog="Examples: stagelens app   stagelens app runs/digits --port 8600   "
    "stagelens app runs/digits --read-only"
)
def app(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="A run folder to open; by default the start page."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Where it listens [8501, or the next one free]."),
    ] = None,
    read_only: Annotated[
        bool,
        typer.Option("--read-only", help="Only show: nothing is uploaded, computed or saved."),
    ] = False,
    dataset: DatasetOption = None,
) -> None:
    """Open the dashboard in a browser, for this machine only; Ctrl-C ends it."""
    if dataset and run is None:
        raise StageLensError("--dataset is for a run; name the run too: stagelens app RUN")
    environment = dict(os.environ)  # with what --dataset says
    if run is not None:
        environment["STAGELENS_RUN"] = str(_checked(run))
    if read_only:
        environment["STAGELENS_READ_ONLY"] = "1"
    options = [] if port is None else ["--server.port", str(_free(port))]
    # The server must find the same StageLens, even where it is not installed, and nothing that
    # happens to lie in the current folder.
    paths = [str(_PACKAGE.parent), *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    server = "stagelens.ui.server.starting"
    command = [sys.executable, "-m", server, "run", str(_script()), *options]
    # In place of this process: signals reach the server itself.
    os.execve(sys.executable, command, environment)


def _script() -> Path:
    """The main page, beside which lie the others and Streamlit's settings."""
    # Within the package where it is installed, at the top level of a checkout.
    for folder in (_PACKAGE / "dashboard", _PACKAGE.parent):
        if (folder / "app.py").is_file() and (folder / "pages").is_dir():
            return folder / "app.py"
    raise StageLensError(f"{_PACKAGE} comes without the dashboard; install StageLens again")


def _checked(run: str) -> Path:
    if is_remote(run):
        raise StageLensError(f"the dashboard opens folders; copy {run} to this machine first")
    return open_run(run, leaf=NEWEST).path.resolve()


def _free(port: int) -> int:
    """The port, if a server may listen there."""
    address = os.environ.get("STREAMLIT_SERVER_ADDRESS") or "127.0.0.1"
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        # As servers do; else a port would count as taken for a minute after its server has ended.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise StageLensError(
                f"port {port} of {address} cannot be used ({error.strerror}); give another one "
                "with --port"
            ) from None
    return port
