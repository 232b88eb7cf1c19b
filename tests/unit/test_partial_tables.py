"""Tables that hold only some stages of a run: what pages, reports and verification make of them."""

from __future__ import annotations

import pandas as pd
import pytest

from stagelens.contracts import Behaviour
from stagelens.effects.results import BehaviourFacts, Result, ResultFacts, joined
from stagelens.estimators.stage_trust import StageTrust
from stagelens.trust.estimates import best_of, completed
from stagelens.trust.stage_effects import Effects
from stagelens.trust.verification import compare
from tests.support.stage_trust import trust

MARGIN = Behaviour("margin", "higher")
STAGES = ["a", "b", "c"]
IDS = [f"x{n}" for n in range(8)]


def known(stage: str, estimator: str) -> StageTrust:
    exact = estimator == "replay"
    return trust("exact" if exact else "estimated", stage=stage, estimator=estimator)


def table(estimator: str, *stages: str) -> pd.DataFrame:
    blocks = [
        pd.DataFrame(
            {
                "example_id": IDS,
                "stage": stage,
                "behaviour": "margin",
                "effect": [float(n + ord(stage)) for n in range(len(IDS))],
                "estimator": estimator,
            }
        )
        for stage in stages
    ]
    return pd.concat(blocks, ignore_index=True)


def effects(estimator: str, *stages: str) -> Effects:
    said = {stage: known(stage, estimator) for stage in stages}
    return Effects.holding(estimator, table(estimator, *stages), {"margin": MARGIN}, said)


def result(estimator: str, *stages: str) -> Result:
    facts = ResultFacts(
        kind="effects", run_digest="", set_name="test", set_digest="", estimator=estimator,
        behaviours=[BehaviourFacts(name="margin", better="higher")],
        stages=[known(stage, estimator) for stage in stages],
    )  # fmt: skip
    return Result(facts, table(estimator, *stages))


def test_stages_that_a_table_lacks_are_those_of_the_others() -> None:
    part, coarse, vector = (
        effects("replay", "b"), effects("coarse-replay", "a"), effects("task-vector", *STAGES)
    )  # fmt: skip
    whole = completed(part, [coarse, vector], STAGES)
    assert whole.estimator == "replay"
    assert whole.sources == {"a": "coarse-replay", "b": "replay", "c": "task-vector"}
    assert list(whole.trust) == STAGES and whole.trust["b"].trust == "exact"
    rows = whole.of("margin").drop_duplicates("stage")
    assert dict(zip(rows["stage"], rows["estimator"], strict=True)) == whole.sources
    assert set(whole.of_stage("margin", "c", ())["estimator"]) == {"task-vector"}
    # What follows from the ids leaves the sources as they are.
    assert whole.with_columns(lambda frame: frame).sources == whole.sources


def test_a_whole_table_stays_as_it_is_and_what_nobody_has_is_left_out() -> None:
    vector = effects("task-vector", *STAGES)
    assert completed(vector, [effects("replay", "a")], STAGES) is vector
    assert list(completed(effects("replay", "b"), [], STAGES).trust) == ["b"]


def test_the_best_of_the_others_is_the_exact_one() -> None:
    tables = [effects("coarse-replay", "a").trust, effects("replay", "a").trust]
    assert best_of("a", tables) == 1
    assert best_of("a", tables[:1]) == 0
    with pytest.raises(IndexError):
        best_of("z", tables)


def test_tables_are_joined_stage_by_stage_and_the_first_counts() -> None:
    both = joined([result("replay", "c"), result("replay", "a", "c")], STAGES)
    assert list(both.trust) == ["a", "c"]
    assert both.table["stage"].drop_duplicates().tolist() == ["a", "c"]
    assert len(both.table) == 2 * len(IDS)
    one = result("replay", "a", "b")
    assert joined([one], ["a", "b"]) is one


def test_what_has_no_replay_yet_is_not_compared_with_one() -> None:
    rows = compare(result("task-vector", *STAGES), result("replay", "b"))
    assert rows["stage"].tolist() == ["b"]
    assert rows["trust"].tolist() == ["verified"]
