"""A dashboard for everybody: all is shown, nothing is computed, uploaded or written."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagelens.analyses.slices.saved import delete_slice, save_slice
from stagelens.contracts import StageLensError
from stagelens.report.store import FindingStore
from stagelens.runs.files import new_folder
from stagelens.runs.run import open_run
from stagelens.ui.server import jobs, settings
from tests.pages.reading import check, words
from tests.support.findings import seen

PAGES = {
    "app.py": "",
    "pages/1_Examples.py": "example=stamped-000&look=Which+data",
    "pages/2_Spurious_features.py": "part=Found+without+metadata&stage=pretrain",
    "pages/3_Remove_a_stage.py": "remove-1=50",
    "pages/4_Trust.py": "",
    "pages/5_Report.py": "",
    "pages/6_Regression_gate.py": "",
}
CHANGING = ("Pin to findings", "Verify by replay", "Make the run", "Save", "Take out", "Compute")


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGELENS_READ_ONLY", "1")


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.mark.slow
@pytest.mark.usefixtures("read_only")
def test_every_page_shows_and_changes_nothing(open_page, demo: Path) -> None:
    before = state_of(demo.parent)
    for page, link in PAGES.items():
        app = check(open_page(demo.parent, f"run=digits&{link}", page))
        assert settings.READ_ONLY in words(app), page
        free = [b.label for b in app.button if b.label.startswith(CHANGING) and not b.disabled]
        assert free == [], page
    assert state_of(demo.parent) == before
    assert not jobs.registry()._jobs


@pytest.mark.usefixtures("read_only")
def test_nothing_can_be_uploaded_or_made(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits&view=Own+example", "pages/1_Examples.py"))
    assert [one.proto.disabled for one in app.get("file_uploader")] == [True]
    start = check(open_page(None))
    assert not {"Open the digits demo", "Make the run"} & {button.label for button in start.button}


def test_the_engine_refuses_too(
    demo_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(demo_copy)
    examples = run.evaluation_set("test")
    ids = examples.table([])["example_id"].tolist()[:3]
    asked = ("task-vector", "loss")
    one = save_slice(run, examples, "mine", ids, {}, *asked)
    pinned = FindingStore(run).pin(seen())
    monkeypatch.setenv("STAGELENS_READ_ONLY", "1")
    before = state_of(demo_copy)
    for change in (
        lambda: FindingStore(run).pin(seen()),
        lambda: FindingStore(run).edit(pinned, note="no"),
        lambda: save_slice(run, examples, "other", ids, {}, *asked),
        lambda: delete_slice(run, one),
        lambda: new_folder(tmp_path / "edited").__enter__(),
        lambda: jobs.start(("demo", "digits"), "The demo"),
    ):
        with pytest.raises(StageLensError, match="read-only"):
            change()
    assert state_of(demo_copy) == before and not (tmp_path / "edited").exists()


@pytest.mark.parametrize(("value", "closed"), [("", False), ("0", False), ("1", True), ("x", True)])
def test_anything_but_0_closes(monkeypatch, value: str, closed: bool) -> None:
    monkeypatch.setenv("STAGELENS_READ_ONLY", value)
    assert settings.read_only() is closed
