"""The real demo, built once, and pages run without a browser."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
from streamlit.components.v2 import manifest_scanner
from streamlit.testing.v1 import AppTest, local_script_runner
from streamlit.testing.v1.local_script_runner import LocalScriptRunner

from stagelens.estimators import durations
from stagelens.ui.server import jobs
from tests.conftest import DemoRun

ROOT = Path(__file__).resolve().parents[2]

OpenPage = Callable[..., AppTest]

FOLDED = (
    *("bars", "numbers", "stages", "paths", "slices"),
    *("errors-by-class", "errors-table", "groups-table", "promises", "points-1"),
)
"""Parts of pages that are drawn when they are opened."""


@pytest.fixture(scope="session", autouse=True)
def _no_search_for_components() -> Iterator[None]:
    """Keep Streamlit from reading the metadata of all installed packages in every AppTest.

    A server does so once, an AppTest in every run, where it took longer than most pages. No page
    uses a component of another package.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_scanner, "scan_component_manifests", list)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_polling() -> Iterator[None]:
    """Wait for the end of a page's script; an AppTest asks for it a thousand times a second."""
    poll = local_script_runner.require_widgets_deltas

    def wait(runner: LocalScriptRunner, timeout: float = 3) -> None:
        assert runner._script_thread is not None
        runner._script_thread.join(timeout)
        poll(runner, 1)  # fails where it still runs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_script_runner, "require_widgets_deltas", wait)
        yield


@pytest.fixture(scope="session", autouse=True)
def _details_of_errors() -> Iterator[None]:
    """Show them where pages are tested, so that a failure says what happened."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STREAMLIT_CLIENT_SHOW_ERROR_DETAILS", "full")
        yield


@pytest.fixture(scope="session")
def demo(digits_run: DemoRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the digits demo. Read it only; take ``demo_copy`` to change it."""
    folder = tmp_path_factory.mktemp("home") / "digits"
    return Path(shutil.copytree(digits_run.path, folder))


@pytest.fixture(autouse=True)
def _an_idle_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is predicted, and so what starts by itself, is the same however busy the machine is."""
    monkeypatch.setattr(durations, "slowdown", lambda *_: 1.0)


@pytest.fixture(autouse=True)
def _the_demo_stays_as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a page stores in the shared demo would change what later tests see."""
    yield
    if "demo" not in request.fixturenames:
        return
    folder: Path = request.getfixturevalue("demo")
    pristine: Path = request.getfixturevalue("digits_run").path
    kept = {path.relative_to(pristine) for path in pristine.rglob("*")}
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.relative_to(folder) not in kept:
            path.rmdir() if path.is_dir() else path.unlink()


@pytest.fixture(autouse=True)
def _no_job_outlives_its_test(_the_demo_stays_as_it_was: None) -> Iterator[None]:
    """All tests of this process share one server's jobs; none shall see, or wait for, another's."""
    yield
    jobs.registry().cancel_all()


@pytest.fixture
def demo_copy(demo: Path, tmp_path: Path) -> Path:
    """A copy of the demo, under a home of its own."""
    return Path(shutil.copytree(demo, tmp_path / "home" / "digits"))


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> OpenPage:
    """``open_page(home, link="", page="app.py", folded=False)``: what a fresh server shows first.

    Unless ``folded``, what the Overview draws when it is opened is open.
    """

    def run(
        home: Path | None, link: str = "", page: str = "app.py", folded: bool = False
    ) -> AppTest:
        monkeypatch.setenv("STAGELENS_HOME", str(home or tmp_path / "nothing-yet"))
        app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=300)
        for name, value in parse_qsl(link):
            app.query_params[name] = value
        for part in () if folded else FOLDED:
            app.session_state[f"show-{part}"] = True
        if page != "app.py":
            app.switch_page(page)
        return app.run()

    return run
