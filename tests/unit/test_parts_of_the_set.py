"""Intervals of what groups of training examples contributed, over evaluation examples too."""

from __future__ import annotations

import shutil
from contextlib import closing

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import stagelens
from stagelens.analyses.contributions import sweeping_parts
from stagelens.analyses.contributions.computing import contribute
from stagelens.analyses.contributions.contribution_table import Question
from stagelens.analyses.contributions.parts_of_the_set import load_parts, parts_path
from stagelens.analyses.contributions.sweeping_parts import contribute_to_parts
from stagelens.analyses.training_data.groups import CONTRIBUTION, group_table
from stagelens.cli import app
from stagelens.contracts import Example, Refused, StageLensError
from stagelens.effects.contrasts import mean_spread
from stagelens.runs.run import Run
from stagelens.runs.sets.folds import folds
from stagelens.tasks import ImageClassification

PIXELS = np.random.default_rng(0).integers(0, 256, (18, 4, 4), dtype=np.uint8)
LABELS = ["ab"[n % 2] for n in range(18)]
SOURCES = [f"{n // 2}" for n in range(12)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two stages over six images; twelve others, of six sources, and one without a label."""
    path = tmp_path_factory.mktemp("parts") / "run"
    task = ImageClassification("ab", (1, 4, 4), {"kind": "mlp", "hidden": [5]})
    torch.manual_seed(0)
    model = task.build_model()
    given = zip(PIXELS[:6], LABELS, strict=False)
    images, labels = task.collate([Example("", {"image": p}, k) for p, k in given])
    with closing(stagelens.Recorder(path, task, name="tiny")) as recorder:
        for name, steps in (("first", 3), ("second", 4)):
            optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
            with recorder.stage(name, model=model, optimizer=optimizer) as stage:
                for step in range(steps):
                    rows = torch.arange(3) + 3 * (step % 2)
                    loss = task.loss(model, (images[rows], labels[rows]))
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    stage.step((images[rows], labels[rows]), loss)
        recorder.add_set(
            "test",
            images=np.concatenate([PIXELS[6:], PIXELS[:1]]),
            labels=[*LABELS[6:], None],
            columns={"cluster": [*SOURCES, "none"]},
        )
    return stagelens.open_run(path, task)


def test_parts_add_up_and_their_spread_is_that_of_single_examples(run: Run) -> None:
    """With a part per source it is the clustered standard error of the mean."""
    parts = contribute_to_parts(run, "test", Question(), "margin", "second", count=6)
    assert parts.facts.counts == (2,) * 6  # the example without a label has no margin
    whole = contribute(run, "test", Question(), "margin", since="second")
    every = whole.part("example", "second")
    ids = every["step"].astype(str) + "-" + every["position"].astype(str)
    values = pd.Series(every["value"].to_numpy(float), ids)
    np.testing.assert_allclose(parts.table.loc[values.index] @ parts.weights, values, rtol=1e-5)
    asked = Question().of(run.evaluation_set("test"))[:12]
    single = []
    group = values.index[:4].tolist()
    for name in asked:
        own = contribute(run, "test", Question(ids=(name,)), "margin", since="second")
        rows = own.part("example", "second")
        names = rows["step"].astype(str) + "-" + rows["position"].astype(str)
        single.append(rows["value"].to_numpy(float)[names.isin(group).to_numpy()].sum())
    expected = mean_spread(np.array(single), np.array(SOURCES, dtype=int))
    error, freedom = parts.error(group)
    assert error == pytest.approx(expected.error, rel=1e-6)
    assert freedom == pytest.approx(expected.freedom) and freedom == 5


def test_intervals_hold_both_kinds_of_examples(run: Run) -> None:
    parts = contribute_to_parts(run, "test", Question(), "margin", "second", count=6)
    frame = pd.DataFrame({"example_id": parts.table.index, "uses": 1})
    frame[CONTRIBUTION] = (parts.table @ parts.weights).to_numpy(float)
    groups = pd.Series(["x"] * 3 + ["y"] * 3)
    plain = group_table(frame, groups).set_index("group")
    both = group_table(frame, groups, parts).set_index("group")
    pd.testing.assert_series_equal(plain["contribution"], both["contribution"])
    assert plain["evaluation_error"].isna().all()
    ids = frame["example_id"].tolist()
    assert both.loc["x", "evaluation_error"] == pytest.approx(parts.error(ids[:3])[0])
    for name in "xy":
        own, row = plain.loc[name], both.loc[name]
        assert (row["low"] + row["high"]) / 2 == pytest.approx(row["contribution"])
        assert row["training_error"] == pytest.approx(own["training_error"])
    # One training example has no spread of its own: nothing is said of it.
    alone = group_table(frame, pd.Series(["z", *"abcde"]), parts).set_index("group")
    assert alone.loc["z", ["low", "high"]].isna().all()


def test_what_was_stored_for_another_question_is_not_believed(run: Run) -> None:
    contribute_to_parts(run, "test", Question(), "margin", "second", count=6)
    examples = run.evaluation_set("test")
    ids = Question().of(examples)
    stored = parts_path(run, examples, "margin", ids, "second", count=6)
    for other in (("loss", ids, "second"), ("margin", ids[1:], "second"), ("margin", ids, "first")):
        path = parts_path(run, examples, *other, count=6)
        shutil.copy(stored, path)
        assert load_parts(run, examples, *other, count=6) is None, other
        path.unlink()
    assert load_parts(run, examples, "margin", ids, "second", count=6) is not None


def test_the_command_says_which_others_its_intervals_are_about(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["training-data", str(run.path), "--stage", "second", "--behaviour", "margin"]
    told = CliRunner().invoke(app, [*asked, "--by", "label", "--over-evaluation"])
    assert told.exit_code == 0, told.output
    said = " ".join(told.stdout.split())
    assert "had other examples of the group, and other evaluation examples, been drawn" in said
    plain = CliRunner().invoke(app, [*asked, "--by", "label"])
    assert "other evaluation examples" not in plain.stdout
    # What was swept is read the next time.
    monkeypatch.setattr(sweeping_parts, "contributions", None)
    again = contribute_to_parts(run, "test", Question(), "margin", "second")
    assert len(again.table) == 6 and again.facts.counts == (2,) * 6
    without = CliRunner().invoke(app, [*asked, "--over-evaluation"])
    assert isinstance(without.exception, StageLensError)
    assert "needs --by COLUMN" in str(without.exception)
    few = Question(ids=tuple(Question().of(run.evaluation_set("test"))[:5]))
    with pytest.raises(Refused, match="of 3 sources are too few for an interval over them"):
        contribute_to_parts(run, "test", few, "margin", "second")


def test_parts_are_of_whole_sources_whatever_the_order_of_the_question(run: Run) -> None:
    examples = run.evaluation_set("test")
    ids = Question().of(examples)
    parts = folds(examples, ids, 4)
    assert [*map(len, parts)] == [*map(len, folds(examples, ids[::-1], 4))]
    assert sorted(name for part in parts for name in part) == sorted(ids)
    source = dict(zip(ids, [*SOURCES, "none"], strict=True))
    held = [{source[name] for name in part} for part in parts]
    assert sum(map(len, held)) == 7 and not held[0] & held[1]
    assert folds(examples, ids[:1], 4) == [(ids[0],)]
