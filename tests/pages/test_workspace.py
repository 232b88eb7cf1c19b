"""What every page opens: a run, one of its sets; and what it says where something is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import stagelens
from stagelens.runs.run import open_run
from stagelens.tasks import IMAGE_MODELS, why_missing
from stagelens.tasks.image_classification import _BUILDERS
from stagelens.ui.server import interrupted_jobs, jobs
from tests.pages.reading import check, words
from tests.support.damage import edit_and_seal
from tests.support.loops import make_task

EXAMPLES = "pages/1_Examples.py"
EVERY_PAGE = pytest.mark.parametrize("page", ["app.py", EXAMPLES, "pages/4_Trust.py"])
NOWHERE = "nowhere ![](https://example.org/x.png)"


@EVERY_PAGE
def test_a_set_that_a_link_names_in_vain_is_said_to_be_missing(
    open_page, demo: Path, page: str
) -> None:
    app = check(open_page(demo.parent, f"run=digits&set={NOWHERE}", page))
    said = "which this run does not have; test is shown instead"
    assert f"The link names the set {NOWHERE}" in words(app) and said in words(app)
    assert "![](" not in " ".join(w.value for w in app.warning)
    assert said in words(check(app.run()))  # still there, though the link was corrected
    app.selectbox(key="set").select("mixed-up")
    assert said not in words(check(app.run()))


def test_what_was_left_out_of_a_set_is_shown_beside_it(open_page, demo_copy: Path) -> None:
    left_out = ["column 'raw' holds binary", "<b>notes.txt</b> (not an image)"]
    edit_and_seal(demo_copy / "sets/test/set.json", lambda facts: facts.update(left_out=left_out))
    app = check(open_page(demo_copy.parent, "run=digits"))
    said = words(app)
    assert "column 'raw' holds binary" in said and "<b>notes.txt</b> (not an image)" in said
    app.selectbox(key="set").select("mixed-up")
    assert "holds binary" not in words(check(app.run()))


@EVERY_PAGE
def test_a_run_without_a_stage_says_that_nothing_was_recorded(
    open_page, tmp_path: Path, page: str
) -> None:
    stagelens.Recorder(tmp_path / "empty", make_task(), name="empty").close()
    app = check(open_page(tmp_path, "run=empty", page))
    assert "Nothing has been recorded into this run yet" in words(app)


def rewritten(run: Path, name: str, config: dict) -> Path:
    """The run, as if it had been recorded with another task; its results no longer count."""
    edit_and_seal(run / "run.json", lambda file: file["task"].update(name=name, config=config))
    return run


@pytest.mark.parametrize(
    ("name", "model", "said"),
    [
        ("image-classification", {"kind": "own"}, "was given a model of the user's own"),
        ("my-task", {}, "'my-task' is not installed here"),
    ],
)
@EVERY_PAGE
def test_a_run_of_a_task_that_is_not_here_says_what_to_do_and_starts_no_job(
    open_page, demo_copy: Path, monkeypatch: pytest.MonkeyPatch,
    page: str, name: str, model: dict, said: str,
) -> None:  # fmt: skip
    def start(arguments: object, *_: object, **__: object) -> None:
        raise AssertionError(f"{arguments} was started, and cannot end well")

    monkeypatch.setattr(jobs, "start", start)
    config = open_run(demo_copy).file.task.config | {"model": model}
    rewritten(demo_copy, name, config)
    app = check(open_page(demo_copy.parent, "run=digits", page))
    assert said in words(app)
    command = f"stagelens attribute {demo_copy} --set test --task package.module:Class"
    assert command in [code.value for code in app.code]


def test_stored_numbers_of_a_task_that_is_not_here_are_shown(
    open_page, demo_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stagelens.ui.opening.workspace.why_missing", lambda *_: "is gone")
    shutil.rmtree(demo_copy / "results" / "counterfactuals")
    app = check(open_page(demo_copy.parent, "run=digits"))
    assert "its task is gone" in words(app) and "Credit and blame" in words(app)
    assert "Replay within" not in {group.label for group in app.get("button_group")}


def test_an_own_example_needs_the_task(open_page, demo_copy: Path) -> None:
    rewritten(demo_copy, "my-task", {})
    app = check(open_page(demo_copy.parent, "run=digits&view=Own+example", EXAMPLES))
    assert "'my-task' is not installed here" in words(app) and not app.file_uploader


def test_what_is_built_in_is_known_without_importing_it() -> None:
    assert set(IMAGE_MODELS) == set(_BUILDERS)
    for name in ("text-classification", "causal-lm"):
        assert why_missing(name, {"model": {"model_type": "bert"}}) is None
    assert why_missing("image-classification", make_task().config) is None


def test_what_a_server_left_unfinished_is_told_until_it_is_dismissed(
    open_page, demo_copy: Path
) -> None:
    folder = demo_copy.parent / interrupted_jobs.FOLDER
    folder.mkdir()
    gone = {"pid": 999_999_999, "born": 1}
    record = {"title": "Replay **without** <b>shortcut</b>", "server": gone, "child": gone}
    (folder / "one.json").write_text(json.dumps(record))
    app = check(open_page(demo_copy.parent, "run=digits"))
    assert "The server stopped while this was running" in words(app)
    assert not any("**without**" in warning.value for warning in app.warning)
    next(button for button in app.button if button.label == "Dismiss").click()
    assert "The server stopped" not in words(check(app.run())) and not list(folder.iterdir())
