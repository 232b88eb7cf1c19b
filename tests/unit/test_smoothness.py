"""Replays with less weight say whether first order says anything of a stage's training data."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import stagelens
from stagelens.analyses.smoothness import checking
from stagelens.analyses.smoothness.checking import check_smoothness
from stagelens.analyses.smoothness.sentences import NOTHING_HERE, SMOOTH_HERE, verdict
from stagelens.analyses.smoothness.smoothness import (
    LEAST,
    REACHES,
    Smoothness,
    load_smoothness,
    reach,
    smoothness,
    smoothness_path,
)
from stagelens.cli import app
from stagelens.measuring.models import measure
from stagelens.replaying.left_out import RowsOfStage, replay_without_rows
from stagelens.runs.run import Run
from stagelens.tasks import ImageClassification

GENTLE, WILD = 0.02, 0.3


def _recorded(path: Path, rate: float) -> Run:
    """Two stages of a small network with ReLUs, on images of noise."""
    torch.manual_seed(0)
    task = ImageClassification(["a", "b", "c"], (1, 4, 4), {"kind": "mlp", "hidden": [16]})
    model = task.build_model()
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (60, 4, 4), dtype=np.uint8)
    labels = random.integers(0, 3, 60)
    images = torch.from_numpy(pixels)[:, None].float() / task.scale
    with closing(stagelens.Recorder(path, task, name="small")) as recorder:
        for name, steps in (("first", 40), ("second", 40)):
            optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
            with recorder.stage(name, model=model, optimizer=optimizer) as stage:
                for step in range(steps):
                    rows = torch.arange(10) + 10 * (step % 3)
                    batch = (images[rows], torch.from_numpy(labels)[rows])
                    loss = task.loss(model, batch)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    stage.step(batch, loss)
        recorder.add_set("test", images=pixels[40:], labels=["abc"[k] for k in labels[40:]])
    return stagelens.open_run(path, task)


@pytest.fixture(scope="module")
def gentle(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return _recorded(tmp_path_factory.mktemp("smooth") / "gentle", GENTLE)


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return _recorded(tmp_path_factory.mktemp("smooth") / "wild", WILD)


def test_the_number_is_the_part_of_the_first_change_that_goes_on() -> None:
    whole = np.zeros(4)
    half = np.array([1.0, -2.0, 3.0, 0.0])
    assert smoothness(whole, half, 3 * half) == 1
    assert smoothness(whole, half, np.zeros(4)) == -1
    assert smoothness(whole, half, half) == 0  # it does not go on at all
    # The change of 3 turns back, those of 1 and 2 go on: (1 + 2 - 3) / 6.
    assert smoothness(whole, half, np.array([2.0, -2.1, 0.0, 5.0])) == 0
    assert np.isnan(smoothness(whole, whole, half))
    assert smoothness(whole, half, np.array([2.0, np.nan, 4.0, 0.0])) == -1
    unlabelled = np.array([np.nan, 0.0])
    assert smoothness(unlabelled, unlabelled + 1, unlabelled + 2) == 1


def test_the_reach_is_the_cosine_of_the_smallest_change_and_the_whole_one() -> None:
    whole, less = np.zeros(2), np.array([3.0, 4.0])
    assert reach(whole, less, 50 * less) == pytest.approx(1)
    assert reach(whole, less, -less) == pytest.approx(-1)
    assert reach(whole, less, np.array([-4.0, 3.0])) == pytest.approx(0)
    assert np.isnan(reach(whole, whole, less)) and np.isnan(reach(whole, less, whole))
    assert reach(whole, less, np.array([np.nan, 3.0])) == -1
    assert reach(np.array([np.nan, 0.0]), less, less) == pytest.approx(1)  # unlabelled


def test_the_check_replays_a_tenth_with_all_weights(gentle: Run) -> None:
    stage = gentle.stages[0]
    found = check_smoothness(gentle, stage, "test")
    assert (found.facts.weighed, found.facts.of, found.facts.steps) == (3, 30, 80)
    examples = gentle.evaluation_set("test")
    recorded = _margins(gentle, gentle.last.end().model)
    own = found.table[found.table["behaviour"] == "margin"]
    assert own["example_id"].tolist() == [e.example_id for e in examples.examples()]
    np.testing.assert_allclose(own["whole"], recorded)
    assert (own["less"] != own["whole"]).all()
    assert (own["least"] != own["less"]).all()
    places, *_ = checking.weighed_examples(gentle, stage)
    without = replay_without_rows(gentle, stage, places, "kept").state.model
    np.testing.assert_allclose(own["without"], _margins(gentle, without))
    assert found.reach("margin") > REACHES
    assert found.of("margin") > LEAST


def _margins(run: Run, weights: dict[str, torch.Tensor]) -> np.ndarray:
    asked = run.evaluation_set("test").examples()
    (one,) = measure(run.task, run.task.build_model(), [weights], [asked], len(asked))
    return np.asarray(one.values["margin"])


def test_within_a_horizon_all_begin_in_the_middle_of_the_stage(gentle: Run) -> None:
    stage = gentle.stages[1]
    found = check_smoothness(gentle, stage, "test", horizon=4)
    assert (found.facts.horizon, found.facts.steps) == (4, 4)
    rows = RowsOfStage(gentle.task, stage, "kept")
    until = rows.replay({}, between=(0, 22)).state.model
    own = found.table[found.table["behaviour"] == "margin"]
    np.testing.assert_allclose(own["whole"], _margins(gentle, until))
    whole = check_smoothness(gentle, stage, "test", horizon=99)
    assert whole.facts.horizon is None  # the final model, as without one


def test_a_check_is_stored_for_its_stage_and_horizon(
    gentle: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, examples = gentle.stages[0], gentle.evaluation_set("test")
    found = check_smoothness(gentle, stage, "test")
    monkeypatch.setattr(checking, "RowsOfStage", None)  # nothing is replayed
    again = check_smoothness(gentle, stage, "test")
    assert again.facts == found.facts and again.of("margin") == found.of("margin")
    assert load_smoothness(gentle, "first", examples, 3) is None
    path = smoothness_path(gentle, "first", examples)
    other = smoothness_path(gentle, "first", examples, 3)
    other.write_bytes(path.read_bytes())
    assert load_smoothness(gentle, "first", examples, 3) is None  # another question's
    other.unlink()


def test_far_too_high_a_learning_rate_is_told(gentle: Run, wild: Run) -> None:
    """What leaving examples out does there, no derivative of it can say."""
    values = {}
    for run in (gentle, wild):
        found = check_smoothness(run, run.stages[0], "test")
        values[run.path.name] = found.of("margin")
        kind = run.task.behaviour_kinds[0]
        said = verdict(found, kind)
        assert said.startswith(SMOOTH_HERE if run is gentle else NOTHING_HERE)
        assert f"{found.of(kind.name):.2f}" in said
        assert found.smooth(kind.name) == (run is gentle)
    assert values["gentle"] > LEAST > 0.5 > values["wild"]


def test_smooth_changes_that_bend_further_out_are_told(gentle: Run) -> None:
    """As near the edge of stability: the smallest changes are smooth, the whole goes elsewhere."""
    found = check_smoothness(gentle, gentle.stages[0], "test")
    bent = found.table.assign(without=2 * found.table["whole"] - found.table["without"])
    check, kind = Smoothness(found.facts, bent), gentle.task.behaviour_kinds[0]
    assert check.of(kind.name) > LEAST and not check.smooth(kind.name)
    assert "goes on as it began, but without them it goes another way" in verdict(check, kind)


def test_where_nothing_changed_there_is_nothing_to_go_by(gentle: Run) -> None:
    found = check_smoothness(gentle, gentle.stages[0], "test")
    still = found.table.assign(less=found.table["whole"], least=found.table["whole"])
    check, kind = Smoothness(found.facts, still), gentle.task.behaviour_kinds[0]
    assert not check.smooth(kind.name)
    assert "nothing to go by" in verdict(check, kind)


@pytest.mark.slow
def test_the_commands_check_first_and_show_no_ranking_that_says_nothing(
    gentle: Run, wild: Run
) -> None:
    for run, words in ((gentle, SMOOTH_HERE), (wild, NOTHING_HERE)):
        folder = str(run.path)
        said = _invoke("smoothness", folder, "--stage", "second", "--set", "test")
        assert "Accuracy has no line" in said
        assert words in said
        asked = ("contributions", folder, "--since", "second", "--check-smoothness")
        printed = _invoke(*asked)
        assert f"second: {words}" in printed
        ranked = "Training examples of second" in printed
        assert ranked == (run is gentle)
        # Once it is known, it is said without being asked for.
        assert f"second: {words}" in _invoke(*asked[:-1])
    data = ("training-data", str(wild.path), "--stage", "second", "--by", "label")
    printed = _invoke(*data)
    assert NOTHING_HERE in printed and "Groups of second" not in printed
    chosen = ("select", str(wild.path), "--stage", "second", "--horizon", "4")
    assert "4 steps later" in _invoke(*chosen, "--check-smoothness").partition("smoothness")[2]


def _invoke(*arguments: str) -> str:
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    return " ".join(found.output.split())
