"""A real Streamlit server and a real Chromium.

A test asks for ``start_server``, ``page``, ``settle``, ``screenshot`` and ``check_narrow``::

    def test_overview_names_the_stages(start_server, page, settle, screenshot):
        server = start_server({"STAGELENS_HOME": str(home)})
        page.goto(server.url + "/?run=digits")
        settle(page, "Overview")
        screenshot(page, "overview")
        check_narrow(page, "overview")
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import pytest
from playwright.sync_api import Browser, Page, Request, WebSocket, expect, sync_playwright

from tests.browser.cut_texts import cut_texts
from tests.browser.waiting import EXCHANGE, IDLE, NEXT_FRAMES, SHOWN_IN
from tests.conftest import DemoRun

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "test-output"

WAIT = 200_000
"""Milliseconds that anything on a page may take. A wait ends as soon as the thing is there, so this
only says when to give up; a machine that is busy with much else must not fail a test."""

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
QUIET = {"STREAMLIT_SERVER_FILE_WATCHER_TYPE": "none"}
"""Every file that is watched takes time; no test edits one."""

VIEWPORT = {"width": 1280, "height": 1600}
NARROW = (800, 420)
"""Widths at which nothing may stick out sideways: a tablet's, a telephone's."""

PICTURES = os.environ.get("STAGELENS_SCREENSHOTS") == "1"
"""Whether pages are photographed, for people to look at; a picture takes as long as a page."""

OUTSIDE = re.compile(r"^(?:https?|wss?)://(?!127\.0\.0\.1[:/])", re.IGNORECASE)


@dataclass(frozen=True)
class Server:
    """A Streamlit server in a process group of its own.

    Attributes:
        url: Where it listens, without a slash at the end.
        log_file: What it prints.
    """

    url: str
    log_file: Path
    process: subprocess.Popen[bytes]

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def healthy(self) -> bool:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with contextlib.suppress(URLError, OSError):
            return direct.open(f"{self.url}/_stcore/health", timeout=5).status == 200
        return False

    def stop(self) -> None:
        """End the server and everything it started."""
        for how in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=10)


def launch(folder: Path, env: Mapping[str, str], script: str | Path = "app.py") -> Server:
    """A server that answers; its log, and its home unless ``env`` says otherwise, in ``folder``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log_file = folder / "streamlit.log"
    command = [sys.executable, "-m", "tests.support.serving", "run", str(script)]
    options = [f"--server.port={port}", "--server.headless=true", "--logger.enableRich=false"]
    with open(log_file, "wb") as log:
        process = subprocess.Popen(
            [*command, *options],
            cwd=ROOT,
            env={**os.environ, "STAGELENS_HOME": str(folder / "home"), **env},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", log_file, process)
    deadline = time.monotonic() + WAIT / 1000
    while not server.healthy():
        late = time.monotonic() > deadline
        if late or process.poll() is not None:
            ended = process.returncode
            server.stop()
            why = (
                f"did not answer within {WAIT // 1000} seconds"
                if late
                else f"ended with status {ended}"
            )
            raise RuntimeError(f"the server {why}:\n{server.log()[-10_000:]}")
        time.sleep(0.1)
    return server


StartServer = Callable[..., Server]
Settle = Callable[..., None]
Screenshot = Callable[..., None]

_running: list[Server] = []
_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("browser")
            item.add_marker("slow")  # with the processor time of Chromium and of the server


def pytest_sessionfinish() -> None:
    """One page with every screenshot, light beside dark; a page's narrow windows after its wide."""
    found = [path.stem.removesuffix("-light") for path in OUTPUT.glob("*-light.png")]
    names = sorted(found, key=lambda name: (re.sub(r"^(page|narrow-\d+)-", "", name), name))
    if names:
        rows = "".join(
            f"<h2>{name}</h2><img src='{name}-light.png'> <img src='{name}-dark.png'>"
            for name in names
        )
        style = "<style>img{max-width:49%;vertical-align:top}</style>"
        (OUTPUT / "index.html").write_text(
            f"<!doctype html><title>Screenshots</title>{style}{rows}"
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[pytest.TestReport]:
    """A failure comes with the servers' logs and a picture of the page."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
        for server in _running:
            report.sections.append((f"log of {server.url}", server.log()[-10_000:]))
        page = getattr(item, "funcargs", {}).get("page")
        if page is not None and call.when == "call":
            picture = OUTPUT / f"failed-{re.sub(r'[^A-Za-z0-9]+', '-', item.name).strip('-')}.png"
            with contextlib.suppress(Exception):
                page.screenshot(path=picture)
                report.sections.append(("picture of the page", str(picture)))
    return report


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One Chromium for the session."""
    path = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if path is None:
        reason = f"no Chromium: none of {', '.join(CHROMIUM_NAMES)} is installed"
        if os.environ.get("STAGELENS_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    expect.set_options(timeout=WAIT)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGS)
        yield browser
        browser.close()


class _Profile:
    """One profile of the browser with one page, which tests use in turn.

    A page that is not closed keeps the compiled scripts of Streamlit; compiling them would take a
    second of processor time in every test.

    Attributes:
        page: Emptied and as wide as at first, for the next test.
        outside: What pages have asked of other hosts than 127.0.0.1.
    """

    def __init__(self, chromium: Browser) -> None:
        self.outside: list[str] = []
        # Drawn in software, what moves while a page works takes as long as the page itself.
        self._context = chromium.new_context(
            viewport=VIEWPORT, color_scheme="light", reduced_motion="reduce",
            service_workers="block", accept_downloads=True,
        )  # fmt: skip
        self._context.set_default_timeout(WAIT)
        self._context.add_init_script(EXCHANGE)
        # Seen, not routed: with a route there is no cache, and a page takes twice as long.
        self._context.on("request", self._note)
        self._context.on("page", lambda opened: opened.on("websocket", self._note))
        self.page = self._context.new_page()

    def _note(self, asked: Request | WebSocket) -> None:
        if OUTSIDE.match(asked.url):
            self.outside.append(asked.url)

    def reset(self) -> None:
        """Leave nothing of a test in the profile: no page, no choice, no cookie, no size."""
        for other in self._context.pages:
            if other is not self.page:
                other.close()
        if self.page.url.startswith("http"):
            self.page.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")
        self.page.goto("about:blank")
        self._context.clear_cookies()
        self.page.set_viewport_size(VIEWPORT)
        self.page.emulate_media(color_scheme="light", reduced_motion="reduce")

    def close(self) -> None:
        self._context.close()


@pytest.fixture(scope="session")
def _profiles(chromium: Browser) -> Iterator[list[_Profile]]:
    """The profile in use, if there is one; a test that fails takes its own with it."""
    profiles: list[_Profile] = []
    yield profiles
    for profile in profiles:
        profile.close()


@pytest.fixture
def page(
    chromium: Browser, _profiles: list[_Profile], request: pytest.FixtureRequest
) -> Iterator[Page]:
    """An empty page; the test fails when it asks anything but 127.0.0.1."""
    if not _profiles:
        _profiles.append(_Profile(chromium))
    (profile,) = _profiles
    yield profile.page
    outside, profile.outside = sorted(set(profile.outside)), []
    if profile.page.is_closed() or request.node.stash.get(_FAILED, False):
        _profiles.clear()
        profile.close()
    else:
        profile.reset()
    assert not outside, f"the page asked other hosts than 127.0.0.1: {outside}"


@pytest.fixture(scope="module")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """``start_server(env=None, script="app.py") -> Server``; stopped at the end of the module.

    ``env`` is added to this process's environment. STAGELENS_HOME is an empty folder of the
    server's own unless ``env`` says otherwise. ``script`` is relative to the project's root.
    """
    with _servers(tmp_path_factory) as start:
        yield start


@contextlib.contextmanager
def _servers(factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    started: list[Server] = []

    def start(env: Mapping[str, str] | None = None, script: str | Path = "app.py") -> Server:
        server = launch(factory.mktemp("server"), {**QUIET, **(env or {})}, script)
        started.append(server)
        _running.append(server)
        return server

    yield start
    for server in started:
        server.stop()
        _running.remove(server)


@pytest.fixture(scope="session")
def read_home(digits_run: DemoRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of ``server``: what its pages have measured stays there."""
    home = tmp_path_factory.mktemp("read")
    shutil.copytree(digits_run.path, home / "digits")
    return home


@pytest.fixture(scope="session")
def server(read_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the digits demo, for all files that only read it.

    A file that changes the demo copies it into ``own_home``, under a name of its own, and asks
    ``own_server`` for it.
    """
    with _servers(tmp_path_factory) as start:
        yield start({"STAGELENS_HOME": str(read_home)})


@pytest.fixture(scope="session")
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of ``own_server``: every run in it belongs to one file of tests."""
    return tmp_path_factory.mktemp("own")


@pytest.fixture(scope="session")
def own_server(own_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for all files that change what they look at; see ``server``."""
    with _servers(tmp_path_factory) as start:
        yield start({"STAGELENS_HOME": str(own_home)})


@pytest.fixture(scope="session")
def settle() -> Settle:
    """``settle(page, text=None)``: wait for ``text``, then until Streamlit has nothing to do.

    After a click too: what the page asked the server for has been answered. A file that is
    uploaded, or a job that is done, is followed by a rerun at its own time: give its text. Fails
    when the page shows an exception.
    """

    def wait(page: Page, text: str | None = None) -> None:
        if text is not None:
            shown = page.get_by_text(text).or_(page.get_by_test_id("stException"))
            expect(shown.filter(visible=True).first).to_be_visible()
        page.wait_for_function(IDLE, polling=50)
        page.evaluate(NEXT_FRAMES)
        for exception in page.get_by_test_id("stException").all():
            pytest.fail(f"the page shows an exception: {exception.inner_text()}")

    return wait


@pytest.fixture(scope="session")
def screenshot(settle: Settle) -> Screenshot:
    """``screenshot(page, name)``: the whole page as test-output/NAME-light.png and NAME-dark.png.

    Only where STAGELENS_SCREENSHOTS=1 asks for pictures. The page is as tall as its content for
    the picture, and as it was afterwards.
    """

    def take(page: Page, name: str) -> None:
        if not PICTURES:
            return
        before = page.viewport_size or VIEWPORT
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.wait_for_function(SHOWN_IN, arg=scheme)
            settle(page)
            height = page.get_by_test_id("stMain").evaluate("main => main.scrollHeight")
            page.set_viewport_size({"width": before["width"], "height": min(height, 8000)})
            settle(page)
            page.screenshot(path=OUTPUT / f"{name}-{scheme}.png")
            page.set_viewport_size({"width": before["width"], "height": before["height"]})
        page.emulate_media(color_scheme="light")
        page.wait_for_function(SHOWN_IN, arg="light")

    return take


@pytest.fixture(scope="session")
def check_narrow(settle: Settle, screenshot: Screenshot) -> Callable[[Page, str], None]:
    """``check_narrow(page, name)``: in narrow windows nothing sticks out, no text is cut."""

    def check(page: Page, name: str) -> None:
        for width in NARROW:
            page.set_viewport_size({"width": width, "height": 1200})
            settle(page)
            assert cut_texts(page) == [], f"where the window is {width} wide"
            screenshot(page, f"narrow-{width}-{name}")
        page.set_viewport_size(VIEWPORT)
        settle(page)

    return check
