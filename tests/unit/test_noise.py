"""The noise floor: effects in other orders of the recorded batches, and what they mark."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stagelens.effects.computing import attribute
from stagelens.effects.summary import with_accuracy
from stagelens.measuring.models import measure
from stagelens.replaying.replay import replay_later
from stagelens.runs.run import Run, open_run
from stagelens.trust import noise, verification

QUIET = lambda *_: None  # noqa: E731


def test_the_noise_floor_is_the_paired_replay_in_another_order(run: Run) -> None:
    found = noise.measure_noise(run, "test", 2, QUIET)
    assert set(found["stage"]) == {"first", "second"}
    random = np.random.default_rng(1)
    orders = {s.name: random.permutation(s.steps).tolist() for s in run.stages}
    stage = run.stages[0]
    pair = [
        replay_later(run, stage, state, orders=orders).state.model
        for state in (stage.end(), stage.start())
    ]
    examples = run.evaluation_set("test")
    model = run.task.build_model()
    with_stage, without = measure(run.task, model, pair, examples.batches(256), examples.count)
    here = found[(found["order"] == 1) & (found["stage"] == "first")]
    mine = here[here["behaviour"] == "margin"]
    effect = with_stage.values["margin"] - without.values["margin"]
    np.testing.assert_allclose(mine["effect"], effect)
    labels = examples.table([])["label"].to_numpy()
    right = (with_stage.answers == labels).astype(float) - (without.answers == labels)
    mine = here[here["behaviour"] == "accuracy"]
    np.testing.assert_array_equal(mine["effect"], right)


def test_effects_below_two_noise_sd_are_marked_and_unknown_noise_is_not(run: Run) -> None:
    noise.measure_noise(run, "test", 2, QUIET)
    plain = attribute(run, "test", "replay")
    assert plain.table["within_noise"].isna().all()
    table = verification.trusted(run, plain).table
    orders = noise.load_orders(run, "test")
    assert orders is not None
    known = noise.noise_sd(orders)
    first = table["stage"] == "first"
    key = pd.MultiIndex.from_frame(table.loc[first, ["stage", "behaviour", "example_id"]])
    sd = known.reindex(key).to_numpy()
    expected = table.loc[first, "effect"].abs() < 2 * sd
    assert (table.loc[first, "within_noise"] == expected).all()
    assert 0 < expected.mean() < 1
    assert table.loc[table["stage"] == "third", "within_noise"].isna().all()


def test_the_recorded_order_is_one_of_the_orders_of_the_noise_sd(run: Run) -> None:
    noise.measure_noise(run, "test", 1, QUIET)
    recorded = with_accuracy(attribute(run, "test", "replay").table)
    orders = noise.load_orders(run, "test")
    assert orders is not None and noise.RECORDED in set(orders["order"])
    key = ("first", "accuracy")
    of = orders[(orders["stage"] == key[0]) & (orders["behaviour"] == key[1])]
    pair = of.pivot(index="example_id", columns="order", values="effect")
    own = recorded[(recorded["stage"] == key[0]) & (recorded["behaviour"] == key[1])]
    assert pair[noise.RECORDED].loc[own["example_id"]].tolist() == own["effect"].tolist()
    sd = noise.noise_sd(of).loc[key]
    pd.testing.assert_series_equal(sd, pair.std(axis=1), check_names=False)


def test_one_order_alone_is_no_noise_that_is_known(run: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run.path, tmp_path / "run"))
    shutil.rmtree(folder / "results")
    fresh = open_run(folder, run.task)
    noise.measure_noise(fresh, "test", 1, QUIET)
    vector = attribute(fresh, "test", "task-vector").table
    assert noise.marked(vector, noise.load_orders(fresh, "test"))["within_noise"].isna().all()


def test_further_orders_are_added_to_those_that_are_stored(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = noise.measure_noise(run, "test", 1, QUIET)
    both = noise.measure_noise(run, "test", 2, QUIET)
    assert set(both["order"]) == {0, 1}
    again = both[both["order"] == 0].reset_index(drop=True)
    of = first[first["order"] == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, of)
    monkeypatch.setattr("stagelens.replaying.replay.replay_later", None)  # nothing is replayed
    pd.testing.assert_frame_equal(noise.measure_noise(run, "test", 2, QUIET), both)
