"""What switches read off stored models: which are known, their means, and what they turn."""

from __future__ import annotations

import numpy as np
import pytest

from stagelens.analyses.switches import (
    ALL_ON,
    Switched,
    combination_of,
    level,
    measured,
    sample,
    turned,
)
from stagelens.contracts import ACCURACY, Behaviour
from stagelens.effects import summary
from stagelens.effects.contrasts import share_interval
from stagelens.trust.stage_effects import Effects
from stagelens.wording.intervals import mean_interval
from tests.support.coalitions import EXACT, made
from tests.support.effect_tables import effect_table
from tests.support.stage_trust import trust

LOSS, SCORE = Behaviour("loss", "lower"), Behaviour("score", "higher")
STAGES = ["one", "two", "three"]


def effects_of(table, kind: Behaviour = LOSS, known=None) -> Effects:
    names = list(dict.fromkeys(table["stage"]))
    known = known or {name: EXACT.model_copy(update={"stage": name}) for name in names}
    table = summary.with_accuracy(table)
    return Effects.holding("replay", table, {"accuracy": ACCURACY, kind.name: kind}, known)


def switched(values, off=(), known=EXACT, answers=None) -> Switched:
    values = np.asarray(values, dtype=float)
    answers = np.full(len(values), "a", dtype=object) if answers is None else np.asarray(answers)
    return Switched(off, values, answers.astype(object), known)


def every(count: int) -> np.ndarray:
    return np.ones(count, dtype=bool)


def test_single_switches_are_the_stage_effects_themselves() -> None:
    table = effect_table({"one": [0.5, -0.25], "two": [0.0, 1.0]})
    found = measured(effects_of(table), None, LOSS, ["one", "two"], ["e0", "e1"])
    assert list(found) == [(), (0,), (1,)]
    rows = summary.stage_summary(table, LOSS, ["one", "two"])
    for place, mean in enumerate(rows["effect"]):
        one = turned(found[(place,)], found[ALL_ON], LOSS, every(2), every(2))
        assert one.effect == mean
        assert (
            level(found[(place,)], found[ALL_ON], LOSS, every(2), every(2)).mean
            == (rows["without"][place])
        )


def test_what_is_known_of_a_single_switch_is_what_its_summary_says() -> None:
    table = effect_table(
        {"one": [0.5, -0.25, 1.0, 0.0]},
        labels=["a", "b", "a", "b"],
        without={"one": ["a", "b", "b", "b"]},
    )
    effects = effects_of(table)
    for kind in (ACCURACY, LOSS):
        found = measured(effects, None, kind, ["one"], ["e0", "e1", "e2", "e3"])
        one = turned(found[(0,)], found[ALL_ON], kind, every(4), every(4))
        row = summary.stage_summary(effects.of(kind.name), kind, ["one"]).iloc[0]
        for name in ("n", "effect", "error", "freedom", "rms"):
            assert getattr(one, name) == pytest.approx(row[name]), name


def test_right_and_wrong_follow_from_the_answers_of_each_model() -> None:
    table = effect_table(
        {"one": [0.0, 0.0, 0.0]},
        labels=["a", "b", None],
        predictions=["a", "a", "a"],
        without={"one": ["b", "b", "b"]},
    )
    found = measured(effects_of(table), None, ACCURACY, ["one"], ["e0", "e1", "e2"])
    np.testing.assert_array_equal(found[ALL_ON].values, [1, 0, np.nan])
    np.testing.assert_array_equal(found[(0,)].values, [0, 1, np.nan])
    assert found[(0,)].answers.tolist() == ["b", "b", "b"]
    one = turned(found[(0,)], found[ALL_ON], ACCURACY, every(3), every(3))
    assert (one.n, one.better, one.worse, one.answers) == (2, 1, 1, 3)


def test_rows_go_by_their_ids_not_by_their_order() -> None:
    table = effect_table({"one": [0.5, -0.25]})
    found = measured(effects_of(table), None, LOSS, ["one"], ["e1", "e0"])
    assert found[(0,)].values.tolist() == [1.25, 0.5]


def test_several_off_are_coalition_models_and_single_ones_stay_the_effects() -> None:
    table = effect_table({name: [0.5, 0.5] for name in STAGES}, behaviour="score")
    v = {mask: np.array([mask, 10.0 + mask]) for mask in range(8)}
    coalitions = made(v, tuple(STAGES))
    found = measured(effects_of(table, SCORE), coalitions, SCORE, STAGES, ["e0", "e1"])
    assert len(found) == 8
    assert found[(1,)].values.tolist() == [0.5, 0.5]
    assert found[(0, 1)].values.tolist() == [4.0, 14.0]  # only the third happened
    assert found[(0, 1, 2)].values.tolist() == [0.0, 10.0]
    assert found[(0, 2)].estimator == "replay"


def test_a_behaviour_that_coalitions_lack_leaves_the_single_switches() -> None:
    table = effect_table({name: [0.5, 0.5] for name in STAGES})
    coalitions = made({mask: np.zeros(2) for mask in range(8)}, tuple(STAGES))
    found = measured(effects_of(table), coalitions, LOSS, STAGES, ["e0", "e1"])
    assert sorted(found) == [(), (0,), (1,), (2,)]


def test_a_refused_stage_is_there_without_numbers_unless_a_coalition_has_them() -> None:
    table = effect_table({"one": [np.nan, np.nan], "two": [0.1, 0.1]}, behaviour="score")
    known = {"one": trust("refused", stage="one", reason="Diverged."), "two": EXACT}
    effects = effects_of(table, SCORE, known)
    found = measured(effects, None, SCORE, ["one", "two"], ["e0", "e1"])
    assert found[(0,)].refused
    assert level(found[(0,)], found[ALL_ON], SCORE, every(2), every(2)).n == 0
    coalitions = made({mask: np.full(2, mask) for mask in range(4)}, ("one", "two"))
    found = measured(effects, coalitions, SCORE, ["one", "two"], ["e0", "e1"])
    assert found[(0,)].values.tolist() == [2.0, 2.0]


