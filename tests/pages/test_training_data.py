"""The tab Training data of the page Examples: lists, one example, groups, and replays without."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from stagelens.analyses.contributions.computing import contribute
from stagelens.analyses.contributions.contribution_table import Question
from stagelens.analyses.contributions.sweeping_parts import contribute_to_parts
from stagelens.analyses.training_data.computing import training_data
from stagelens.analyses.training_data.groups import CONTRIBUTION
from stagelens.analyses.training_data.marks import BOTH, SUSPECT, marked
from stagelens.analyses.training_data.tables import TrainingData, answers_path
from stagelens.analyses.without_data.chosen import Chosen
from stagelens.analyses.without_data.computing import without_data
from stagelens.analyses.without_data.controls import control
from stagelens.analyses.without_data.sentences import OF_GROUPS
from stagelens.runs.run import open_run
from stagelens.runs.schema import digest
from stagelens.runs.training_rows import training_rows
from stagelens.ui.examples import contributions, training_browser, training_filters
from stagelens.ui.examples.grouping import Grouping
from stagelens.ui.reading import browse
from stagelens.ui.server import jobs
from tests.pages.reading import check, figures, labels, table, words
from tests.support.made_checks import store_check

PAGE = "pages/1_Examples.py"
LINK = "run=digits&set=mixed-up&measure=margin&estimator=replay&view=Training+data"
ASKED = "clean-044"
"""An example that the final model answers wrongly, and the model without *mislabelled* rightly."""


@pytest.fixture(scope="module")
def known(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingData]:
    """A copy of the demo whose stage *mislabelled* was read, with contributions to one example."""
    path = Path(shutil.copytree(demo, tmp_path_factory.mktemp("home") / "digits"))
    run = open_run(path)
    contribute(run, "mixed-up", Question(ids=(ASKED,)), "margin", since="mislabelled")
    return path, training_data(run, "mislabelled")


def _page(open_page, path: Path, more: str = "") -> AppTest:
    return check(open_page(path.parent, f"{LINK}&stage=mislabelled&example={ASKED}{more}", PAGE))


def test_without_anything_stored_one_job_reads_it_all(
    open_page, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(jobs, "start", lambda arguments, title: started.append(arguments))
    app = check(open_page(demo.parent, f"{LINK}&stage=adapt", PAGE))
    assert "The training examples of adapt are read from its recorded batches" in words(app)
    check(app.button(key="read-training-data").click().run())
    assert started == [
        (
            *("training-data", str(demo), "--stage", "adapt", "--contributions"),
            *("--set", "mixed-up", "--behaviour", "margin"),
        )
    ]


def test_the_stage_most_to_blame_is_shown_where_nobody_chose_one(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, LINK, PAGE))
    assert "Shown is mislabelled, the stage most to blame for the margin on average" in words(app)


def test_examples_that_hurt_come_first_and_say_what_became_of_them(
    open_page, known: tuple[Path, TrainingData]
) -> None:
    path, data = known
    app = _page(open_page, path)
    assert "200 training examples of mislabelled, 1,200 uses" in words(app)
    table = app.dataframe[0].value
    assert len(table) == browse.PAGE_SIZE
    assert table[CONTRIBUTION].str.startswith("▼").all()
    amounts = table[CONTRIBUTION].str.slice(2).astype(float)
    assert amounts.is_monotonic_decreasing
    frame = data.frame.set_index("example_id")
    for row in table.itertuples():
        own = frame.loc[row.id]
        mark = "=" if own["answer"] == own["label"] else "≠"
        assert row.answer == f"{mark} {own['answer']}" and row.uses == own["uses"]
        assert len(table.loc[row.Index, "own loss"]) == len(data.answers.moments)  # type: ignore[union-attr]


def test_where_first_order_says_nothing_the_list_has_no_contributions(
    open_page, known: tuple[Path, TrainingData]
) -> None:
    stored = store_check(open_run(known[0]), "mislabelled", "mixed-up", -1.0)
    try:
        app = _page(open_page, known[0])
        assert "First order says nothing here (smoothness -1.00" in words(app)
        assert CONTRIBUTION not in table(app)
    finally:
        stored.unlink()


def test_a_passed_check_below_a_graver_warning_says_that_this_one_counts(
    open_page, known: tuple[Path, TrainingData], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = store_check(open_run(known[0]), "mislabelled", "mixed-up", 1.0)
    try:
        monkeypatch.setattr(training_browser, "left_open", lambda *_: "")
        assert "The smallest changes are smooth" in words(_page(open_page, known[0]))
        monkeypatch.setattr(training_browser, "left_open", lambda *_: "It says nothing.")
        said = words(_page(open_page, known[0]))
        assert "It says nothing." in said and "The warning above counts." in said
        assert "The smallest changes are smooth" not in said
    finally:
        stored.unlink()


def test_filters_and_search_leave_what_was_asked_for(
    open_page, known: tuple[Path, TrainingData]
) -> None:
    path, data = known
    frame = marked(data)
    both = frame[frame[SUSPECT] == BOTH]
    app = _page(open_page, path, f"&t-doubt={BOTH.replace(' ', '+')}")
    assert f"{len(both)} of 200 training examples of mislabelled" in words(app)
    app.selectbox(key="t-label").set_value("9")
    assert f"{(both['label'] == '9').sum()} of 200" in words(check(app.run()))
    app.text_input(key="t-q").set_value("no such id")
    assert "No training examples are left" in words(check(app.run()))
    hardest = _page(open_page, path, f"&t-sort={training_filters.UNBELIEVED.replace(' ', '+')}")
    ids = hardest.dataframe[0].value["id"].tolist()
    assert ids == frame.nlargest(browse.PAGE_SIZE, "value_without")["example_id"].tolist()


def test_one_example_is_looked_at_by_a_click_and_by_its_link(
    open_page, known: tuple[Path, TrainingData]
) -> None:
    path, data = known
    app = _page(open_page, path)
    first = app.dataframe[0].value["id"].iloc[0]
    wanted = training_filters.Wanted(sort=training_filters.HURT)
    table = f"training-mislabelled-{wanted.key}-1-margin"
    app.session_state[table] = {"selection": {"rows": [0], "columns": [], "cells": []}}
    check(app.run())
    assert f"Training example {first}" in words(app)
    assert app.query_params["trained"] == first
    linked = _page(open_page, path, "&trained=3-27")
    said = words(linked)
    row = data.frame.set_index("example_id").loc["3-27"]
    assert "Training example 3-27" in said and f"Label: {row['label']}." in said
    assert f"without the stage {row['without']}" in said and "doubted by both models" in said
    (own,) = [each for each in figures(linked) if each["alt"].startswith("Loss observed")]
    assert "after step 11 of mislabelled" in own["alt"]
    assert "Training example" not in words(_page(open_page, path, "&trained=nobody"))


def test_no_example_helped_or_hurt_where_first_order_points_the_other_way(
    open_page, known: tuple[Path, TrainingData], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = known
    assert CONTRIBUTION in table(_page(open_page, path))
    for module in ("contributions", "without_data"):
        monkeypatch.setattr(f"stagelens.ui.examples.{module}.opposite", lambda *_: True)
    app = _page(open_page, path)
    said = words(app)
    assert CONTRIBUTION not in table(app) and "Groups of training examples" not in said
    assert "no training example is said to have helped or hurt" in said
    link = f"{LINK}&stage=mislabelled&example={ASKED}&look=Which+data"
    app = check(open_page(path.parent, link.replace("view=Training+data&", ""), PAGE))
    said = words(app)
    assert "no training example is said to have helped or hurt" in said
    assert "Helped most" not in said and "Hurt most" not in said
    left_out = next(box for box in app.selectbox if box.label == "Leave out")
    assert not any("helped" in each or "hurt" in each for each in left_out.options)


def test_the_texts_of_a_pair_stand_apart(open_page, short_chat: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(short_chat / "chat", tmp_path / "chat"))
    found = training_data(open_run(path), "dpo")
    app = check(open_page(tmp_path, "run=chat&view=Training+data&stage=dpo", PAGE))
    shown = table(app)
    assert len(shown) and "text" not in shown and found.facts.kind == "text"
    for name in ("prompt", "completion", "rejected"):
        assert shown[name].str.len().min() > 0
    assert not any(
        one in both for one, both in zip(shown["rejected"], shown["prompt"], strict=True)
    )


def test_groups_come_with_intervals_and_any_of_them_can_be_replayed(
    open_page, known: tuple[Path, TrainingData], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = known
    app = _page(open_page, path, "&t-by=label")
    groups = app.dataframe[1].value
    assert " to " in groups["added: 95 % interval"].iloc[0]
    assert groups["examples"].sum() == 200
    # The table and the sentence about the group that hurt most say the same number.
    effects = groups["effect (nats)"]
    assert effects.str.slice(2).astype(float).is_monotonic_decreasing
    worst = groups[effects.str.startswith("▼")].iloc[0]
    offered = f"Replay without {worst['examples']} training examples with label {worst['label']}"
    assert any(each.startswith(offered) for each in labels(app))
    assert f"made for {worst['effect (nats)'].replace('▼ ', '−')} of the margin" in words(app)
    painted = app.dataframe[1].proto.arrow_data.styler.styles.replace(",", " ").replace("{", " ")
    for row, ends in enumerate(groups["effect: 95 % interval"]):
        low, high = (float(end.replace("−", "-")) for end in ends.split(" to "))
        assert (f"row{row}_col1 " in painted) == (low * high > 0), ends
    # A single example is no sample of others.
    assert "groups-over-both" not in {each.key for each in app.button}
    # Another group by a click on its row, or by its name.
    names = groups["label"].tolist()
    key = f"training-groups-{digest('label', names)[:12]}"
    app.session_state[key] = {"selection": {"rows": [7], "columns": [], "cells": []}}
    check(app.run())
    assert any(each.endswith(f"with label {names[7]}") for each in _replays(app))
    next(box for box in app.selectbox if box.label == "Group to leave out").set_value(names[5])
    check(app.run())
    assert any(each.endswith(f"with label {names[5]}") for each in _replays(app))
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(jobs, "start", lambda arguments, title: started.append(arguments))
    check(app.button(key="without-groups").click().run())
    (asked,) = started
    assert asked[0] == "without-data" and asked[-2:] == ("--each", "label")
    ids = pd.read_csv(asked[-3], dtype=str)
    hurt = groups["label"][effects.str.startswith("▼")].tolist()
    assert list(ids["label"].unique()) == hurt[:3] and hurt[0] == worst["label"]
    assert len(ids) == groups.set_index("label").loc[ids["label"].unique(), "examples"].sum()
    # Once some are replayed, they and not a benchmark are the measure of first order.
    assert OF_GROUPS in words(app)
    replays = dict(zip(names[:2], (0.5, -0.5), strict=True))
    monkeypatch.setattr(Grouping, "effect", lambda _, name: replays.get(name))
    app = check(app.run())
    table = app.dataframe[1].value
    told = table["by replay (nats)"]
    assert told.tolist() == ["▲ 0.50", "▼ 0.50", *[""] * (len(names) - 2)]
    # Replays lead: their order comes first, whatever first order says of these groups.
    replays = {names[4]: -0.2, names[6]: -7.0}
    table = check(app.run()).dataframe[1].value
    assert table["label"].tolist()[:2] == [names[6], names[4]]
    assert table["label"].tolist()[2:] == [one for one in names if one not in replays]
    assert table.columns[1] == "by replay (nats)" and "A replay leads" in words(app)
    fresh = _page(open_page, path, "&t-by=label")
    assert next(b for b in fresh.selectbox if b.label == "Group to leave out").value == names[6]
    assert "for the 2 groups that were replayed; for each of the other" in words(app)
    assert OF_GROUPS not in words(app)


def test_one_button_is_the_next_step_and_what_is_known_by_then_orders_the_list(
    open_page, known: tuple[Path, TrainingData], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(contributions, "_stored", lambda *_: None)
        app = _page(open_page, known[0])
        assert _primary(app) == ["contribute"]
        assert app.selectbox(key="t-sort").value == training_filters.UNBELIEVED
    check(app.run())
    assert _primary(app) == ["without-list"]
    assert app.selectbox(key="t-sort").value == training_filters.HURT
    app.selectbox(key="t-sort").set_value(training_filters.OFTEN)
    check(app.run())
    assert app.selectbox(key="t-sort").value == training_filters.OFTEN


def _primary(app: AppTest) -> list[str | None]:
    """Keys of the main buttons."""
    return [each.key for each in app.button if each.proto.type == "primary"]


def _replays(app: AppTest) -> list[str]:
    """Labels of the buttons that replay, without their predicted times."""
    return [each.split(", predicted")[0] for each in labels(app) if each.startswith("Replay")]


@pytest.mark.slow
def test_intervals_of_groups_can_be_over_evaluation_examples_too(
    open_page, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(demo, tmp_path / "digits"))
    run = open_run(path)
    training_data(run, "adapt")
    contribute(run, "mixed-up", Question(), "margin", since="adapt")
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(jobs, "start", lambda arguments, title: started.append(arguments))
    app = check(open_page(tmp_path, f"{LINK}&stage=adapt&t-by=label", PAGE))
    before = app.dataframe[1].value["added: 95 % interval"]
    # Of examples that come from fewer sources the command would refuse.
    with monkeypatch.context() as patched:
        patched.setattr("stagelens.ui.examples.training_groups.folds", lambda *_: [("x",)] * 3)
        assert "groups-over-both" not in {each.key for each in check(app.run()).button}
    check(app.run())
    check(app.button(key="groups-over-both").click().run())
    (asked,) = started
    assert asked[:1] == ("training-data",) and "--over-evaluation" in asked
    contribute_to_parts(run, "mixed-up", Question(), "margin", "adapt")
    app = check(app.run())
    assert "groups-over-both" not in {each.key for each in app.button}
    assert "and for what they added also other evaluation examples, been drawn" in words(app)
    assert (app.dataframe[1].value["added: 95 % interval"] != before).any()


@pytest.mark.slow
def test_a_replay_without_examples_is_started_and_what_it_gave_is_said(
    open_page, known: tuple[Path, TrainingData], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(known[0], tmp_path / "digits"))
    app = _page(open_page, path)
    started: list[tuple[str, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "start", lambda arguments, title: started.append(arguments))
        check(app.button(key="without-list").click().run())
    ((command, _, _, stage, *rest, file, _, said),) = started
    assert (command, stage) == ("without-data", "mislabelled")
    assert rest == ["--set", "mixed-up", "--divisor", "rest", "--ids"]
    assert said == "that hurt example clean-044 most"
    ids = Path(file).read_text().split("\n")
    assert len(ids) == 20 and ids[0] == app.dataframe[0].value["id"].iloc[0]
    found = without_data(open_run(path), "mixed-up", Chosen("mislabelled", tuple(ids), said))
    rows = found.table[found.table["example_id"] == ASKED]
    assert set(rows["prediction_without"]) == {"4"}
    said = words(_page(open_page, path))
    assert (
        "Without 20 training examples of mislabelled the answer to clean-044 is 4 (right); the "
        "final model says 1 (wrong)." in said
    )
    assert "not a new training without them" in said
    assert "Without 20 examples of mislabelled that hurt example clean-044 most, the " in said
    again = _page(open_page, path)
    assert "without-list" not in {each.key for each in again.button}
    assert _primary(again) == ["without-list-control"]
    # As many others, drawn at random, are the next replay, and stand beside these then.
    started.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "start", lambda arguments, title: started.append(arguments))
        check(again.button(key="without-list-control").click().run())
    ((*same, option, count),) = started
    assert same[:4] == [command, str(path), "--stage", "mislabelled"]
    assert (option, count) == ("--controls", "1") and same[same.index("--ids") + 1] == file
    run = open_run(path)
    others = control(training_rows(run, run.stage("mislabelled")), found.chosen)
    without_data(run, "mixed-up", others)
    beside = words(_page(open_page, path))
    assert "20 drawn at random: " in beside and " by replay, less harm than these." in beside
    # It is told beside the stages too, of the same examples as these.
    over = words(check(open_page(path.parent, "run=digits&set=mixed-up&measure=margin", "app.py")))
    assert "Without 20 examples of mislabelled that hurt example clean-044 most, the mean " in over
    assert "not a new training without them" in over


def test_what_is_missing_of_it_is_offered_beside_what_is_there(
    open_page, known: tuple[Path, TrainingData], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(known[0], tmp_path / "digits"))
    answers_path(open_run(path), "mislabelled").unlink()
    app = _page(open_page, path)
    assert "Some of it is there already." in words(app)
    assert "answer" not in app.dataframe[0].value and "Doubted by" not in labels(app)
