"""``stagelens app`` as it was installed, far from the repository."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.browser.conftest import WAIT, Server
from tests.browser.waiting import SHOWN_IN
from tests.conftest import DemoRun
from tests.support import wheel

BACKGROUND = "() => getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor"
CONSOLE_SCRIPT = "import sys; from stagelens.cli import main; sys.argv[0] = 'stagelens'; main()"


@pytest.fixture
def server(digits_run: DemoRun, tmp_path: Path) -> Iterator[Server]:
    """Of the installed command; it only shows the demo, which lies outside of its roots."""
    target = wheel.installed(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log, empty = tmp_path / "log", tmp_path / "empty"
    empty.mkdir()
    with open(log, "wb") as file:
        words = ("app", str(digits_run.path), "--port", str(port), "--read-only")
        process = subprocess.Popen(
            [sys.executable, "-c", CONSOLE_SCRIPT, *words],
            cwd=empty,
            env=wheel.environment(target, STREAMLIT_SERVER_HEADLESS="true"),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", log, process)
    deadline = time.monotonic() + WAIT / 1000
    while not server.healthy() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    yield server
    server.stop()


@pytest.mark.extensive  # test_wheel starts it too, without a browser
def test_the_installed_command_opens_a_run_and_ends_with_ctrl_c(
    server: Server, page: Page, settle
) -> None:
    assert server.healthy(), server.log()
    page.goto(server.url)
    settle(page, "Credit and blame")
    assert re.search(r"[?&]run=", page.url)
    settle(page, "This dashboard is read-only")
    colours = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(SHOWN_IN, arg=scheme)
        colours.append(page.evaluate(BACKGROUND))
    # Those of .streamlit/config.toml.
    assert colours == ["rgb(255, 255, 255)", "rgb(14, 17, 22)"]
    page.get_by_role("link", name="Trust", exact=True).click()
    settle(page, "Training noise")
    os.kill(server.process.pid, signal.SIGINT)
    assert server.process.wait(timeout=WAIT / 1000) == 0
    assert "Traceback" not in server.log()
