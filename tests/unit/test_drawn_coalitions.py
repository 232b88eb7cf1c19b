"""Shares of a recipe: every coalition in each draw, by hand and against what draws say already."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stagelens.analyses.shares.drawn_shares import DrawnShares, drawn_shares_of
from stagelens.analyses.shares.pairs import pairs_of
from stagelens.analyses.shares.sentences import total_sentence
from stagelens.analyses.shares.share_table import ALONE, READINGS, SEEN_AFTER, SHARE, WITHOUT
from stagelens.contracts import no_progress
from stagelens.effects.draws import interval_over_draws
from stagelens.measuring.models import empty_model, measure
from stagelens.replaying.draw_plan import Draw, coalition_passes
from stagelens.replaying.draws import drawn_coalitions, drawn_models, order_of
from stagelens.runs.run import Run, open_run
from stagelens.trust import drawing_coalitions, draws, one_draw
from stagelens.trust.drawing_coalitions import measure_coalitions_of_draws
from stagelens.trust.drawn_coalitions import of_recipe, predicted_cost, stored
from tests.support.loops import Plan, differing, make_batches, make_task, record_plans, run_plans
from tests.support.made_draws import measure_draws
from tests.unit.conftest import Command
from tests.unit.test_draws import mlp
from tests.unit.test_replay import DROPOUT, carried, new

__all__ = ["mlp"]  # a fixture

PLAIN = {"kind": "cnn", "channels": [4, 4], "hidden": 6, "batch_norm": True}


@pytest.fixture
def fresh(run: Run, tmp_path: Path) -> Run:
    """The run without draws of other tests."""
    return open_run(shutil.copytree(run.path, tmp_path / "run"), run.task)


def plans(order=None) -> list[Plan]:
    """Three stages; with the batches of each in another order."""
    made = []
    for number, optimizer in enumerate((new("adamw"), carried, new("momentum"))):
        batches = make_batches(4, seed=number)
        own = batches if order is None else [batches[place] for place in order[number]]
        made.append(Plan(f"s{number}", optimizer, data=lambda *_, own=own: own))
    return made


@pytest.mark.parametrize("resample", [True, False])
def test_a_coalition_of_a_draw_is_what_training_by_hand_gives(
    resample: bool, tmp_path: Path
) -> None:
    task = make_task(PLAIN)
    run = record_plans(tmp_path / "run", task, plans())
    draw = Draw(3, resample)
    by_hand = plans([order_of(draw, stage) for stage in run.stages])
    found = dict(drawn_coalitions(run, draw, range(8)))
    assert list(found) == [7, 3, 5, 1, 6, 2, 4, 0]
    for mask, weights in found.items():
        without = [f"s{place}" for place in range(3) if not mask >> place & 1]
        assert differing(weights, run_plans(task, by_hand, without=without).model) == [], mask


def test_the_models_of_a_draw_are_among_its_coalitions(tmp_path: Path) -> None:
    """With dropout drawn anew, too."""
    run = record_plans(tmp_path / "run", make_task(DROPOUT), plans())
    draw = Draw(1, resample=True)
    found = dict(drawn_coalitions(run, draw, range(8)))
    for name, there, weights in drawn_models(run, draw, run.stages):
        mask = 7 if there else 7 & ~(1 << run.stage(name).index)
        assert differing(found[mask], weights) == []
    # Only what some coalitions take is run.
    assert coalition_passes([0b101, 0b111]) == [0, 1, 2, 2] and len(coalition_passes(range(8))) == 7
    few = dict(drawn_coalitions(run, draw, [0, 0b100]))
    assert set(few) == {0, 4} and not differing(few[4], found[4])


def test_shares_over_draws_are_means_of_each_draws_shares_and_add_up(
    fresh: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = measure_coalitions_of_draws(fresh, ["test"], 3, no_progress)["test"]
    assert kept.count == 3 and of_recipe(fresh, "test") is not None
    for behaviour in ("margin", "accuracy"):
        found = drawn_shares_of(kept, behaviour)
        assert found is not None
        totals = [float((v[7] - v[0]).mean()) for v in found.drawn_v]
        for reading in (SHARE, SEEN_AFTER):
            each = found.in_each_draw(reading)
            np.testing.assert_allclose(each.sum(axis=1), totals, atol=1e-9)
            np.testing.assert_allclose(
                found.reading(reading).sum(axis=0), found.final - found.base, atol=1e-9
            )
        for reading in READINGS:
            each = found.in_each_draw(reading)
            for party, one in enumerate(found.means(reading)):
                over = interval_over_draws(each[:, party], "recipe", None, kept.facts[0].batches)
                assert one.mean == pytest.approx(over.mean)
                assert one.trust.trust != "exact" and one.n == 60
                assert one.interval is not None
                if np.isnan(over.low):  # all draws are alike: over the examples
                    assert behaviour == "accuracy" and one.interval.drawn == ""
                    continue
                assert one.interval.drawn == "3 redraws"
                assert (one.interval.low, one.interval.high) == pytest.approx((over.low, over.high))
        few = np.arange(60) < 20
        (one, *_) = found.means(SHARE, few)
        np.testing.assert_allclose(one.mean, found.in_each_draw(SHARE, few)[:, 0].mean())
        if (
            one.interval is not None and one.interval.drawn
        ):  # the trust of a group's mean goes by its own interval
            width = (one.interval.high - one.interval.low) / abs(one.mean)
            assert dict(one.trust.over_draws)[behaviour] == pytest.approx(width)
        (pair, *_) = pairs_of(found)
        given = [v[7] - v[6] - v[5] + v[4] for v in found.drawn_v]
        assert pair.given_all.mean == pytest.approx(np.mean(given))
    # Leaving out one stage is what draws say of it, bit for bit, and takes no further training.
    monkeypatch.setattr(one_draw, "drawn_models", lambda *_: pytest.fail("trained again"))
    effects = measure_draws(fresh, "test", 3, no_progress)
    own = effects.table[effects.table["behaviour"] == "margin"]
    margins = drawn_shares_of(kept, "margin")
    assert margins is not None
    for number, v in enumerate(margins.drawn_v):
        for party, name in enumerate(margins.names):
            rows = own[(own["draw"] == number) & (own["stage"] == name)]
            np.testing.assert_array_equal(rows["effect"], v[7] - v[7 & ~(1 << party)])
    monkeypatch.undo()
    alone = measure_draws(open_run(copy_without(fresh), fresh.task), "test", 3, no_progress)
    keys = ["stage", "behaviour", "draw", "example_id"]
    tables = [each.table.sort_values(keys, ignore_index=True) for each in (effects, alone)]
    pd.testing.assert_frame_equal(*tables)


def copy_without(run: Run) -> Path:
    """The run in another folder, without results."""
    path = Path(shutil.copytree(run.path, run.path.parent / "again"))
    shutil.rmtree(path / "results")
    return path


def test_draws_are_kept_one_by_one_and_trained_once_for_all_sets(
    fresh: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(fresh.path / "sets" / "test", fresh.path / "sets" / "other")
    trained: list[int] = []

    def noted(run: Run, draw: Draw, *rest: object):
        trained.append(draw.number)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return drawn_coalitions(run, draw, *rest)

    monkeypatch.setattr(drawing_coalitions, "drawn_coalitions", noted)
    with pytest.raises(KeyboardInterrupt):
        measure_coalitions_of_draws(fresh, ["test"], 3, no_progress, "same data")
    kept = stored(fresh, "test", "same data")
    assert kept is not None and [one.draw for one in kept.facts] == [0] and not kept.enough
    found = measure_coalitions_of_draws(fresh, ["test"], 3, no_progress, "same data")
    assert trained == [0, 1, 1, 2] and found["test"].count == 3
    assert of_recipe(fresh, "test") is None, "on the same data less is said"
    # Intervals go by which draws have the data of another, so none is left out.
    kept.paths[0].unlink()
    assert stored(fresh, "test", "same data") is None
    assert predicted_cost(fresh, 4)[0] == 28


def test_stages_are_shared_out_over_draws_from_the_command_line(mlp: Run, command: Command) -> None:
    path = mlp.path
    answer = command("draws", path, "--number", 3, "--shares", "--same-data")
    assert answer.status == 0, answer.err
    assert "3 draws to make: 9 stage passes" in answer.err
    for said in (
        "Mean stage effects on set test",
        "Shares in margin on test, of this recipe on the same data: 3 redraws",
        "together",
        "Over 3 redraws of the recipe, training as a whole made the mean margin on all examples",
    ):
        assert said in answer.out, said
    again = command("draws", path, "--number", 3, "--shares", "--same-data", "--json")
    assert "to make" not in again.err
    rows = json.loads(again.out)
    shares = [row for row in rows if row.get("share") is not None and row["behaviour"] == "margin"]
    assert [row["stage"] for row in shares] == ["first", "second"]
    total = shares[0]["final_model"] - shares[0]["base"]
    assert sum(row["share"] for row in shares) == pytest.approx(total, abs=1e-6)
    for options, says in (
        (("--given-earlier",), "does not go with --given-earlier"),
        (("--stage", "first"), "--shares"),
        (("--width", "1", "--same-data"), "--shares"),
    ):
        refused = command("draws", path, "--shares", *options)
        assert refused.status == 1 and says in refused.err, refused.err


def test_one_draw_gives_means_without_intervals(fresh: Run) -> None:
    kept = measure_coalitions_of_draws(fresh, ["test"], 1, no_progress)["test"]
    found = drawn_shares_of(kept, "loss")
    assert isinstance(found, DrawnShares)
    assert all(one.interval is None and np.isfinite(one.mean) for one in found.means(ALONE))
    assert "(no interval over draws)" in str(total_sentence(found, "image"))
    assert drawn_shares_of(kept, "grace") is None
    examples = fresh.evaluation_set("test")
    weights = dict(drawn_coalitions(fresh, Draw(0, True), [5], kept.facts[0].seen))[5]
    (one,) = measure(
        fresh.task, empty_model(fresh), [weights], examples.batches(256), examples.count
    )
    np.testing.assert_array_equal(found.drawn_v[0][5], one.values["loss"])
    assert draws.of_recipe(fresh, "test") is not None
    assert found.means(WITHOUT)[2].n == 60
