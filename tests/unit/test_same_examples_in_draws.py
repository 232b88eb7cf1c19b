"""An example without a value in one draw: means over draws are over the same examples in each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stagelens.analyses.shares.drawn_shares import drawn_shares_of
from stagelens.analyses.shares.sentences import cautions
from stagelens.analyses.shares.share_table import READINGS, SHARE
from stagelens.analyses.spurious.features import _is_clear
from stagelens.analyses.spurious.statistics import DrawnGains, judged_features
from stagelens.contracts import ACCURACY, Behaviour, RunError
from stagelens.effects.contrasts import mean_spread
from stagelens.effects.draws import DrawnEffects, example_sd, interval_over_draws
from stagelens.effects.results import BehaviourFacts
from stagelens.effects.summary import stage_summary
from stagelens.trust import drawn_coalitions, runs_drawn
from stagelens.trust.drawn_coalitions import DrawnCoalitionFacts, DrawnCoalitions
from stagelens.trust.draws import DrawFacts, of_recipe, sentence
from tests.support.effect_tables import effect_table
from tests.unit.test_draws import QUIET, _seeds
from tests.unit.test_spurious_features import features

SCORE = Behaviour("score", "higher")
N, K = 40, 5
EFFECTS = np.random.default_rng(0).normal(1.0, 1.0, (K, N)) + np.arange(K)[:, None] / 5


def drawn(effects: np.ndarray, kind: str = "same data") -> DrawnEffects:
    rows = [
        {"stage": "one", "behaviour": "score", "draw": d, "example_id": f"e{i}", "effect": value}
        for d, own in enumerate(effects)
        for i, value in enumerate(own)
    ]
    return DrawnEffects(pd.DataFrame(rows).assign(final=0.5), kind)  # type: ignore[arg-type]


def with_gap() -> np.ndarray:
    """Example 3 has no value in the second draw; it is far from the others."""
    effects = EFFECTS.copy()
    effects[:, 3] = 50.0
    effects[1, 3] = np.nan
    return effects


def test_an_example_without_a_value_in_one_draw_is_in_none_and_it_is_told() -> None:
    found, others = drawn(with_gap()), np.arange(N) != 3
    assert found.left_out.startswith(
        "1 example has no value in draw 2 and is left out of all draws"
    )
    assert found.table.loc[found.table["example_id"] == "e3", ["final", "effect"]].isna().all(None)
    table = effect_table({"one": list(EFFECTS[0])}, behaviour="score")
    (row,) = stage_summary(table, SCORE, ["one"], draws=found).to_dict("records")
    expected = interval_over_draws(EFFECTS[:, others].mean(axis=1), "same data")
    assert row["draw_effect"] == pytest.approx(expected.mean)
    assert (row["draw_low"], row["draw_high"]) == pytest.approx((expected.low, expected.high))
    assert np.isnan(example_sd(found)["one", "score", "e3"])
    facts = DrawFacts(run_digest="", set_digest="", kind="same data", behaviours=[])
    assert sentence(facts, found).endswith(found.left_out)


def test_what_no_draw_has_a_value_of_is_nothing_to_tell() -> None:
    effects = EFFECTS.copy()
    effects[:, 3] = np.nan  # as of a text without a label
    assert drawn(effects).left_out == "" == drawn(EFFECTS).left_out


def test_a_draw_without_any_value_leaves_no_mean() -> None:
    effects = EFFECTS.copy()
    effects[2] = np.nan
    found = drawn(effects)
    assert found.left_out.startswith(f"{N} examples have no value in draw 3")
    table = effect_table({"one": list(EFFECTS[0])}, behaviour="score")
    (row,) = stage_summary(table, SCORE, ["one"], draws=found).to_dict("records")
    assert np.isnan(row["draw_effect"]) and np.isnan(row["draw_low"])


def test_means_over_draws_are_over_the_examples_that_this_run_has_a_value_of() -> None:
    own = EFFECTS[0].copy()
    own[7] = np.nan
    table = effect_table({"one": list(own)}, behaviour="score")
    (row,) = stage_summary(table, SCORE, ["one"], draws=drawn(EFFECTS)).to_dict("records")
    others = np.arange(N) != 7
    assert row["n"] == N - 1
    assert row["draw_effect"] == pytest.approx(EFFECTS[:, others].mean())


def test_features_are_judged_over_the_same_examples_in_every_draw() -> None:
    has = np.arange(N) % 2 == 0
    gains = EFFECTS + 3 * has
    gains[:, 3] = np.nan
    drawn_gains = DrawnGains(gains.T, lambda of: bool(np.isfinite(of).all()))
    labels = np.full(N, None)
    row = judged_features([features(has[:, None])], gains[0], labels, None, drawn_gains).iloc[0]
    assert row["passes"] and row["support"] + row["without"] == N - 1


def test_draws_that_are_all_alike_leave_a_feature_to_its_interval_over_examples() -> None:
    found = drawn(EFFECTS)
    assert _is_clear(found, np.full(K, 2.0)) and not _is_clear(found, np.zeros(K))
    assert not _is_clear(found, np.array([-1.0, 1.0, -2.0, 2.0, 0.1]))


# ------------------------------------------------------------------------------------- shares


def coalitions(values: np.ndarray, monkeypatch: pytest.MonkeyPatch, name: str) -> DrawnCoalitions:
    """Of (K, 4, N) values of two stages' coalitions."""
    kind = BehaviourFacts.of(SCORE)
    known = [
        DrawnCoalitionFacts(
            run_digest="", set_digest="", kind="recipe", draw=d, stages=2, behaviours=[kind]
        )
        for d in range(len(values))
    ]
    tables = {
        str(d): pd.DataFrame({f"{mask:x}/{name}": own[mask] for mask in range(4)})
        for d, own in enumerate(values)
    }
    monkeypatch.setattr(
        drawn_coalitions.fact_tables, "read", lambda path, kind, names: (None, tables[str(path)])
    )
    paths = [Path(str(d)) for d in range(len(values))]
    return DrawnCoalitions("recipe", known, paths, np.ones(N, dtype=bool), ("one", "two"))


