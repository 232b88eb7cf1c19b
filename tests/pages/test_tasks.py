"""The pages of a run of every task that comes with StageLens."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagelens.effects.computing import attribute, boundaries
from tests.pages.reading import check, words
from tests.pages.test_texts import PAGE, ask
from tests.support.task_runs import SMALL, record


@pytest.fixture(scope="module", params=SMALL)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    run = record(folder / str(request.param), SMALL[request.param]())
    attribute(run, "test", "replay")
    boundaries(run, "test")
    return folder / str(request.param)


@pytest.mark.slow
def test_its_pages_open_and_answer(open_page, folder: Path) -> None:
    small = SMALL[folder.name]()
    check(open_page(folder.parent, f"run={folder.name}"))
    app = check(open_page(folder.parent, f"run={folder.name}&example=0", PAGE))
    for sentence in ("Without first", "Without second"):
        assert sentence in words(app)
    # Right and wrong are said where an answer can be the label, and only there.
    known = small.task.labels_are_answers and small.label is not None
    assert ("✓ right" in words(app) or "✗ wrong" in words(app)) == known
    if small.task.input_kind == "image":
        return
    app = check(open_page(folder.parent, f"run={folder.name}&view=Own+example", PAGE))
    app = check(ask(app, **small.own))
    assert "The final model" in words(app)