def test_a_coalition_that_is_typically_all_error_gives_no_number_either() -> None:
    table = effect_table({"one": [np.nan, np.nan], "two": [0.1, 0.1]}, behaviour="score")
    known = {"one": trust("refused", stage="one", reason="Diverged."), "two": EXACT}
    far = trust(expected_error=4.0, typical_error=1.5, reason="Coarse replay.")
    values = {mask: np.full(2, mask) for mask in range(4)}
    coalitions = made(values, ("one", "two"), {2: far, 0: far})
    found = measured(
        effects_of(table, SCORE, known), coalitions, SCORE, ["one", "two"], ["e0", "e1"]
    )
    assert found[(0,)].refused and found[(0,)].trust.reason == "Diverged."
    assert found[(0, 1)].refused and np.isnan(found[(0, 1)].values).all()
    assert "typically larger than the number itself" in found[(0, 1)].trust.reason
    near = far.model_copy(update={"typical_error": 0.9})
    coalitions = made(values, ("one", "two"), {2: near, 0: near})
    found = measured(
        effects_of(table, SCORE, known), coalitions, SCORE, ["one", "two"], ["e0", "e1"]
    )
    assert not found[(0,)].refused and not found[(0, 1)].refused


@pytest.mark.parametrize("n", [4, 400])
def test_levels_of_few_examples_have_the_error_of_single_ones_as_effects_have(n: int) -> None:
    final = switched(np.linspace(1.0, 3.0, n))
    known = trust(expected_error=0.8, group_error=0.1)
    one = switched(np.zeros(n), (0,), known)
    found = level(one, final, SCORE, every(n), every(n))
    own = turned(one, final, SCORE, every(n), every(n))
    row = {"effect": own.effect, "error": 0.0, "freedom": n - 1, "rms": own.rms, "n": n}
    effect = mean_interval(row, known, SCORE)
    assert effect is not None
    assert (found.high - found.low) == pytest.approx(effect.high - effect.low)


@pytest.mark.parametrize(("right", "n"), [(0, 12), (7, 12), (12, 12), (240, 447)])
def test_the_interval_of_accuracy_is_that_of_a_share(right: int, n: int) -> None:
    one = switched([1.0] * right + [0.0] * (n - right))
    found = level(one, one, ACCURACY, every(n), every(n))
    assert found.mean == right / n
    assert (found.low, found.high) == share_interval(np.arange(n) < right)


def test_examples_of_one_source_count_as_one() -> None:
    values, sources = [1.0, 1.0, 0.0, 0.0] * 5, np.repeat(np.arange(10), 2)
    one, alone = switched(values), switched(values[::2])
    doubled = level(one, one, ACCURACY, every(20), every(20), sources)
    single = level(alone, alone, ACCURACY, every(10), every(10), np.arange(10))
    assert (doubled.low, doubled.high) == pytest.approx((single.low, single.high))
    right = switched(np.ones(20))
    found = level(right, right, ACCURACY, every(20), every(20), sources)
    assert (found.low, found.high) == share_interval(np.ones(10))


def test_the_error_of_an_estimate_widens_and_an_unknown_one_leaves_no_interval() -> None:
    final, values = switched([1.0, 3.0, 2.0, 2.0]), [0.0, 0.0, 0.0, 0.0]
    exact = level(switched(values, (0,)), final, SCORE, every(4), every(4))
    known = trust("estimated", group_error=0.5)
    wide = level(switched(values, (0,), known), final, SCORE, every(4), every(4))
    rms = np.sqrt(np.mean(final.values**2))
    assert exact.low - wide.low == pytest.approx(0.5 * rms)
    assert wide.high - exact.high == pytest.approx(0.5 * rms)
    unknown = level(switched(values, (0,), trust("estimated")), final, SCORE, every(4), every(4))
    assert np.isnan(unknown.low) and unknown.mean == 0


def test_the_wall_is_right_as_often_as_the_whole_whatever_is_switched() -> None:
    random = np.random.default_rng(0)
    count = 1000
    models = {
        (): switched(random.random(count) < 0.6),
        (0,): switched(random.random(count) < 0.9, (0,)),
        (1,): switched(random.random(count) < 0.2, (1,)),
    }
    chosen = random.random(count) < 0.7
    places = sample(models, ACCURACY, chosen, 60)
    assert len(set(places.tolist())) == 60 and chosen[places].all()
    for one in models.values():
        assert one.values[places].mean() == pytest.approx(one.values[chosen].mean(), abs=0.05)
    assert (np.diff(models[()].values[places]) >= 0).all()  # the wrong ones first
    np.testing.assert_array_equal(places, sample(models, ACCURACY, chosen, 60))


def test_a_small_group_is_shown_whole_and_the_worst_come_first() -> None:
    models = {(): switched([3.0, np.nan, 1.0, 2.0])}
    chosen = np.array([True, True, True, False])
    assert sample(models, SCORE, chosen, 60).tolist() == [2, 0, 1]
    assert sample(models, LOSS, chosen, 60).tolist() == [0, 2, 1]


def test_names_in_a_link_that_are_no_stage_are_left_out() -> None:
    assert combination_of(["three", "gone", "one"], STAGES) == (0, 2)
    assert combination_of([], STAGES) == ALL_ON
