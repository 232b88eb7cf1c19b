"""Effects of training examples: the model without them, measured, stored, and told."""

from __future__ import annotations

import json
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import stagelens
from stagelens.analyses.contributions.computing import contribute
from stagelens.analyses.contributions.contribution_table import Question
from stagelens.analyses.training_data.tables import (
    LOOKS,
    ColumnFacts,
    LookFacts,
    columns_path,
    save_looks,
)
from stagelens.analyses.without_data import computing
from stagelens.analyses.without_data.as_stages import without_some
from stagelens.analyses.without_data.chosen import (
    Chosen,
    by_filter,
    by_ids,
    by_slice,
    listed,
    load_listed,
    one_line,
    read_ids,
    save_slice,
)
from stagelens.analyses.without_data.computing import without_data
from stagelens.analyses.without_data.controls import control
from stagelens.analyses.without_data.first_order import first_order, first_order_of_groups
from stagelens.analyses.without_data.sentences import (
    answers,
    beyond_first_order,
    held_against,
    how,
    mean_effect,
    missed,
    named,
    sentence,
    title,
)
from stagelens.analyses.without_data.stored import load_without_data, stored_without_data
from stagelens.contracts import ACCURACY, Behaviour, Refused, StageLensError
from stagelens.effects.computing import attribute
from stagelens.effects.summary import stage_summary
from stagelens.report.sections import whole_report
from stagelens.runs import fact_tables
from stagelens.runs.run import Run
from stagelens.runs.training_rows import TrainingRows, training_rows
from stagelens.wording.trust_words import trust_word
from tests.support import small_runs
from tests.support.small_runs import Optimizer, Phase, record
from tests.unit.conftest import Command


def _sgd(groups: Any, rate: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, rate, momentum=0.9, weight_decay=0.01)


def _gentle(groups: Any) -> torch.optim.Optimizer:
    return _sgd(groups, 2e-3)


def _made(folder: Path, network: str = "cnn", optimizer: Optimizer = _sgd) -> Run:
    path, task = folder / "run", small_runs.make_task(network)
    record(path, network, [Phase(name, optimizer) for name in ("first", "second", "third")])
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4), dtype=np.uint8)
    with closing(stagelens.Recorder(path, resume=True, task=task)) as recorder:
        recorder.add_set("test", images=images, labels=["a", "b", "c"] * 4)
    return stagelens.open_run(path, task)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return _made(tmp_path_factory.mktemp("without"))


@pytest.fixture(scope="module")
def rows(run: Run) -> TrainingRows:
    return training_rows(run, run.stage("second"))


def test_leaving_out_all_examples_is_the_effect_of_the_stage(run: Run, rows: TrainingRows) -> None:
    every = by_ids(rows, rows.table["example_id"].tolist())
    found = without_data(run, "test", every)
    stage = attribute(run, "test", "replay", ["second"])
    columns = ["example_id", "behaviour", "final", "without", "effect", "prediction_without"]
    pd.testing.assert_frame_equal(found.table[columns], stage.table[columns])
    assert trust_word(found.facts.trust) == "exact"
    assert found.facts.skipped == found.facts.changed == found.facts.steps == 5


