"""The pages on a run that was assembled from checkpoints: no steps, perhaps no optimiser."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import stagelens
from stagelens.assembling import trainer_facts
from stagelens.cli import main
from stagelens.effects.computing import attribute, boundaries
from tests.pages.conftest import OpenPage
from tests.pages.reading import check, figures, words
from tests.support.checkpoints import classifiers, edit_json, labelled_texts
from tests.support.damage import edit_and_seal

LINK = "run=mine"
PAGES = ["app.py", "pages/1_Examples.py", "pages/2_Spurious_features.py"]
PAGES += ["pages/3_Remove_a_stage.py", "pages/4_Trust.py"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages, the second with a Trainer's history."""
    root = tmp_path_factory.mktemp("assembled")
    folders = classifiers(root / "folders")
    log = [{"step": n, "loss": 1 / n, "learning_rate": 1e-4 / n} for n in (10, 20, 30)]
    (folders["dpo"] / trainer_facts.STATE).write_text("{}")
    edit_json(
        folders["dpo"] / trainer_facts.STATE,
        lambda state: state.update(global_step=30, log_history=log),
    )
    file = labelled_texts(root / "few.jsonl")
    run = stagelens.assemble(folders, root / "home" / "mine", evaluation=file)
    attribute(run, "few", "task-vector")
    boundaries(run, "few")
    return root / "home"


@pytest.mark.parametrize("page", PAGES)
def test_every_page_opens(page: str, home: Path, open_page: OpenPage) -> None:
    said = words(check(open_page(home, LINK, page)))
    for advice in ("use replay", "unless a replay", "check the edit by replay", "**Verify by"):
        assert advice not in said


def test_no_report_and_no_command_advises_what_cannot_be_done(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = home / "report.html"
    for words_ in (
        ("attribute", "--estimator", "task-vector"),
        ("report", "--out", report),
        ("remove", "--stage", "sft", "--set", "few", "--out", home.parent / "edited"),
    ):
        name, *more = map(str, words_)
        monkeypatch.setattr(sys, "argv", ["stagelens", name, str(home / "mine"), *more])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
    said = " ".join(capsys.readouterr().out.split()) + report.read_text()
    assert "use replay" not in said and "unless a replay" not in said
    assert "No replay can settle it: no steps were recorded of stage" in said


def test_the_overview_says_what_is_known_of_each_stage(home: Path, open_page: OpenPage) -> None:
    app = check(open_page(home, LINK))
    said = words(app)
    assert "assembled from checkpoints: no steps recorded" in said
    assert "30 steps, none of them recorded" in said
    assert "optimiser not known" in said
    assert "up to 1e-05" in said  # the highest learning rate that was logged
    (line,) = (f for f in figures(app) if f["alt"].startswith("Stages in training order"))
    assert "dpo (30 steps)" in line["alt"]


def test_the_trust_page_says_why_nothing_can_be_verified(home: Path, open_page: OpenPage) -> None:
    said = words(check(open_page(home, LINK, "pages/4_Trust.py")))
    assert "this run was assembled from checkpoints" in said


def test_what_is_to_be_known_of_the_run_is_shown(home: Path, open_page: OpenPage) -> None:
    run = stagelens.open_run(home / "mine")
    assert run.problems == []
    edit_and_seal(run.path / "run.json", lambda file: file.update(notes=["two of them are alike"]))
    try:
        assert "two of them are alike" in words(check(open_page(home, LINK)))
    finally:
        edit_and_seal(run.path / "run.json", lambda file: file.update(notes=[]))
