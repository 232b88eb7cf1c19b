"""What ``pip install`` brings: the package with its dashboard, and the command that opens it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import wheel
from tests.support.wheel import ROOT

STARTED = """
import os, sys
def execve(program, command, environment):
    print(*command[1:], environment["PYTHONPATH"].split(os.pathsep)[0], sep="\\n")
    raise SystemExit
os.execve = execve
from stagelens.cli import main
sys.argv = ["stagelens", *sys.argv[1:]]
main()
"""
"""The console script, in which the server is not started but named."""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel.installed(tmp_path_factory.mktemp("wheel"))


def files(folder: Path, *names: str) -> set[Path]:
    found = {path for name in names for path in folder.glob(name) if path.is_file()}
    return {path.relative_to(folder) for path in found if "__pycache__" not in path.parts}


def test_it_holds_the_package_and_the_dashboard_and_nothing_else(target: Path) -> None:
    assert {path.name for path in target.iterdir() if path.suffix != ".dist-info"} == {"stagelens"}
    dashboard = target / "stagelens" / "dashboard"
    assert files(dashboard, "**/*") == files(ROOT, "app.py", "pages/*", ".streamlit/config.toml")
    package = {path for path in files(target, "stagelens/**/*") if path.parts[1] != "dashboard"}
    assert package == files(ROOT, "stagelens/**/*")
    assert Path("stagelens/py.typed") in package


def test_every_copied_file_is_that_of_the_repository(target: Path) -> None:
    for path in files(ROOT, "app.py", "pages/*", ".streamlit/config.toml"):
        assert (target / "stagelens/dashboard" / path).read_bytes() == (ROOT / path).read_bytes()


@pytest.mark.slow
def test_the_command_opens_the_dashboard_that_was_installed(target: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STARTED, "app"],
        cwd=tmp_path,
        env=wheel.environment(target),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    script = target / "stagelens" / "dashboard" / "app.py"
    assert done.stdout.splitlines() == [
        "-m",
        "stagelens.ui.server.starting",
        "run",
        str(script),
        str(target),
    ]
