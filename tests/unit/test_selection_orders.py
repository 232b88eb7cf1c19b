"""The order of ranked training examples: within labels, by groups, by halves of the target."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stagelens.analyses.selection.proofs import Proof, ProofFacts, label_counts
from stagelens.analyses.selection.proving import part_of
from stagelens.analyses.selection.ranked import Ranking, RankingFacts, count_kept
from stagelens.contracts import StageLensError
from stagelens.contracts.task_defaults import LOSS
from stagelens.effects.results import BehaviourFacts


def test_of_every_label_the_same_share_is_chosen_and_dropped() -> None:
    ids = [f"{label}{n}" for label in "ab" for n in range(6)]
    facts = RankingFacts.model_construct(per_label=False)
    table = pd.DataFrame({"example_id": ids, "label": [name[0] for name in ids]})
    ranking = Ranking(facts, table)
    within = ranking.within_labels()
    assert within.facts.per_label and sorted(within.ids) == sorted(ids)
    assert sorted(within.kept(0.5)) == ["a0", "a1", "a2", "b0", "b1", "b2"]
    assert sorted(within.ids[-4:]) == ["a4", "a5", "b4", "b5"]
    # Numbers, say, are no classes to choose within.
    numbers = Ranking(facts, table.assign(label=ids))
    assert numbers.within_labels() is numbers


def test_random_examples_have_the_balance_of_a_choice_within_labels() -> None:
    labels = ["a"] * 9 + ["b"] * 3
    facts = RankingFacts.model_construct(per_label=True)
    ids = [f"{label}{n}" for n, label in enumerate(labels)]
    ranking = Ranking(facts, pd.DataFrame({"example_id": ids, "label": labels}))
    chosen = [*ids[:3], ids[-1]]
    counts = label_counts(facts, ranking.table[ranking.table["example_id"].isin(chosen)])
    assert counts == {"a": 3, "b": 1}
    halves = [part_of(ranking, chosen, counts, "random", draw) for draw in range(8)]
    for half in halves:
        assert sorted(name[0] for name in half) == ["a", "a", "a", "b"]
    assert len({frozenset(half) for half in halves}) > 4
    # Of a label that nothing is chosen of, nothing is drawn.
    assert part_of(ranking, ids[-2:], {"b": 2}, "random", 0) < set(ids[-3:])
    # Where labels compete, their balance is what was chosen, and random examples have any.
    assert label_counts(RankingFacts.model_construct(per_label=False), ranking.table) == {}
    every = [part_of(ranking, chosen, {}, "random", draw) for draw in range(8)]
    assert len({sum(name[0] == "a" for name in half) for half in every}) > 1


def test_of_those_that_are_alike_the_best_is_kept_until_no_others_are_left() -> None:
    ranking = Ranking(None, pd.DataFrame({"example_id": list("abcd")}))  # type: ignore[arg-type]
    assert ranking.kept(0.5) == ["a", "b"]
    alike = {"a": 0, "b": 0}
    assert ranking.kept(0.5, alike) == ["a", "c"]
    assert ranking.kept(0.75, alike) == ["a", "c", "d"] and ranking.kept(1.0, alike)[-1] == "b"
    assert (count_kept(3, 0.5), count_kept(10, 0.01), count_kept(10, 1.0)) == (2, 1, 10)


def _ranked(values: list[float], labels: str) -> Ranking:
    ids = [f"e{n}" for n in range(len(values))]
    table = pd.DataFrame({"example_id": ids, "label": list(labels), "value": values})
    table = table.assign(first_half=values, second_half=values)
    table = table.sort_values("value", ascending=False, kind="stable", ignore_index=True)
    facts = RankingFacts(run_digest="", set_digest="", stage="s", count=1, horizon=1, steps=1,
                         behaviour=BehaviourFacts.of(LOSS))  # fmt: skip
    return Ranking(facts, table)


def test_by_groups_the_best_source_comes_first_and_its_best_example() -> None:
    #          web: 4, -1, 0 (mean 1)   books: 3, 2, 2.5 (2.5)
    ranking = _ranked([4.0, -1.0, 0.0, 3.0, 2.0, 2.5], "aaaaaa")
    groups = {f"e{n}": "web" if n < 3 else "books" for n in range(6)}
    found = ranking.by_groups("source", groups)
    assert found.ids == ["e3", "e5", "e4", "e0", "e2", "e1"]
    assert found.facts.by == "source" and list(found.table["value"]) == [2.5] * 3 + [1.0] * 3
    # A source is not better for having more of a label that is worth more: without labels, "more"
    # leads by 5.5 to 4.6, and yet it is worse on each of them.
    uneven = _ranked([8.0, 8.0, 8.0, 0.0, 9.0, 1.0, 1.0, 1.0, 9.0, 9.0], "aaababbbaa")
    sources = {f"e{n}": "more" if n < 4 else "less" for n in range(10)}
    valued = uneven.by_groups("source", sources)
    assert {sources[name] for name in valued.ids[:6]} == {"less"}
    assert valued.table["value"].mean() == pytest.approx(uneven.table["value"].mean())
    with pytest.raises(StageLensError, match="1 training example of s without 'source', e5"):
        ranking.by_groups("source", {name: "x" for name in ranking.ids if name != "e5"})


def test_agreement_is_within_labels_where_the_order_is() -> None:
    first = [9.0, 8.0, 7.0, 6.0, 1.0, 2.0, 3.0, 4.0]
    second = [6.0, 7.0, 8.0, 9.0, 1.0, 2.0, 3.0, 4.0]
    ranking = _ranked(first, "aaaabbbb")
    table = ranking.table.assign(second_half=ranking.table["example_id"].map(
        dict(zip([f"e{n}" for n in range(8)], second, strict=True))))  # fmt: skip
    across = Ranking(ranking.facts, table)
    assert across.agreement > 0.7  # labels are told apart by both halves
    assert across.within_labels().agreement == pytest.approx(0.0)  # one is reversed, one the same
    # Groups are valued within labels, and of two groups a rank correlation is 1 or -1 in any case.
    singles = {name: name for name in ranking.ids}
    assert across.by_groups("source", singles).agreement == pytest.approx(0.0)
    halves = {name: str(int(name[-1]) % 2) for name in ranking.ids}
    assert np.isnan(across.by_groups("source", halves).agreement)
    none = Ranking(ranking.facts, table.assign(first_half=np.nan, second_half=np.nan))
    assert np.isnan(none.agreement) and none.by_half(0) is None


def _proof(random: np.random.Generator, examples: int, draws: int) -> Proof:
    """Chosen examples that make no difference, save on the examples that happen to be asked."""
    source = np.repeat(np.arange(examples // 2), 2)
    own = np.repeat(random.normal(size=examples // 2), 2)  # copies of a source have the same
    parts = {}
    for draw in range(draws):
        common = random.normal()
        for kind, helped in (("chosen", own), ("random", 0.0)):
            loss = common - helped + random.normal() * 0.05 + random.normal(size=examples) * 0.1
            parts[kind, draw] = pd.DataFrame({"loss": loss, "source": source})
    facts = ProofFacts.model_construct(behaviours=[BehaviourFacts.of(LOSS)])
    return Proof(facts, parts)  # type: ignore[arg-type]


def test_what_a_choice_is_worth_has_an_interval_over_other_examples_too() -> None:
    random = np.random.default_rng(0)
    held = {"both": 0, "draws": 0}
    for _ in range(200):
        proof = _proof(random, 40, 6)
        both, drawn = proof.gain("random", "loss"), proof.over_draws("random", "loss")
        assert both.mean == pytest.approx(drawn.mean)
        held["both"] += both.low <= 0 <= both.high
        held["draws"] += drawn.low <= 0 <= drawn.high
    # The truth over all examples is 0. Draws alone say nothing of which examples were asked.
    assert held["both"] >= 184 and held["draws"] < 100
    # Two copies of an example are no two: counted as such, the interval would be too narrow.
    apart = proof.over_examples("random", "loss").error
    single = Proof(proof.facts, {k: p.assign(source=-1) for k, p in proof.parts.items()})
    assert single.over_examples("random", "loss").error < 0.8 * apart


def test_what_one_half_orders_by_groups_says_nothing_of_the_other() -> None:
    """Halves of noise: what the first chooses is worth nothing to the second."""
    random = np.random.default_rng(0)
    worth = []
    for _ in range(40):
        halves = random.normal(size=(2, 200))
        ranking = _ranked(list(halves.mean(0)), "ab" * 100)
        own = ranking.table["example_id"].str[1:].astype(int)
        table = ranking.table.assign(first_half=halves[0][own], second_half=halves[1][own])
        groups = {f"e{n}": str(random.integers(3)) for n in range(200)}
        first = Ranking(ranking.facts, table).by_half(0)
        assert first is not None
        kept = first.by_groups("source", groups).within_labels().kept(0.5)
        worth.append(halves[1][[int(name[1:]) for name in kept]].mean())
    assert abs(np.mean(worth)) < 4 * np.std(worth) / np.sqrt(len(worth))


def test_the_same_column_with_other_groups_is_another_order() -> None:
    ranking = _ranked([4.0, -1.0, 0.0, 3.0], "aaaa")
    one, other = (
        ranking.by_groups("source", dict(zip(["e0", "e1", "e2", "e3"], names, strict=True)))
        for names in ("xxyy", "xyxy")
    )
    assert one.facts.by == other.facts.by and one.facts.groups != other.facts.groups
