"""``stagelens app``: what it checks before a server starts, and how it starts one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import stagelens
from stagelens import cli
from tests.support.loops import make_task

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Answer:
    """How a command ended, what it said, and the server's command and environment, if any."""

    status: int
    out: str
    err: str
    server: list[str]
    environment: dict[str, str]


Command = Callable[..., Answer]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``command("app", run)``: the command line in this process; no server is started."""
    for name in ("STAGELENS_RUN", "STAGELENS_READ_ONLY", "STREAMLIT_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: object) -> Answer:
        server: list[str] = []
        environment: dict[str, str] = {}

        def execve(program: str, command: list[str], env: dict[str, str]) -> None:
            assert program == sys.executable
            server.extend(command)
            environment.update(env)
            raise SystemExit

        monkeypatch.setattr(os, "execve", execve)
        monkeypatch.setattr(sys, "argv", ["stagelens", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return Answer(int(end.value.code or 0), printed.out, printed.err, server, environment)

    return run


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A run folder."""
    stagelens.Recorder(tmp_path / "mine", make_task(), name="mine").close()
    return tmp_path / "mine"


def test_the_version_is_that_of_the_package(command: Command) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    answer = command("--version")
    assert (answer.status, answer.out) == (0, f"stagelens {project['version']}\n")


def test_without_a_run_it_opens_the_start_page(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = command("app")
    script = str(ROOT / "app.py")
    server = "stagelens.ui.server.starting"
    assert answer.server == [sys.executable, "-m", server, "run", script]
    assert not {"STAGELENS_RUN", "STAGELENS_READ_ONLY"} & answer.environment.keys()
    # What lies in the current folder is not imported in place of what is installed.
    assert answer.environment["PYTHONSAFEPATH"] == "1"


def test_it_opens_a_run_wherever_it_is_started(
    command: Command, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recorded.parent)
    answer = command("app", "mine", "--read-only")
    assert answer.environment["STAGELENS_RUN"] == str(recorded)
    assert answer.environment["STAGELENS_READ_ONLY"] == "1"


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("nowhere", "nowhere is not a folder; give the path of a run folder"),
        ("empty", "empty is not a run folder (it has no run.json); record one with"),
        ("damaged", "damaged/run.json"),
        ("s3://bucket/run", "the dashboard opens folders; copy s3://bucket/run to this machine"),
    ],
)
def test_what_is_no_run_is_said_before_a_server_starts(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{")
    answer = command("app", run)
    assert (answer.status, answer.server) == (1, [])
    assert answer.err.startswith("stagelens: ") and answer.err.count("\n") == 1
    assert said in answer.err


def test_a_port_that_is_taken_is_said_before_a_server_starts(command: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        answer = command("app", "--port", port)
    assert (answer.status, answer.server) == (1, [])
    assert answer.err == (
        f"stagelens: port {port} of 127.0.0.1 cannot be used (Address already in use); give "
        "another one with --port\n"
    )
    free = command("app", "--port", port)
    assert free.server[-2:] == ["--server.port", str(port)]


def test_no_port_beyond_the_last_one(command: Command) -> None:
    answer = command("app", "--port", "65536")
    assert answer.status == 2 and "65535" in answer.err and not answer.server


def test_a_package_without_its_dashboard_says_so(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stagelens.cli.dashboard._PACKAGE", tmp_path / "stagelens")
    answer = command("app")
    assert answer.status == 1 and "comes without the dashboard; install" in answer.err


def test_a_server_imports_what_pages_need_before_anybody_asks(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "app.py").write_text("import colorsys\nraise SystemExit('this was run')\n")
    (tmp_path / "pages" / "1_More.py").write_text("from only_here import NAME\nprint(NAME)\n")
    (tmp_path / "only_here.py").write_text("NAME = 'never printed'\n")
    code = (
        "import pathlib, sys, types\n"
        "from stagelens.ui.server import starting\n"
        "ready = types.SimpleNamespace(state=starting.RuntimeState.NO_SESSIONS_CONNECTED)\n"
        "starting.runtime.exists = lambda: True\n"
        "starting.runtime.get_instance = lambda: ready\n"
        "starting.warm_up(pathlib.Path(sys.argv[1])).join(30)\n"
        "print({'colorsys', 'only_here'} <= sys.modules.keys())"
    )
    paths = os.pathsep.join([str(ROOT), str(tmp_path)])
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "app.py")],
        env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout == "True\n"
