"""Choosing what to train on next: examples ordered, the best kept, and the choice replayed."""

from __future__ import annotations

import numpy as np

from stagelens.analyses.training_data.by_column import groups_by
from stagelens.contracts import ACCURACY, Progress, ProgressCallback, no_progress
from stagelens.effects.results import BehaviourFacts
from stagelens.runs.run import Run
from stagelens.runs.training_rows import training_rows

from .alike import near_duplicates
from .durations import SWEEP
from .horizons import try_horizons
from .outcomes import Outcome, OutcomeFacts, Trial, Wanted, load_outcome, outcome_path, save_outcome
from .proving import prove
from .ranked import COLUMNS


def choose(run: Run, wanted: Wanted, progress: ProgressCallback = no_progress) -> Outcome:
    """Order a stage's examples, keep the best, and prove the choice; read from disk where stored.

    What is replayed is stored model by model, so that a call which was broken off goes on.

    Args:
        run: The run.
        wanted: Which examples, for what.
        progress: Called for every step.

    Raises:
        SetError: The question names what the set does not have.
        StageLensError: The target has too few examples to prove anything, or the training examples
            have no column ``wanted.by``.
        Refused: The stage has no derivatives, or it or a later one cannot be replayed.
    """
    examples, stage = run.evaluation_set(wanted.set_name), run.stage(wanted.stage)
    training_rows(run, stage)  # what an example is there, is part of the key
    stored = load_outcome(run, examples, outcome_path(run, examples, wanted))
    if stored is not None:
        return stored
    judges = wanted.sides(examples)[1]
    overall = Progress(progress)
    listing = overall.part(0.0, 0.0)  # of its time nothing is known, and its words are told
    groups = groups_by(run, stage.name, wanted.by, listing) if wanted.by else None
    trials = try_horizons(run, stage, wanted, groups, overall.part(0.0, _ranked_part(wanted)))
    best = trials.best
    compared = overall.part(_ranked_part(wanted), _ranked_part(wanted))
    alike = near_duplicates(run, stage.name, compared) if wanted.distinct else {}
    chosen = best.kept(wanted.keep, alike)
    if wanted.draws:
        prove(
            *(run, stage, examples.name, judges, best, chosen, wanted.draws),
            progress=overall.part(_ranked_part(wanted), 1.0),
        )
    passed_over = set(best.kept(wanted.keep)) - set(chosen)
    facts = OutcomeFacts(
        run_digest=run.digest,
        set_digest=examples.digest,
        wanted=wanted,
        ranking=best.facts,
        trials=tuple(
            Trial(
                horizon=one.ranking.facts.horizon,
                values=one.values,
                agreement=None if np.isnan(agreed := one.ranking.agreement) else agreed,
            )
            for one in sorted(trials.tried, key=lambda each: each.ranking.facts.horizon)
        ),
        random=trials.random,
        of=len(best.table),
        judged=len(judges.of(examples)) if wanted.draws else 0,
        alike=len(passed_over),
        behaviours=tuple(BehaviourFacts.of(k) for k in (*run.task.behaviour_kinds, ACCURACY)),
    )
    kept = best.table.loc[best.table["example_id"].isin(chosen), list(COLUMNS)]
    # Chosen within labels, but listed by value: the best come first for whoever takes fewer.
    kept = kept.sort_values("value", ascending=False, kind="stable", ignore_index=True)
    path = save_outcome(run, examples, facts, kept)
    found = load_outcome(run, examples, path)
    assert found is not None, "an outcome that was just stored can be read"
    return found


def _ranked_part(wanted: Wanted) -> float:
    """The part of all the work that ordering takes, for progress."""
    ordering = SWEEP * len(wanted.horizons) + wanted.trials
    return ordering / (ordering + wanted.replays - wanted.trials)
