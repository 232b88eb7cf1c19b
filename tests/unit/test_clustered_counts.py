"""Shares, pairs, paths and errors by class: rows that share a source count as one draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from stagelens.analyses.paths.answers import Paths, paths
from stagelens.analyses.paths.chance import fits, without_lucky_guesses
from stagelens.analyses.shares.pairs import pairs_of
from stagelens.analyses.shares.share_table import READINGS, Shares, shares_of
from stagelens.effects.groups import group_metrics
from stagelens.effects.rates import class_worths, rates
from tests.support.coalitions import made

N, TIMES = 40, 3

KINDS = ("missed", "false")

Widths = Callable[[int, "np.ndarray | None"], np.ndarray]


def shares(times: int, sources: np.ndarray | None) -> Shares:
    random = np.random.default_rng(0)
    v = {mask: np.tile(random.normal(mask.bit_count(), 1.0, N), times) for mask in range(8)}
    result = made(v, ("one", "two", "three"))
    if sources is None:
        return shares_of(result, "score")
    return shares_of(replace(result, examples=result.examples.assign(cluster=sources)), "score")


def of_shares(times: int, sources: np.ndarray | None) -> np.ndarray:
    found = shares(times, sources)
    chosen = np.tile(np.arange(N) < 25, times)
    every = [one for reading in READINGS for one in found.means(reading, chosen)]
    every += [one for pair in pairs_of(found) for one in (pair.together, pair.given_all)]
    return np.array([one.interval.sampling for one in every if one.interval is not None])


def answered(times: int, sources: np.ndarray | None) -> Paths:
    right = np.random.default_rng(1).integers(0, 2, (N, 3)).astype(float)
    ids = np.array([f"e{row}" for row in range(N * times)], dtype=object)
    return Paths(("base", "one", "two"), ids, np.tile(right, (times, 1)), 4, sources)


def of_paths(times: int, sources: np.ndarray | None) -> np.ndarray:
    counted = without_lucky_guesses(answered(times, sources))
    return np.array([(one.high - one.low) / one.total for one in counted])


def of_classes(times: int, sources: np.ndarray | None) -> np.ndarray:
    random = np.random.default_rng(2)
    columns = {name: random.choice(list("abc"), N) for name in ("label", "prediction")}
    columns["group"] = random.choice(["x", "y"], N)
    table = pd.concat([pd.DataFrame(columns)] * times, ignore_index=True)
    if sources is not None:
        table["cluster"] = sources
    rows = group_metrics({"final": table}, ["group"]).classes
    return np.concatenate([rows[f"{kind}_high"] - rows[f"{kind}_low"] for kind in KINDS])


@pytest.mark.parametrize("widths", [of_shares, of_paths, of_classes])
def test_copies_do_not_narrow_an_interval(widths: Widths) -> None:
    once = widths(1, None)
    assert len(once) >= 5 and np.isfinite(once).all() and (once > 0).any()
    np.testing.assert_allclose(widths(TIMES, np.tile(np.arange(N), TIMES)), once, rtol=1e-9)
    # Taken for apart, they would.
    apart = widths(TIMES, None)
    assert (apart[once > 0] < 0.75 * once[once > 0]).all()


@pytest.mark.parametrize("widths", [of_shares, of_paths, of_classes])
@pytest.mark.parametrize("sources", [np.arange(N), np.full(N, -1)], ids=["numbered", "alone"])
def test_where_every_source_has_one_row_nothing_changes(widths: Widths, sources) -> None:
    numbers = np.where(sources < 0, np.nan, sources) if widths is not of_paths else sources
    np.testing.assert_allclose(widths(1, numbers), widths(1, None), rtol=1e-9)


def test_of_one_source_alone_no_interval_is_known() -> None:
    one = np.zeros(N, dtype=int)
    assert all(each.interval is None for each in shares(1, one).means("share"))
    assert np.isnan(of_classes(1, one)).all()
    counted = without_lucky_guesses(answered(1, one))
    assert {each.interval_text() for each in counted} == {"not known"}
    assert fits(counted), "nothing contradicts guessing where no spread is known"


def test_paths_keep_the_sources_of_their_examples() -> None:
    examples = pd.DataFrame({"example_id": list("abcd"), "label": list("xyxy")})
    examples["cluster"] = ["one", None, "one", "two"]
    answers = pd.DataFrame({"example_id": list("dcba") * 2, "prediction": list("xyxyxxxx")})
    answers["boundary"] = ["base"] * 4 + ["one"] * 4
    found = paths([answers], examples, ("base", "one"))
    assert found is not None and found.clusters is not None
    assert found.clusters.tolist() == [0, -1, 0, 1]
    assert found.only(np.array([False, True, True, True])).clusters.tolist() == [-1, 0, 1]


def test_worths_are_those_of_the_definition() -> None:
    """Against the sums over all pairs of a source and a class, written out."""
    random = np.random.default_rng(3)
    n, classes = 200, 4
    label, answer = random.integers(0, classes, n), random.integers(0, classes, n)
    sources = random.integers(0, 30, n)
    answer = np.where(random.random(n) < 0.6, label, answer)
    worths = class_worths(label, answer, sources, classes)
    for place in range(classes):
        inside = label == place
        for found, of, hit in (
            (worths[0], inside, answer != label),
            (worths[1], ~inside, answer == place),
        ):
            share, count = hit[of].mean(), of.sum()
            spread = sum(((hit - share)[of & (sources == own)].sum()) ** 2 for own in range(30))
            worth = min(count, count * count * share * (1 - share) / spread)
            assert found[place] == round(worth)


def test_intervals_hold_a_share_as_often_as_they_say() -> None:
    """Over sets of 60 sources with several rows each, most of which are answered alike."""
    random, held = np.random.default_rng(4), np.zeros(2)
    for _ in range(300):
        sources = np.repeat(np.arange(60), random.integers(1, 6, 60))
        alike = random.random(len(sources)) < 0.85
        missed = np.where(alike, random.random(60)[sources], random.random(len(sources))) < 0.3
        label = np.zeros(len(sources), dtype=int)
        worth = class_worths(label, missed.astype(int), sources, 2)[0][:1]
        given = np.array([missed.sum()]), np.array([len(missed)])
        for place, more in enumerate(((worth,), ())):
            _, low, high = rates(*given, *more)
            held[place] += low[0] <= 0.3 <= high[0]
    # 285 of 300 expected; 272 is more than three standard deviations below. Taken for apart, the
    # rows give intervals that are far too narrow.
    assert held[0] >= 272 > 250 > held[1]


@pytest.mark.parametrize("n", [1, 5, 60])
def test_none_or_all_of_few_examples_is_no_certainty(n: int) -> None:
    share, low, high = rates(np.array([0, n]), np.array([n, n]))
    assert share.tolist() == [0, 1]
    # Agresti and Coull: two more hits and two more misses, but for rounding.
    z = norm.ppf(0.975)
    middle = z**2 / 2 / (n + z**2)
    reach = middle + z * np.sqrt(middle * (1 - middle) / (n + z**2))
    np.testing.assert_allclose((low, high), ((0, 1 - reach), (reach, 1)))
    assert np.isnan(rates(np.array([0]), np.array([0]))[1:]).all()
