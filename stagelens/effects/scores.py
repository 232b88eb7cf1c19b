"""Scores of stored answers: effect tables of the behaviour ``score:NAME``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from stagelens.contracts import BASE, Answered, Behaviour, Scorer, is_fraction
from stagelens.estimators.expected_error import judged_replay
from stagelens.runs.run import Run
from stagelens.runs.sets.clusters import CLUSTER, with_sources
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.wording.intervals import possible

from .answers import VERSION, Answers, How
from .contrasts import mean_spread
from .prompts import prompts_of, references_of
from .results import (
    BOUNDARY_COLUMNS,
    EFFECT_COLUMNS,
    BehaviourFacts,
    Result,
    ResultFacts,
    load_result,
    save_result,
)
from .stored_scores import ANSWERS, SCORER


def scored(run: Run, set_name: str, answers: Answers, how: How, scorer: Scorer) -> Result:
    """The scores of stored answers as an effect table, which is stored beside those of likelihoods.

    Scores after every boundary are stored too, see :func:`boundary_scores`. A score is the mean
    over a prompt's samples; ``sd`` and ``sd_without`` are their standard deviations, NaN where
    there is one. Answers in the table are the first ones.

    Args:
        run: The run.
        set_name: The set of prompts.
        answers: Of :func:`answer`.
        how: As given there.
        scorer: Part of the table's key, as are the settings of both.
    """
    examples = run.evaluation_set(set_name)
    prompts, references = prompts_of(examples), references_of(examples, scorer.reference)
    values = {
        name: per_prompt(table, scorer, prompts, references)
        for name, table in answers.models.items()
    }
    own = examples.table()
    final, kind = values["final"], scorer.behaviour
    blocks, trusts = [], []
    for stage, trust in answers.trust.items():
        there = values.get(f"without:{stage}")
        repeated = values.get(f"repeated:{stage}")
        if there is not None and repeated is not None:
            pair = [each["value"].to_numpy() for each in (final, repeated)]
            known = np.isfinite(pair[0]) & np.isfinite(there["value"].to_numpy())
            effect = (pair[0] - there["value"].to_numpy())[known]
            trust = judged_replay(trust, pair[0][known], pair[1][known], effect, kind.name)
            there = None if trust.trust == "refused" else there
        trusts.append(trust)
        blocks.append(stage_rows(own, examples.name, stage, answers.estimator, kind, final, there))
    facts = ResultFacts(
        kind="scores",
        run_digest=run.digest,
        set_name=examples.name,
        set_digest=examples.digest,
        estimator=answers.estimator,
        settings=score_settings(answers.settings, how, scorer),
        behaviours=[BehaviourFacts.of(kind)],
        stages=trusts,
    )
    result = Result(facts, pd.concat(blocks, ignore_index=True))
    save_result(run, result)
    _save_boundaries(run, set_name, values, how, scorer)
    return result


def _save_boundaries(
    run: Run, set_name: str, values: Mapping[str, pd.DataFrame], how: How, scorer: Scorer
) -> None:
    """Store the scores of the models at boundaries, as far as there are."""
    examples, kind = run.evaluation_set(set_name), scorer.behaviour
    rows = boundary_rows(run, examples, kind, values)
    if rows is None:
        return
    facts = ResultFacts(
        kind="score-boundaries",
        run_digest=run.digest,
        set_name=examples.name,
        set_digest=examples.digest,
        estimator="",
        settings=score_settings({}, how, scorer),
        behaviours=[BehaviourFacts.of(kind)],
    )
    save_result(run, Result(facts, rows))


def boundary_rows(
    run: Run, examples: EvaluationSet, kind: Behaviour, values: Mapping[str, pd.DataFrame]
) -> pd.DataFrame | None:
    """A boundary table of scores, with the first answers; None where no boundary has any.

    Args:
        run: The run.
        examples: The set that was scored.
        kind: The score.
        values: Per model (``final``, ``after:STAGE``) one row per example, in the set's order:
            ``value`` and ``answer``.
    """
    names = {name: f"after:{name}" for name in (BASE, *(s.name for s in run.stages[:-1]))}
    names[run.last.name] = "final"
    blocks = [
        pd.DataFrame(
            {
                "set": examples.name,
                "example_id": values[model].index,
                "boundary": boundary,
                "behaviour": kind.name,
                "value": values[model]["value"].to_numpy(),
                "prediction": pd.Series(values[model]["answer"].to_numpy(), dtype="object"),
                "confidence": np.nan,
            },
            columns=list(BOUNDARY_COLUMNS),
        )
        for boundary, model in names.items()
        if model in values
    ]
    return pd.concat(blocks, ignore_index=True) if blocks else None


def mean_scores(run: Run, result: Result) -> pd.DataFrame:
    """Mean effects of every stage on a score, with 95 % intervals over prompts.

    Prompts that share a source are clustered. Of scores from 0 to 1, one change each way is taken
    to have been seen besides, as of accuracy (see ``contrasts.added_error``): where no score
    changed, others might have.

    Returns:
        One row per stage: ``stage``, ``n`` prompts with a score, ``missing`` ones, means ``final``,
        ``without`` and ``effect``, and its interval ``low`` to ``high``; NaN of a refused stage.
    """
    (kind,) = result.behaviours.values()
    sources = with_sources(run.evaluation_set(result.facts.set_name)).get(CLUSTER)
    numbers = None if sources is None else pd.factorize(sources)[0]
    rows = []
    for stage in result.trust:
        own = result.table[result.table["stage"] == stage]
        effect = own["effect"].to_numpy()
        known = np.isfinite(effect)
        spread = mean_spread(effect, numbers, is_fraction(kind))
        means = {n: own[n][known].mean() for n in ("final", "without", "effect")}
        ends = spread.ends() if known.any() else (np.nan, np.nan)
        low, high = possible(*ends, kind)
        counts = {"n": int(known.sum()), "missing": int((~known).sum())}
        rows.append({"stage": stage, **counts, **means, "low": low, "high": high})
    return pd.DataFrame(rows)


def score_settings(settings: Mapping[str, Any], how: How, scorer: Scorer) -> dict[str, Any]:
    """The settings under which a table of scores is stored."""
    return {**settings, ANSWERS: {"version": VERSION, **how.facts}, SCORER: scorer.facts}


def boundary_scores(run: Run, set_name: str, how: How, scorer: Scorer) -> dict[str, np.ndarray]:
    """Boundary to the (N,) scores there, in training order; the last is the final model's.

    Empty where :func:`scored` has stored none.
    """
    found = load_result(run, set_name, "score-boundaries", "", score_settings({}, how, scorer))
    if found is None:
        return {}
    rows = found.table.groupby("boundary", sort=False)
    return {str(boundary): own["value"].to_numpy() for boundary, own in rows}


def per_prompt(
    table: pd.DataFrame,
    scorer: Scorer,
    prompts: Mapping[str, str],
    references: Mapping[str, str | None],
) -> pd.DataFrame:
    """One row per prompt, in the set's order: ``value``, ``sd`` and the first ``answer``."""
    known = table[table["answer"].notna()]
    rows = [
        Answered(name, prompts[name], text, references[name])
        for name, text in zip(known["example_id"], known["answer"], strict=True)
    ]
    values = pd.Series(scorer.scores(rows), index=known.index, dtype=float)
    grouped = values.groupby(known["example_id"], sort=False)
    # A sample that cannot be scored leaves its prompt without a score, not with that of others.
    whole = grouped.agg(lambda own: own.mean(skipna=False))
    first = table[table["sample"] == 0].set_index("example_id")["answer"]
    found = pd.DataFrame({"value": whole, "sd": grouped.std()}, index=list(prompts))
    return found.assign(answer=first.reindex(found.index))


