"""The run digest covers the recorded training, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

import stagelens
from stagelens.effects.computing import attribute
from tests.support.loops import TWO_STAGES, Plan, make_batches, record_two, sgd


def test_the_same_training_recorded_twice_has_the_same_digest(tmp_path: Path) -> None:
    digests = [record_two(tmp_path / name, name="run").digest for name in ("one", "two")]
    assert digests[0] == digests[1]


def test_the_digest_does_not_depend_on_when_it_was_written_or_what_it_is_called(
    tmp_path: Path,
) -> None:
    usual = record_two(tmp_path / "run").digest
    settings = {"flush_every": 1, "description": "another", "checkpoint_every": 5}
    plans = [Plan(plan.name, plan.optimizer, recorder=settings) for plan in TWO_STAGES]
    assert record_two(tmp_path / "other", plans, name="other").digest == usual


def test_sets_and_results_do_not_change_the_digest(tmp_path: Path) -> None:
    run = record_two(tmp_path / "run")
    before = run.digest
    recorder = stagelens.Recorder(run.path, run.task, resume=True)
    recorder.add_set("another", images=make_batches(1)[0][0])
    attribute(run, "test", "replay")
    assert stagelens.open_run(run.path).digest == before


@pytest.mark.parametrize(
    "other",
    [
        [Plan("first", sgd, batches=5), TWO_STAGES[1]],
        [Plan("first", sgd, recorder={"keep_batches": "none"}), TWO_STAGES[1]],
        [Plan("first", sgd, loop={"clip_norm": 1e9}), TWO_STAGES[1]],
        [Plan("First", sgd), TWO_STAGES[1]],
        TWO_STAGES[::-1],
        TWO_STAGES[:1],
    ],
    ids=["fewer steps", "other batches kept", "clipping", "name", "order", "fewer stages"],
)
def test_another_training_has_another_digest(other: list[Plan], tmp_path: Path) -> None:
    assert record_two(tmp_path / "a").digest != record_two(tmp_path / "b", other).digest
