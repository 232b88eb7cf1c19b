"""Scores beside the effects of an estimate: further behaviours, each with a table of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from stagelens.contracts import RunError
from stagelens.effects.results import (
    BehaviourFacts,
    Result,
    ResultFacts,
    is_large,
    load_result,
    result_path,
)
from stagelens.effects.stored_scores import StoredScore, stored_scores
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.run import Run

from .stage_effects import Effects

_NOT_SCORED = "What the model without it answers has no scores."


def with_scores(
    run: Run,
    estimate: str,
    own: Effects | None,
    scores: Mapping[str, StoredScore],
    coded: bool = False,
) -> Effects | None:
    """Effects with all scores of the set: by the same estimate, or by the best that there is.

    Args:
        run: The run.
        estimate: Its name.
        own: What was measured; None where there are scores alone.
        scores: By name, of the same set.
        coded: See ``results.load_result``.

    Returns:
        None where there is neither.
    """
    if not scores:
        return own
    stages = [stage.name for stage in run.stages]
    by = {name: estimate if estimate in one.facts else one.best for name, one in scores.items()}
    tables = {name: one.facts[by[name]] for name, one in scores.items()}
    judged = {name: (by[name], _trust(facts, stages)) for name, facts in tables.items()}
    behaviours = {name: one.behaviour for name, one in scores.items()}

    def read(name: str, stage: str | None, columns: Sequence[str] | None) -> pd.DataFrame:
        if name in tables:
            return _read(run, tables[name], name, stages, stage, coded)
        assert own is not None, "pages ask only for behaviours that there are"
        return own.of(name) if stage is None else own.of_stage(name, stage, columns or ())

    if own is None:
        first = next(iter(tables))
        large = is_large(run.evaluation_set(tables[first].set_name).count)
        return Effects(estimate, behaviours, judged[first][1], read, large, None, judged)
    behaviours = {**own.behaviours, **behaviours}
    return Effects(estimate, behaviours, own.trust, read, own.by_stage, own.sources, judged)


def score_result(run: Run, set_name: str, name: str, estimate: str | None = None) -> Result:
    """The effects on a score, under its name on pages.

    Args:
        run: The run.
        set_name: One of its sets.
        name: Of the score, as ``stored_scores`` has it.
        estimate: By which estimate; None for the best that there is.

    Raises:
        RunError: There is no such score, or none by the estimate; names those that there are.
    """
    scores = stored_scores(run, set_name)
    if name not in scores:
        known = ", ".join(scores) or "none: stagelens answer --scorer makes some"
        raise RunError(f"set {set_name!r} has no score {name!r}; it has {known}")
    score = scores[name]
    if estimate is not None and estimate not in score.facts:
        raise RunError(
            f"{name} on set {set_name!r} has no effects by {estimate}; it has some by "
            f"{', '.join(score.facts)}"
        )
    facts = score.facts[score.best if estimate is None else estimate]
    stages = [each.stage for each in facts.stages]
    rows = _read(run, facts, name, stages, None, coded=False)
    kind = BehaviourFacts.of(score.behaviour)
    return Result(facts.model_copy(update={"behaviours": [kind]}), rows)


def _trust(facts: ResultFacts, stages: Sequence[str]) -> dict[str, StageTrust]:
    """What is known of every stage of the run, also of those that were not scored."""
    known = {each.stage: each for each in facts.stages}

    def nothing(name: str) -> StageTrust:
        return StageTrust(
            stage=name, estimator=facts.estimator, trust="refused", reason=_NOT_SCORED
        )

    return {name: known.get(name) or nothing(name) for name in stages}


def _read(
    run: Run, facts: ResultFacts, name: str, stages: Sequence[str], stage: str | None, coded: bool
) -> pd.DataFrame:
    """The rows of a score under the name of pages, with empty ones of stages without scores."""
    there = [each.stage for each in facts.stages]
    asked = stage if stage in there or stage is None else there[0]
    found = load_result(
        *(run, facts.set_name, "scores", facts.estimator, facts.settings),
        *(coded, facts.behaviours[0].name, asked),
    )
    if found is None:
        raise RunError(
            f"{result_path(run, facts)} is damaged or was deleted: the scores {name} on set "
            f"{facts.set_name} cannot be read; delete it where it is still there, load the page "
            "again, and score the answers again"
        )
    rows = found.table.assign(behaviour=name)
    if stage is not None:
        return rows if stage == asked else _without_numbers(rows, stage)
    blank = rows[rows["stage"] == there[0]]
    absent = [_without_numbers(blank, each) for each in stages if each not in there]
    return pd.concat([rows, *absent], ignore_index=True) if absent else rows


def _without_numbers(rows: pd.DataFrame, stage: str) -> pd.DataFrame:
    nothing = pd.Series(None, index=rows.index, dtype=rows["prediction_without"].dtype)
    return rows.assign(
        stage=stage, without=float("nan"), effect=float("nan"), prediction_without=nothing
    )