def stage_rows(
    own: pd.DataFrame,
    set_name: str,
    stage: str,
    estimator: str,
    kind: Behaviour,
    final: pd.DataFrame,
    there: pd.DataFrame | None,
) -> pd.DataFrame:
    """An effect table's rows of one stage, without numbers where it was refused.

    Args:
        own: The set's table.
        set_name: Its name.
        stage: The stage.
        estimator: How the model without it was obtained.
        kind: The score.
        final: One row per example, in the set's order, of the final model: ``value``, ``sd`` over
            samples, and ``answer``.
        there: The same of the model without the stage; None where it was refused.
    """
    nothing = np.full(len(own), np.nan)
    value = final["value"].to_numpy()
    without = nothing if there is None else there["value"].to_numpy()
    answers = pd.Series(final["answer"].to_numpy(), dtype="object")
    theirs = None if there is None else there["answer"].to_numpy()
    frame = pd.DataFrame(
        {
            "set": set_name,
            "example_id": own["example_id"],
            "stage": stage,
            "behaviour": kind.name,
            "final": value,
            "without": without,
            "effect": value - without,
            "estimator": estimator,
            "prediction": answers,
            "prediction_without": pd.Series(theirs, index=answers.index, dtype="object"),
            "confidence": nothing,
            "confidence_without": nothing,
            "within_noise": pd.array([None] * len(own), dtype="boolean"),
        },
        columns=list(EFFECT_COLUMNS),
    )
    frame["sd"] = final["sd"].to_numpy()
    frame["sd_without"] = nothing if there is None else there["sd"].to_numpy()
    return frame.join(own.drop(columns="example_id"))
