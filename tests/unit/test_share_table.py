"""What a table of coalitions says of examples, groups and pairs, and how far to trust it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stagelens.analyses.shares import orders, values
from stagelens.analyses.shares.mean_table import mean_table
from stagelens.analyses.shares.pairs import pairs_of
from stagelens.analyses.shares.sentences import pair_sentences
from stagelens.analyses.shares.share_table import (
    ALONE,
    READINGS,
    SEEN_AFTER,
    SHARE,
    SHARE_COLUMNS,
    Shares,
    share_table,
    shares_of,
)
from stagelens.analyses.shares.share_trust import of_sampled_orders
from stagelens.contracts import StageLensError
from stagelens.estimators.calibration import known_kind, promised
from stagelens.estimators.stage_trust import StageTrust
from stagelens.wording.trust_words import trust_word
from tests.support.coalitions import EXACT, made
from tests.support.stage_trust import trust

NAMES = ("one", "two", "three")
N = 40


def game(m: int, n: int = N, seed: int = 0) -> dict[int, np.ndarray]:
    random = np.random.default_rng(seed)
    return {mask: random.normal(mask.bit_count(), 1.0, n) for mask in range(1 << m)}


def read(v: dict[int, np.ndarray], known: Mapping[int, StageTrust] | None = None) -> Shares:
    return shares_of(made(v, NAMES, known), "score")


def test_every_example_has_its_readings() -> None:
    v = game(3)
    table = share_table(made(v, NAMES))
    assert tuple(table.columns) == SHARE_COLUMNS and len(table) == 3 * N
    expected = (values.shapley, values.first_in, values.leave_one_out, values.boundary_difference)
    for reading, rule in zip(READINGS, expected, strict=True):
        found = table.pivot(index="stage", columns="example_id", values=reading)
        found = found.loc[list(NAMES), [f"e{row}" for row in range(N)]]
        np.testing.assert_allclose(found.to_numpy(), rule(v, 3), atol=1e-12)
    assert set(table["trust"]) == {"exact"} and table["share_error"].isna().all()
    sums = table.groupby("example_id")["share"].sum()
    np.testing.assert_allclose(sums[[f"e{row}" for row in range(N)]], v[7] - v[0], atol=1e-9)


def test_accuracy_has_shares_of_its_own() -> None:
    v = game(3)
    found = mean_table(shares_of(made(v, NAMES), "accuracy"))
    assert found["share"].sum() == pytest.approx(np.mean(v[7] > 0) - np.mean(v[0] > 0))


def test_means_add_up_and_have_intervals_over_examples() -> None:
    found = read(game(3))
    means = found.means(SHARE)
    assert sum(one.mean for one in means) == pytest.approx(found.level(7) - found.level(0))
    for party, one in enumerate(means):
        own = found.reading(SHARE)[party]
        assert one.interval is not None
        half = 2.02269 * own.std(ddof=1) / np.sqrt(N)  # Student's t with 39 degrees of freedom
        assert one.interval.high - one.mean == pytest.approx(half)
    chosen = np.arange(N) < 10
    assert [one.n for one in found.means(SHARE, chosen)] == [10, 10, 10]
    assert found.means(SHARE, chosen)[0].mean == pytest.approx(found.reading(SHARE)[0][:10].mean())


def test_a_number_is_exact_only_if_every_model_in_it_is() -> None:
    rough = trust(expected_error=0.05, typical_error=0.02, group_error=0.01, reliable=True)
    found = read(game(3), known={0b101: rough})  # all but the second
    shares, alone = found.trust_in(SHARE), found.trust_in("alone")
    assert {trust_word(shares[name]) for name in NAMES} <= {"reliable", "rough"}
    assert {trust_word(alone[name]) for name in NAMES} == {"exact"}
    # Leaving out the second is that model alone, so its error is the model's own.
    own = found.trust_in("without_it")["two"]
    assert own.expected_error == pytest.approx(0.05) and own.reliable
    assert own.group_error == pytest.approx(0.01)
    assert trust_word(found.trust_in("without_it")["one"]) == "exact"


def test_errors_of_models_are_added_up_by_their_weights() -> None:
    v = game(3)
    off = {0b101: 0.1, 0b001: 0.3}
    found = read(v, known={mask: trust(expected_error=error) for mask, error in off.items()})

    def rms(numbers: np.ndarray) -> float:
        return float(np.sqrt(np.mean(numbers**2)))

    weights = values.share_weights(1, 3)
    total = sum(abs(weights[mask]) * error * rms(v[7] - v[mask]) for mask, error in off.items())
    expected = found.trust_in(SHARE)["two"].expected_error
    assert expected == pytest.approx(total / rms(values.shapley(v, 3)[1]))


COARSE: dict[str, Any] = {"expected_error": 0.3, "group_error": 0.1}


def test_estimated_shares_have_the_error_that_was_measured_of_such_sums() -> None:
    v = game(3)
    off = {0b101: 0.03, 0b001: 0.04}
    known = {mask: trust(**COARSE, typical_error=error) for mask, error in off.items()}
    found = read(v, known=known)
    weights = values.share_weights(1, 3)
    sizes = [abs(weights[m]) * off[m] * np.sqrt(np.mean((v[7] - v[m]) ** 2)) for m in off]
    apart = np.hypot(*sizes) / np.sqrt(np.mean(values.shapley(v, 3)[1] ** 2))
    kind = known_kind("shares by coarse-replay")
    assert kind is not None
    promise = promised(kind, {"apart": np.log(apart)})
    told = found.trust_in(SHARE)["two"]
    assert told.expected_error == pytest.approx(promise.upper)
    assert told.typical_error == pytest.approx(promise.typical)
    assert told.wrong_signs == pytest.approx(promise.wrong_signs)
    assert f"{kind.recordings} trainings" in told.reason
    # What a sum of errors that all point the same way would forbid.
    assert trust_word(told) == "reliable"
    # A pair is a sum of another kind; one model left out is as far off as that model.
    pair = pairs_of(found)[0].given_all.trust
    assert pair.expected_error is not None and pair.expected_error != told.expected_error
    assert found.trust_in("without_it")["two"].expected_error == pytest.approx(0.3)


@pytest.mark.parametrize("more", [{"typical_error": 0.9}, {"typical_error": 0.03, "unlike": "x"}])
def test_shares_that_were_not_measured_or_not_low_are_not_reliable(more: dict[str, Any]) -> None:
    found = read(game(3), known={0b101: trust(**COARSE, **more)})
    told = found.trust_in(SHARE)["two"]
    assert trust_word(told) != "reliable"
    assert ("nothing like it: x" in told.reason) == ("unlike" in more)


def test_more_parties_than_were_measured_are_not_called_reliable() -> None:
    small = trust(**COARSE, typical_error=1e-4)
    known = {0b1011111: small}
    told = shares_of(made(game(7), tuple("abcdefg"), known), "score").trust_in(SHARE)["a"]
    assert trust_word(told) == "rough" and "more than 6 stages" in told.reason


def test_a_number_that_is_nothing_has_no_relative_error() -> None:
    v = {mask: np.zeros(3) for mask in range(4)}
    off = {2: trust(**COARSE, typical_error=0.1)}
    told = shares_of(made(v, ("one", "two"), off), "score").trust_in(SHARE)["one"]
    assert told.expected_error is None and trust_word(told) == "rough"


@pytest.mark.parametrize("n", [2, 3, 5])
def test_intervals_over_few_examples_hold_the_mean_as_often_as_they_say(n: int) -> None:
    random = np.random.default_rng(n)
    held = 0
    for _ in range(400):
        v = {mask: random.normal(mask.bit_count(), 1.0, n) for mask in (0, 1)}
        (one,) = shares_of(made(v, ("only",)), "score").means(SHARE)
        assert one.interval is not None
        held += one.interval.low <= 1.0 <= one.interval.high
    # 380 of 400 expected; 365 is more than three standard deviations below.
    assert held >= 365


def test_errors_that_are_not_known_stay_unknown() -> None:
    found = read(game(3), known={5: trust(estimator="task-vector")})
    known = found.trust_in(SHARE)["one"]
    assert known.expected_error is None and trust_word(known) == "rough"
    assert known.estimator == "task-vector"
    assert found.means(SHARE)[0].interval is None and not found.means(SHARE)[0].is_clear


def test_a_refused_model_refuses_every_number_made_of_it() -> None:
    v = game(3)
    del v[0b110]
    refused = trust("refused", stage="two + three", reason="It diverged.")
    found = read(v, known={0b110: refused})
    assert np.isnan(found.reading(SHARE)).all()
    known = found.trust_in(SHARE)["one"]
    assert known.trust == "refused" and "two + three" in known.reason
    assert known.reason.endswith("It diverged.")
    assert found.means(SHARE)[0].interval is None
    # What does not need it is still there.
    assert np.isfinite(found.reading("alone")).all()
    assert np.isnan(found.reading("without_it")).any(axis=1).tolist() == [True, False, False]


def test_a_sum_of_errors_beyond_the_number_is_refused() -> None:
    v = game(3)
    wild = trust(expected_error=4.0, typical_error=3.0)
    found = read(v, known={mask: wild for mask in range(7)})
    assert all(each.trust == "refused" for each in found.trust_in(SHARE).values())
    assert np.isnan([one.mean for one in found.means(SHARE)]).all()
    # Nor for single examples, in a terminal, in files or on pages.
    assert np.isnan([one.mean for one in found.of_example(SHARE, 0)]).all()
    table = share_table(made(v, NAMES, {mask: wild for mask in range(7)}))
    assert table["share"].isna().all() and set(table["trust"]) == {"refused"}


def test_recorded_answers_are_said() -> None:
    sampled = EXACT.model_copy(update={"on_samples": ("three",)})
    known = read(game(3), known={6: sampled}).trust_in(SHARE)["one"]
    assert trust_word(known) == "on recorded samples"


def test_too_few_models_are_told() -> None:
    v = game(3)
    del v[2]
    with pytest.raises(StageLensError, match="7 of the 8 models"):
        read(v)
    with pytest.raises(StageLensError, match="no behaviour 'other'"):
        shares_of(made(game(3), NAMES), "other")


def test_where_the_base_is_refused_it_is_told_why() -> None:
    v = game(3)
    del v[0]
    refused = trust("refused", stage="no stage", reason="A head appears later.")
    with pytest.raises(StageLensError, match=r"model of no stage.*refused: A head appears later"):
        read(v, known={0: refused})


def test_of_many_parties_sampled_orders_give_shares_with_wider_intervals() -> None:
    names = tuple(f"s{number}" for number in range(7))
    whole = game(7)
    kept = orders.masks_of(orders.sampled_orders(7, 4), 7)
    found = shares_of(made({mask: whole[mask] for mask in kept}, names), "score")
    assert found.sampled is not None and found.sampled.pairs >= 4
    share = found.reading(SHARE)
    np.testing.assert_allclose(share, found.sampled.shares, atol=1e-12)
    np.testing.assert_allclose(share.sum(axis=0), whole[127] - whole[0], atol=1e-9)
    for one, width in zip(found.means(SHARE), found.sampled.half_widths(), strict=True):
        assert one.interval is not None
        assert one.interval.orders == pytest.approx(width)
        assert one.interval.high - one.mean > width
    assert share_table(made({mask: whole[mask] for mask in kept}, names))["share_error"].gt(0).all()


def test_shares_from_sampled_orders_are_never_called_exact() -> None:
    names = tuple(f"s{number}" for number in range(7))
    kept = orders.masks_of(orders.sampled_orders(7, 4), 7)
    found = shares_of(made({mask: game(7)[mask] for mask in kept}, names), "score")
    assert found.sampled is not None
    errors = found.sampled.errors()
    for party, (name, known) in enumerate(found.trust_in(SHARE).items()):
        assert trust_word(known, "score") in ("reliable", "rough", "sign uncertain")
        off = np.sqrt(np.mean(errors[party] ** 2) / np.mean(found.reading(SHARE)[party] ** 2))
        assert known.expected_error is not None and known.expected_error > off
        assert "4 pairs were drawn" in known.reason
        # The choice of orders is in intervals once: of the example and of the mean by itself.
        one = found.of_example(SHARE, 0)[party]
        width = found.sampled.half_widths(np.arange(len(found.final)) == 0)[party]
        assert one.interval is None or one.interval.high - one.mean == pytest.approx(width)
        mean = found.means(SHARE)[party]
        assert mean.interval is not None and mean.interval.estimate == 0.0
        assert found.names[party] == name
    assert {trust_word(known) for known in found.trust_in(ALONE).values()} <= {"exact", "refused"}


def test_a_pair_is_read_in_the_final_model_and_over_all_contexts() -> None:
    v = game(3)
    pairs = {(pair.first, pair.second): pair for pair in pairs_of(read(v))}
    assert list(pairs) == [("one", "two"), ("one", "three"), ("two", "three")]
    pair = pairs["one", "three"]
    assert pair.together.mean == pytest.approx(values.pair_interaction(v, 3)[0, 2].mean())
    assert pair.given_all.mean == pytest.approx(pair.after_first.mean - pair.without_first.mean)
    assert pair.after_first.mean == pytest.approx((v[7] - v[3]).mean())
    assert pair.without_first.mean == pytest.approx((v[6] - v[2]).mean())
    alone = shares_of(made({0: np.zeros(3), 1: np.ones(3)}, ("only",)), "score")
    assert pairs_of(alone) == []


def test_nothing_is_seen_after_stages_taken_as_one_with_others_between_them() -> None:
    result = made(game(3), NAMES)
    update = {"parties": (("one", "three"), ("two",), ("four",)), "stages": (*NAMES, "four")}
    facts = result.facts.model_copy(update=update)
    result = replace(result, facts=facts)
    assert result.places == ((0, 2), (1,), (3,))
    found = shares_of(result, "score")
    # After three stages and after all four there are boundaries, after "one" with "three" is none.
    assert np.isnan(found.reading(SEEN_AFTER)).all(axis=1).tolist() == [True, True, False]
    words = [known.trust for known in found.trust_in(SEEN_AFTER).values()]
    assert words == ["refused", "refused", "exact"]
    assert np.isfinite(found.reading(SHARE)).all()
    # And neither of two that took turns came before the other.
    pairs = pairs_of(found)
    assert [pair.in_turn for pair in pairs] == [False, True, True]
    harmed = [replace(p, given_all=p.after_first, in_turn=t) for p in pairs for t in (False, True)]
    assert len(pair_sentences(harmed, found.behaviour, "example")) == 3


def test_sampled_orders_leave_signs_as_uncertain_as_the_models_are() -> None:
    known = trust(expected_error=0.3, typical_error=0.2, wrong_signs=0.3, reliable=False)
    found = of_sampled_orders(known, np.ones(10), np.full(10, 0.001), 8)
    assert trust_word(known) == trust_word(found) == "sign uncertain"
    wider = of_sampled_orders(known, np.ones(10), np.full(10, 1.0), 8)
    assert found.wrong_signs is not None and wider.wrong_signs is not None
    assert known.wrong_signs < found.wrong_signs + 1e-6 and found.wrong_signs < wider.wrong_signs
