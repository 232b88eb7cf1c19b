"""What to train on next, on the tab Training data of the page Examples."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from stagelens.analyses.selection.choosing import choose
from stagelens.analyses.selection.outcomes import Outcome, Wanted, save_outcome, usual_horizons
from stagelens.analyses.slices.saved import save_slice, slice_of
from stagelens.contracts import StageLensError
from stagelens.runs.run import open_run
from stagelens.ui.server import jobs
from tests.pages.reading import check, labels, words

PAGE = "pages/1_Examples.py"
LINK = "run=digits&set=mixed-up&measure=margin&estimator=replay&view=Training+data&stage=adapt"


@pytest.fixture(scope="module")
def known(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A copy of the demo, in which a quarter of the examples of *adapt* were chosen."""
    path = Path(shutil.copytree(demo, tmp_path_factory.mktemp("home") / "digits"))
    run = open_run(path)
    wanted = Wanted(
        stage="adapt",
        set_name="mixed-up",
        behaviour="loss",
        horizons=usual_horizons(run.stage("adapt").steps),
        keep=0.25,
        draws=4,
    )
    return path, choose(run, wanted)


def _page(open_page, path: Path, more: str = "") -> AppTest:
    return check(open_page(path.parent, LINK + more, PAGE))


def test_a_choice_is_offered_with_its_cost_in_replays(
    open_page, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(jobs, "start", lambda arguments, title: started.append(arguments))
    app = _page(open_page, demo)
    said = words(app)
    assert "3 backward sweeps through adapt to rank its examples" in said
    assert "46 replays of adapt (15 steps each)" in said
    app.selectbox(key="next-keep").set_value(0.25)
    app.selectbox(key="next-draws").set_value(4)
    assert "30 replays" in words(check(app.run()))
    check(app.button(key="train-next").click().run())
    ((command, *rest),) = started
    assert command == "select" and rest == [
        *(str(demo), "--stage", "adapt", "--target", "mixed-up", "--behaviour", "loss"),
        *("--keep", "0.25", "--prove", "4"),
    ]
    grouped = _page(open_page, demo, "&by=label&group=4")
    check(grouped.button(key="train-next").click().run())
    assert "--group=label=4" in started[1]


def test_a_saved_slice_can_be_the_target(
    open_page, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(demo, tmp_path / "digits"))
    run = open_run(path)
    examples = run.evaluation_set("mixed-up")
    ids = examples.table()["example_id"].tolist()[:9]
    save_slice(run, examples, "first nine", ids, {})
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(jobs, "start", lambda arguments, title: started.append(arguments))
    app = _page(open_page, path)
    box = app.selectbox(key="next-target")
    assert box.options[-1] == "slice first nine"
    check(box.set_value("slice first nine").run())
    check(app.button(key="train-next").click().run())
    ((*_, option, name, measured, _, _, _, _, _),) = started
    assert (option, name, measured) == ("--slice", "first nine", "--behaviour")
    assert slice_of(run, examples, "First Nine").example_ids == tuple(ids)
    with pytest.raises(StageLensError, match="there are first nine"):
        slice_of(run, examples, "last nine")


@pytest.mark.slow
def test_what_was_chosen_is_found_again_with_its_proof_and_its_files(
    open_page, known: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, outcome = known
    app = _page(open_page, path, "&next-keep=25+%25&next-draws=4&show-horizons=true")
    said, size, of = words(app), len(outcome.kept), outcome.facts.of
    assert f"{size} of {of} training examples of adapt kept: those that help the loss" in said
    assert f"By replay, with the chosen {size} the loss is " in said
    assert all(f"{part}" in said for part in (f"all {of}", f"random {size}", f"the worst {size}"))
    assert "The orders by one half of the ranking examples and by the other have a rank" in said
    trust = words(check(open_page(path.parent, LINK, "pages/4_Trust.py")))
    assert f"{size} of {of} training examples of adapt kept" in trust and f"all {of}" in trust
    table = next(each.value for each in app.dataframe if "chosen against" in each.value)
    every = [each for each in app.button if str(each.key).startswith("pin-to-train-next")]
    assert len({each.label for each in every}) == len(every) >= 3
    assert len(table) == 6 and set(table["on"]) == {"loss", "accuracy"}
    assert "at which steps and positions of the recorded batches" in said
    assert "No row numbers: the rows of stage 'adapt' in a data set are not known" in said
    assert "train-next" not in {each.key for each in app.button}
    # What was chosen last is shown when the page is opened again, with its settings.
    again = _page(open_page, path)
    assert again.selectbox(key="next-draws").value == 4
    assert again.selectbox(key="next-keep").value == 0.25
    assert f"{size} of {of} training examples of adapt kept" in words(again)
    assert "Chosen examples as CSV" in {each.proto.label for each in again.get("download_button")}
    # Another question is offered, and what was chosen before stands below it.
    other = _page(open_page, path, "&next-keep=50+%25&next-draws=8")
    assert "Choose and prove by replay" in labels(other)
    before = next(each.value for each in other.dataframe if "chosen" in each.value)
    assert before["kept"].tolist() == [f"{size} of {of}"]
    # With rows of a data set, code that takes them is there to copy.
    run = open_run(path)
    examples = run.evaluation_set("mixed-up")
    numbered = outcome.kept.assign(rows=[str(3 * n) for n in range(size)])
    save_outcome(run, examples, outcome.facts, numbered.astype({"rows": "string"}))
    app = _page(open_page, path, "&next-keep=25+%25&next-draws=4")
    assert any("data.select(rows)" in each.value for each in app.code)
    monkeypatch.setenv("STAGELENS_READ_ONLY", "1")
    alone = words(_page(open_page, path))
    assert f"{size} of {of} training examples of adapt kept" in alone
    assert "backward sweeps" not in alone


def test_a_read_only_page_shows_nothing_where_nothing_was_chosen(
    open_page, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGELENS_READ_ONLY", "1")
    assert "What to train on next" not in words(_page(open_page, demo))