def test_effects_of_some_are_stored_and_read_again(
    run: Run, rows: TrainingRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = by_filter(rows, "label=a")
    found = without_data(run, "test", some)
    assert trust_word(found.facts.trust) == "exact"
    assert found.facts.uses == len(some.ids) and found.facts.all_uses == 30
    assert np.isfinite(found.table["effect"]).all() and (found.table["effect"] != 0).any()
    monkeypatch.setattr(computing, "effect_table", None)
    again = without_data(run, "test", Chosen("second", some.ids[::-1], "in another order"))
    pd.testing.assert_frame_equal(again.table, found.table)
    examples = run.evaluation_set("test")
    assert load_without_data(run, examples, some.left_out("kept")) is None
    assert some.ids in [facts.ids for facts in stored_without_data(run, examples).values()]


def test_the_model_itself_is_stored_for_other_sets(
    run: Run, rows: TrainingRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stagelens.estimators import without_rows as made

    some = by_ids(rows, ["1-0", "2-3"])
    first = made.without_rows(run, some.left_out("rest"))
    monkeypatch.setattr(made, "_places", None)
    again = made.without_rows(run, some.left_out("rest"))
    assert first.weights is not None and again.weights is not None
    for name, tensor in first.weights.items():
        assert torch.equal(again.weights[name], tensor)
    assert again.part and again.trust == first.trust


def test_the_first_order_is_near_replay_where_training_is_gentle(tmp_path: Path) -> None:
    run = _made(tmp_path, optimizer=_gentle)
    rows = training_rows(run, run.stage("second"))
    some = by_filter(rows, "label=b")
    asked = contribute(run, "test", Question(), "margin")
    for divisor in ("kept", "rest"):
        estimate, known = first_order(asked, some, divisor)
        found = without_data(run, "test", some, divisor)
        exact = mean_effect(found, found.behaviours["margin"])
        assert known == len(some.ids)
        assert estimate == pytest.approx(exact, rel=0.1)
        # Of all labels at once, each leaving by itself, it is the same.
        labels = rows.table.set_index("example_id")["label"]
        parts = first_order_of_groups(asked, "second", labels, divisor)
        together = parts.groupby(labels.reindex(parts.index)).sum()
        assert together["b"] == pytest.approx(estimate, rel=1e-6)


def test_coarse_replay_of_the_later_stages_is_rough_and_of_none_exact(
    run: Run, rows: TrainingRows
) -> None:
    some = by_filter(rows, "label=a | label=b")
    exact = without_data(run, "test", some)
    found = without_data(run, "test", some, estimator="coarse-replay", settings={"budget": 1.0})
    assert trust_word(found.facts.trust) == "rough"
    assert "The stage is replayed, and the later ones coarsely" in found.facts.trust.reason
    r = np.corrcoef(found.table["effect"], exact.table["effect"])[0, 1]
    assert r > 0.9
    last = by_ids(training_rows(run, run.last), ["0-0", "1-1"])
    at_the_end = without_data(run, "test", last, estimator="coarse-replay")
    assert trust_word(at_the_end.facts.trust) == "exact"


def test_what_changes_for_those_that_are_left_is_told(tmp_path: Path) -> None:
    run = _made(tmp_path, "batch norm")
    some = by_ids(training_rows(run, run.last), ["0-0"])
    found = without_data(run, "test", some)
    assert "BatchNorm (1) computed with those of a batch that are left" in found.facts.trust.reason
    assert trust_word(found.facts.trust) == "exact"


def test_sentences_say_how_many_which_and_how(run: Run, rows: TrainingRows) -> None:
    some = by_filter(rows, "label=a")
    found = without_data(run, "test", some)
    said = str(sentence(found, found.behaviours["margin"]))
    assert said.startswith(
        f"Without {len(some.ids)} examples labelled a of second, the mean margin"
    )
    assert str(sentence(found, ACCURACY)).startswith(f"Without {len(some.ids)} examples labelled a")
    assert how(found.facts) == (
        f"{len(some.ids)} of 30 uses are left out, in {found.facts.changed} of 5 steps. Losses: "
        "mean over the rest."
    )
    one = found.table.iloc[0]
    became = answers(found, frozenset([one["example_id"]]), "image")
    right = "right" if one["prediction_without"] == one["label"] else "wrong"
    assert f"{one['prediction_without']} ({right})" in became
    assert " of 12 images would be answered otherwise: " in answers(
        found, frozenset(found.table["example_id"]), "image"
    )
    numbers = replace(found, table=found.table.drop(columns="label"))
    assert "right" not in answers(numbers, frozenset(found.table["example_id"]), "image")
    assert title(Chosen("s", ("0-0",) * 212, "with source=forum")) == "212 forum examples"
    assert title(Chosen("s", ("0-0",))) == "1 example"
    worst = Chosen("sft", ("0-0", "0-1"), "that hurt example x most")
    assert named(worst) == "2 examples of sft that hurt example x most"
    assert named(Chosen("sft", ("0-0", "0-1"), "of slice odd")) == "2 examples of slice odd of sft"
    assert one_line("with label <b>\x1b[31m\n3\u202e") == "with label <b> [31m 3"
    assert len(one_line("long " * 99)) == 120
    margin = found.behaviours["margin"]
    assert missed(-0.59, -7.37, margin) == (
        "First order was off by 6.78, 92 % of what the replay gave."
    )
    opposite = missed(-0.69, 0.13, margin)
    assert opposite == "First order was off by 0.82, with the opposite sign."
    assert missed(float("nan"), 0.13, margin) == missed(0.1, 0.0, margin) == ""


def test_replayed_groups_are_the_measure_of_the_others() -> None:
    margin = Behaviour("margin", "higher")
    said = beyond_first_order([(-0.5, -0.8), (0.2, 0.1), (0.1, 0.1)], 7, margin)
    assert said == (
        "Replay and first order differ by 0 to 0.30 for the 3 groups that were replayed; for each "
        "of the other 7 it may be as much, or more, which only a replay tells."
    )
    assert "differ by 0.20 for the 2 " in beyond_first_order([(0.1, 0.3), (0.7, 0.5)], 1, margin)
    points = beyond_first_order([(0.1, 0.3), (0.7, 0.6)], 1, ACCURACY)
    assert "differ by 10 to 20 points for the 2 groups" in points
    # One says nothing of how alike groups are; and there may be none left to say it of.
    assert beyond_first_order([(0.1, 0.3)], 7, margin) == ""
    assert beyond_first_order([(0.1, 0.3), (0.5, 0.7)], 0, margin) == ""
    assert beyond_first_order([(float("nan"), 0.3), (0.5, 0.7)], 2, margin) == ""


def test_examples_are_chosen_by_file_and_by_slice(
    run: Run, rows: TrainingRows, tmp_path: Path
) -> None:
    (tmp_path / "ids.txt").write_text("1-0\n\n0-3\n")
    assert by_ids(rows, read_ids(tmp_path / "ids.txt")).ids == ("0-3", "1-0")
    rows.table[["example_id", "label"]].head(2).to_csv(tmp_path / "ids.csv", index=False)
    assert read_ids(tmp_path / "ids.csv") == ["0-0", "0-1"]
    rows.table[["example_id"]].head(3).to_parquet(tmp_path / "ids.parquet")
    assert read_ids(tmp_path / "ids.parquet") == ["0-0", "0-1", "0-2"]
    save_slice(run, "odd ones", by_filter(rows, "label=c"))
    found = by_slice(run, run.stage("second"), rows, "odd ones")
    assert found.ids == by_filter(rows, "label=c").ids and found.words == "of slice odd ones"


def test_columns_that_were_given_for_training_data_can_be_asked_for(tmp_path: Path) -> None:
    run = _made(tmp_path)
    stage = run.stage("second")
    rows = training_rows(run, stage)
    sources = [("forum", "book")[number % 2] for number in range(len(rows))]
    given = rows.table[["example_id"]].assign(source=sources, label="never this one")
    facts = ColumnFacts(run_digest=run.digest, stage="second", source="sft.jsonl", unmatched=0)
    fact_tables.write(columns_path(run, "second"), given, facts)
    known = listed(run, stage)
    assert known.facts.columns == ("source",)
    assert known.table["label"].tolist() == rows.table["label"].tolist()
    some = by_filter(known, "source=forum & label=a")
    assert 0 < len(some.ids) < len(by_filter(rows, "label=a").ids)
    again = load_listed(run, stage)
    assert again is not None and by_filter(again, "source=forum & label=a") == some


def test_filters_ask_for_what_is_stored_of_training_data(tmp_path: Path) -> None:
    run = _made(tmp_path)
    stage = run.stage("second")
    rows = training_rows(run, stage)
    ids, many = rows.table["example_id"], len(rows)
    said = [json.dumps({"text": "The cat" if n % 3 else "a dog"}).encode() for n in range(many)]
    looks = pd.DataFrame({"example_id": ids, "length": 7, "shown": said}).astype(LOOKS)
    save_looks(run, looks, LookFacts(run_digest=run.digest, stage="second", kind="text"))
    known = listed(run, stage)
    assert known.facts.columns == ("length", "text")
    cats = by_filter(known, "text~the & length=7")
    assert cats.ids == tuple(ids[[n for n in range(many) if n % 3]])
    # An answer to the same examples is found again, however they were chosen.
    assert cats.left_out("rest") == by_ids(rows, cats.ids).left_out("rest")
    with pytest.raises(StageLensError, match="length has 7"):
        by_filter(known, "length=8")


def test_what_cannot_be_left_out_is_told(run: Run, rows: TrainingRows, tmp_path: Path) -> None:
    with pytest.raises(StageLensError, match="no training example of stage 'second' fits"):
        by_filter(rows, "label=z")
    with pytest.raises(StageLensError, match=r"uses=99'; label has a, b.*; uses has"):
        by_filter(rows, "label=z & uses=99")
    with pytest.raises(StageLensError, match="a part of 'content', which is a digest of the whole"):
        by_filter(rows, "content~the")
    content = rows.table["content"].iloc[0]
    assert rows.table["example_id"].iloc[0] in by_filter(rows, f"content={content}").ids
    with pytest.raises(StageLensError, match="stagelens training-data RUN --stage second stores"):
        by_filter(rows, "text~the")
    with pytest.raises(StageLensError, match="no training example '9-9'"):
        by_ids(rows, ["9-9"])
    with pytest.raises(StageLensError, match="no ids"):
        by_ids(rows, [])
    with pytest.raises(StageLensError, match="no slice 'none' of training examples; save one"):
        by_slice(run, run.stage("second"), rows, "none")
    with pytest.raises(Refused, match="obtained by replay or coarse-replay, and not by task-vec"):
        without_data(run, "test", by_ids(rows, ["0-0"]), estimator="task-vector")
    (tmp_path / "ids.csv").write_text("a,b\n1,2\n")
    with pytest.raises(StageLensError, match="has no column example_id; it has a, b"):
        read_ids(tmp_path / "ids.csv")
    with pytest.raises(StageLensError, match="cannot be read as ids"):
        read_ids(tmp_path / "missing.txt")


def test_the_command_lists_examples_and_leaves_some_out(
    copied: Path, command: Command, tmp_path: Path
) -> None:
    given = ("training-rows", copied, "--stage", "mislabelled", "--where", "label=4")
    listed = command(*given, "--save", "fours", "--out", tmp_path / "rows.csv")
    assert listed.status == 0, listed.err
    fours = pd.read_csv(tmp_path / "rows.csv", dtype=str)
    assert (fours["label"] == "4").all() and fours["uses"].astype(int).eq(6).all()
    given = ("without-data", copied, "--stage", "mislabelled", "--set", "mixed-up")
    found = command(*given, "--slice", "fours", "--out", tmp_path / "effects.csv")
    assert found.status == 0, found.err
    said = re.sub(r"\s+", " ", found.out)
    assert f"Without {len(fours)} examples of slice fours of mislabelled, the mean margin" in said
    assert re.search(r"loss \(lower is better\) │ \S+ │ \S+ to \S+ │", said)  # with its interval
    for kind in ("the mean loss", "accuracy"):  # each said, as a loss points the other way
        assert f"of mislabelled, {kind} on all images" in said
    assert "it is not a new training without them" in said and "exact: " in said
    table = pd.read_csv(tmp_path / "effects.csv")
    assert (table["trust"] == "exact").all() and (table["stage"] == "mislabelled").all()
    told = [f"{len(fours)} examples of slice fours of mislabelled", len(fours), "rest"]
    assert table[["without", "left_out", "divisor"]].drop_duplicates().values.tolist() == [told]
    again = command(*given, "--ids", tmp_path / "rows.csv")
    assert "examples of slice fours" in again.out  # the same question, asked first as a slice
    wrong = command(*given, "--where", "label=4", "--slice", "fours")
    assert wrong.status == 1 and "one of --where, --ids, --example and --slice" in wrong.err
    some = ("--example", "0-3", "--words", "with label\n3")
    assert "1 example of mislabelled with label 3" in command(*given, *some).out
    opened = stagelens.open_run(copied)
    (kept,) = [
        facts.words
        for facts in stored_without_data(opened, opened.evaluation_set("mixed-up")).values()
        if facts.ids == ("0-3",)
    ]
    assert kept == "with label 3"
    wrong = command(*given, "--where", "label=4", "--words", "odd")
    assert wrong.status == 1 and "--words needs --ids or --example" in wrong.err
    wrong = command(*given, "--where", "label=4", "--divisor", "none")
    assert wrong.status == 1 and "no divisor 'none'; give rest or kept" in wrong.err


def test_replays_are_told_and_reported_like_stages_with_their_intervals(
    rows: TrainingRows, tmp_path: Path
) -> None:
    run = _made(tmp_path)
    examples = run.evaluation_set("test")
    assert without_some(run, examples) is None
    every = rows.table["example_id"].tolist()
    for ids in (every, every[:2], every[1:3]):
        without_data(run, "test", by_ids(rows, ids))
    # What others are held against is no finding of its own.
    without_data(run, "test", control(rows, by_ids(rows, every[:2])))
    found = without_some(run, examples)
    assert found is not None
    names = [*found.trust]
    assert len(names) == 3
    # Two choices of as many are told apart by their first.
    assert names[0] == f"2 examples of second, {every[1]} the first"
    assert names[1] == f"2 examples of second, {every[0]} the first"
    assert names[2] == f"{len(every)} examples of second"
    assert all(trust.stage == name for name, trust in found.trust.items())
    # All of them together are the stage, in every number that is shown of one.
    behaviour = next(kind for kind in found.behaviours.values() if kind.name != "accuracy")
    stage = attribute(run, "test", "replay", ["second"])
    expected = stage_summary(
        stage.table[stage.table["behaviour"] == behaviour.name], behaviour, ["second"]
    )
    own = found.means(behaviour)
    for column in ("n", "effect", "gain", "credit", "blame", "error", "freedom"):
        assert own[column].iloc[2] == pytest.approx(expected[column].iloc[0], nan_ok=True), column
    said = [str(one) for one in found.sentences(own, behaviour, "image")]
    assert said[2].startswith(f"Without {len(every)} examples of second, the mean ")
    one = examples.table()["example_id"].iloc[0]
    assert found.means(behaviour, frozenset([one]))["n"].tolist() == [1, 1, 1]
    report, _ = whole_report(run, "test")
    (section,) = [one for one in report.sections if one.title == "Without some training data"]
    assert section.findings and section.findings[0].seen.trust[0].stage == names[0]


def test_replays_of_a_stage_say_how_far_first_order_was_off_there() -> None:
    margin = Behaviour("margin", "higher")
    pairs = [(-0.59, -7.37), (-0.69, 0.13), (float("nan"), 1.0)]
    said = held_against(pairs, "shortcut", margin)
    assert said == (
        "For the 2 choices of examples of shortcut that were replayed, first order was off by "
        "0.82 to 6.78, in 1 with the opposite sign."
    )
    one = held_against([(1.0, 2.0)], "shortcut", margin)
    assert one.startswith("For the one choice of examples") and one.endswith("off by 1.00.")
    assert held_against(pairs[2:], "shortcut", margin) == ""