def test_shares_over_draws_are_over_the_same_examples_and_add_up(monkeypatch) -> None:
    values = np.random.default_rng(1).normal(size=(K, 4, N)) + np.arange(4)[None, :, None]
    values[:, :, 3] += 40
    values[1, 2, 3] = np.nan  # one coalition in one draw
    found = drawn_shares_of(coalitions(values, monkeypatch, "score"), "score")
    assert found is not None and "1 example has no value in draw 2" in cautions(found)[-2]
    others = np.arange(N) != 3
    kept = values[:, :, others].mean(axis=2)
    np.testing.assert_allclose(found.in_each_draw(SHARE).sum(axis=1), kept[:, 3] - kept[:, 0])
    for reading in READINGS:
        assert {one.n for one in found.means(reading)} == {N - 1}
    assert found.level(3) == pytest.approx(kept[:, 3].mean())
    assert np.isnan(found.reading(SHARE)[:, 3]).all()


def test_shares_of_accuracy_that_all_draws_have_alike_keep_the_interval_over_examples(
    monkeypatch,
) -> None:
    right = np.stack([np.arange(N) < count for count in (10, 30, 20, 40)]).astype(float)
    found = drawn_shares_of(coalitions(np.stack([right] * K), monkeypatch, "accuracy"), "accuracy")
    assert found is not None
    for one, numbers in zip(found.means(SHARE), found.reading(SHARE), strict=True):
        assert one.interval is not None and one.interval.drawn == ""
        expected = mean_spread(numbers, answers=True).ends()
        assert (one.interval.low, one.interval.high) == pytest.approx(expected)
        assert one.interval.low < one.mean < one.interval.high
    # The interaction of the two is the same on every example: it has a width all the same.
    rest = found.combined_mean("rest", {3: 1.0, 2: -1.0, 1: -1.0, 0: 1.0})
    assert rest.mean == 0 and rest.interval is not None and rest.interval.low < 0
    assert ACCURACY.name == found.behaviour.name


def test_draws_that_tell_no_spread_give_no_interval_of_no_width() -> None:
    # Data 0 to 3 have the same means, and too few draws repeat any to tell chance.
    found = interval_over_draws([1.0, 1.0, 1.0, 1.0 + 1e-7], "recipe")
    assert found.low < found.high
    alike = interval_over_draws([1.0] * 6, "recipe")
    assert np.isnan(alike.low) and alike.sd == 0


# ------------------------------------------------------------------------------ recorded runs


def test_runs_that_saw_their_examples_more_often_are_no_draws_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = _seeds(tmp_path, 3)
    seen = {id(run.task): times for run, times in zip(runs, (2.0, 3.0, 2.2), strict=True)}
    monkeypatch.setattr(runs_drawn, "passes_over_examples", lambda task, _: seen[id(task)])
    said = r"in stage 'first' each example was seen 3\.0 times on average, and 2\.0 times in seed-0"
    with pytest.raises(RunError, match=f"seed-1 is no run of this recipe: {said}"):
        runs_drawn.runs_as_draws(runs[0], "test", [runs[2], runs[1]], QUIET)
    runs_drawn.runs_as_draws(runs[0], "test", [runs[2]], QUIET)
    facts, found = of_recipe(runs[0], "test") or pytest.fail("nothing is stored")
    assert "In seed-2, in stage 'first' each example was seen 2.2 times" in sentence(facts, found)
