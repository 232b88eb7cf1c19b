"""Replaying a stage with the chosen half of its examples, against random ones and the worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from stagelens.analyses.contributions.contribution_table import Question, asked_digest
from stagelens.contracts import ACCURACY, Example, Progress, ProgressCallback, no_progress
from stagelens.effects.results import BehaviourFacts
from stagelens.measuring.models import BATCH_SIZE, Measured, measure
from stagelens.replaying.draw_plan import Draw
from stagelens.replaying.draws import Passes, drawn_with
from stagelens.replaying.left_out import RowsOfStage
from stagelens.replaying.training_loss import Passed
from stagelens.runs import fact_tables
from stagelens.runs.run import Run, Stage
from stagelens.runs.sets.clusters import CLUSTER, clusters
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.states import TrainingState, Weights
from stagelens.runs.training_rows import training_rows

from .proofs import (
    KINDS,
    SOURCE,
    PartFacts,
    Proof,
    ProofFacts,
    TrainedOn,
    label_counts,
    load_part,
    proof_path,
)
from .ranked import Ranking


def prove(
    run: Run,
    stage: Stage,
    set_name: str,
    question: Question,
    ranking: Ranking,
    chosen: Sequence[str],
    draws: int = 8,
    kinds: Sequence[TrainedOn] = KINDS,
    progress: ProgressCallback = no_progress,
) -> Proof:
    """What models answer whose stage had only parts of its examples; later stages follow as ever.

    Rows that are not of the part leave the recorded batches (see
    :mod:`stagelens.replaying.left_out`); earlier stages are as recorded. Every draw has its own
    order of batches in the stage and all later ones, and its own random examples, as many of each
    label as are chosen where the choice is made within labels; what was replayed of a draw is kept.

    Args:
        run: The run.
        stage: Whose examples were ranked.
        set_name: The evaluation set to measure on.
        question: Which of its examples; better others than those that the ranking was made for.
        ranking: All examples of the stage, in order.
        chosen: Ids of those that are kept.
        draws: How many draws; intervals take at least three.
        kinds: Which parts are replayed.
        progress: Called for every step.

    Raises:
        SetError: The question names what the set does not have.
        Refused: The stage, or a later one, cannot be replayed or drawn again.
    """
    examples = run.evaluation_set(set_name)
    ids = question.of(examples)
    asked = examples.by_id(ids)
    batches = [asked[first : first + BATCH_SIZE] for first in range(0, len(asked), BATCH_SIZE)]
    rows = training_rows(run, stage)
    replayed = RowsOfStage(run.task, stage)
    model = run.task.build_model(run.last.facts.build_config)
    facts = ProofFacts(
        ranking=ranking.facts,
        kept=len(chosen),
        of=len(rows),
        behaviours=[BehaviourFacts.of(kind) for kind in (*run.task.behaviour_kinds, ACCURACY)],
        set_digest=examples.digest,
        asked=asked_digest(ids),
        chosen=asked_digest(chosen),
        labels=label_counts(ranking.facts, ranking.table[ranking.table["example_id"].isin(chosen)]),
    )
    sources = _sources(examples, ids)
    overall, total = Progress(progress), draws * len(kinds)
    parts: dict[tuple[TrainedOn, int], pd.DataFrame] = {}
    for draw in range(draws):
        for number, kind in enumerate(kinds, draw * len(kinds)):
            report = overall.part(number / total, (number + 1) / total)
            path = proof_path(run, facts, examples, ids, chosen, kind, draw)
            stored = load_part(path, facts, kind, draw)
            if stored is None:
                part = part_of(ranking, chosen, facts.labels, kind, draw)
                out = [name for name in rows.table["example_id"] if name not in part]
                weights = _trained(run, stage, replayed, rows.places(out), Draw(draw), report)
                (one,) = measure(run.task, model, [weights], batches, len(asked))
                stored = _answers(one, asked).assign(**{SOURCE: sources})
                own = PartFacts(proof=facts, trained_on=kind, draw=draw)
                fact_tables.write(path, stored, own)
            parts[kind, draw] = stored
            report(1.0, f"draw {draw + 1} of {draws}")
    return Proof(facts, parts)


def part_of(
    ranking: Ranking,
    chosen: Sequence[str],
    labels: Mapping[str, int],
    kind: TrainedOn,
    draw: int,
) -> set[str]:
    """The examples that the stage has; ``labels`` as in :class:`~.proofs.ProofFacts`."""
    every = ranking.ids
    if kind == "all":
        return set(every)
    if kind == "chosen":
        return set(chosen)
    if kind == "worst":
        return set(every[-len(chosen) :])
    # Drawn for the draw alone, so that a random half is the same beside any choice of that size.
    picked = np.random.default_rng([draw, len(chosen)]).permutation(sorted(every))
    if not labels:
        return {str(name) for name in picked[: len(chosen)]}
    own = ranking.table.set_index("example_id")["label"].fillna("").loc[picked]
    counts = own.map(labels).fillna(0)  # of a label that is not chosen
    return {str(name) for name in own.index[own.groupby(own).cumcount() < counts]}


def _trained(
    run: Run,
    stage: Stage,
    replayed: RowsOfStage,
    places: Mapping[int, set[int]],
    draw: Draw,
    progress: ProgressCallback,
) -> Weights:
    after = sum(other.steps for other in run.stages[stage.index + 1 :])
    share = stage.steps / max(stage.steps + after, 1)
    overall = Progress(progress)

    def train(order: Sequence[int], passes: Passes, passed: Passed) -> TrainingState:
        report = overall.part(0.0, share)
        return replayed.replay(places, report, passed=passed, order=order, passes=passes).state

    return drawn_with(run, draw, stage, train, overall.part(share, 1.0))


def _answers(measured: Measured, asked: Sequence[Example]) -> pd.DataFrame:
    """Per example a column of each behaviour; NaN where it has no value."""
    values = dict(measured.values)
    labelled = np.array([example.label is not None for example in asked])
    if labelled.any():
        labels = np.array([example.label for example in asked], dtype=object)
        right = np.where(labelled, measured.answers == labels, np.nan).astype(float)
        values[ACCURACY.name] = right
    return pd.DataFrame(values).astype("float64")


def _sources(examples: EvaluationSet, ids: Sequence[str]) -> np.ndarray:
    """(N,) the number of the source that each example shares with others; -1 where it does not."""
    sharing = clusters(examples)
    table = examples.table([]).set_index("example_id", drop=False).loc[list(ids)]
    if sharing is None:
        return np.full(len(table), -1)
    if CLUSTER in examples.columns:
        own = examples.table([CLUSTER]).set_index("example_id")[CLUSTER].loc[list(ids)]
        return np.asarray(pd.factorize(own)[0])
    number = sharing.joined(table.reset_index(drop=True))[CLUSTER]
    return number.fillna(-1).to_numpy("int64")
