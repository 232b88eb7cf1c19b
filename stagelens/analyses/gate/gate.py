"""The regression gate between two models: measured, judged, and laid to stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from stagelens.contracts import Behaviour, Progress, ProgressCallback, is_score, no_progress
from stagelens.effects.results import Result
from stagelens.effects.stored_scores import score_key
from stagelens.runs.run import Run
from stagelens.runs.sets.clusters import CLUSTER, with_sources
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.wording.trust_words import trust_word

from .asked import DEFAULT, Asked
from .blame import ScoredKind, blamed, stage_drops
from .finals import scores_of_both, shared_stages
from .judging import check_limits, judged, limit, number, without_empty
from .report import SAME, STATUS, GateReport, How, SliceFinding, StageFinding
from .sides import Compared, compared, measure, train_again
from .slices import GateSlice, chosen_slices
from .verdict import FAMILY, overall


def gate(
    old: tuple[str, Run],
    new: tuple[str, Run],
    asked: Asked = DEFAULT,
    old_repeats: Sequence[Run] = (),
    new_repeats: Sequence[Run] = (),
    progress: ProgressCallback = no_progress,
) -> GateReport:
    """Did any slice get worse from the old model to the new one, and which stage did it?

    Args:
        old: The run that is compared with, and what people call it.
        new: The run that is judged.
        asked: What is asked.
        old_repeats: Further recorded runs of the old recipe, with other seeds.
        new_repeats: The same of the new one.
        progress: Called for every step.

    Raises:
        StageLensError: The two cannot be compared, or something that was asked for is not there.
    """
    if asked.behaviours:
        check_limits(asked.max_drop, asked.behaviours)  # before anything is measured
    overall_progress = Progress(progress)
    examples = new[1].evaluation_set(asked.set_name)
    sides = [
        compared(*old, new[1], examples, old_repeats),
        compared(*new, new[1], examples, new_repeats),
    ]
    slices = chosen_slices(examples, [(s.run, s.examples) for s in sides], asked.slices)
    shared = shared_stages(old[1], new[1])
    same = shared == len(old[1].stages) == len(new[1].stages)
    notes = [SAME] if same else []
    kinds, score_tables = measure(sides, asked.behaviours, overall_progress.part(0.0, 0.2))
    check_limits(asked.max_drop, [kind.name for kind in kinds])
    scores = scores_of_both([(side.run, side.examples) for side in sides])
    limits = {kind.name: limit(kind, asked.max_drop, scores) for kind in kinds}
    if asked.drops_of == "recipes" and not same:
        measured = [kind for kind in kinds if not is_score(kind)]
        part = overall_progress.part(0.2, 0.6)
        notes += train_again(sides, asked.draws, shared, measured, part)
    clusters = _clusters(examples)
    found = judged(sides, kinds, slices, limits, clusters, asked.drops_of, same)
    if not asked.slices:  # slices that nobody named, where a score says nothing of either model
        found, told = without_empty(found, sides, slices)
        notes += told
    stages: list[StageFinding] = []
    regressed = [each for each in found if each.verdict == "regressed"]
    if regressed and asked.stages:
        part = overall_progress.part(0.6, 1.0)
        stages = _laid(
            sides, examples, shared, kinds, score_tables, slices, regressed, clusters, part
        )
        notes += _named(stages, regressed)
    verdict = overall([each.verdict for each in found])
    return GateReport(
        verdict=verdict,
        exit_status=STATUS[verdict],
        same_model=same,
        estimand=asked.drops_of,
        old=sides[0].facts(),
        new=sides[1].facts(),
        set=examples.name,
        set_digest=examples.digest,
        level=FAMILY,
        comparisons=sum(each.p is not None for each in found),
        slices=found,
        stages=stages,
        notes=notes,
    )


def _scored_again(
    new: Run, examples: EvaluationSet, scored: Sequence[tuple[Behaviour, Result]]
) -> list[ScoredKind]:
    """Scores with what can give them to further models of a run.

    Args:
        new: The run.
        examples: Its set.
        scored: Scores with their stored effects.
    """
    if not scored:
        return []
    from stagelens.effects.scoring_again import own_scores  # loads torch

    own = {each.key: each for each in own_scores(new, examples.name).found}
    return [ScoredKind(kind, table, own.get(score_key(table.facts))) for kind, table in scored]


def _laid(
    sides: Sequence[Compared],
    examples: EvaluationSet,
    shared: int,
    kinds: Sequence[Behaviour],
    score_tables: Mapping[str, Result],
    slices: Sequence[GateSlice],
    regressed: Sequence[SliceFinding],
    clusters: np.ndarray | None,
    progress: Progress,
) -> list[StageFinding]:
    """What each stage of the new recipe has to do with the slices that regressed."""
    old, new = (side.run for side in sides)
    wanted = {each.behaviour for each in regressed}
    by_name = {kind.name: kind for kind in kinds}
    measured = [k for k in kinds if k.name in wanted and not is_score(k)]
    scored = [(by_name[name], score_tables[name]) for name in sorted(wanted & set(score_tables))]
    final = {name: sides[1].values[name][0] for name in wanted}
    scores = _scored_again(new, examples, scored)
    drops = stage_drops(old, new, examples, shared, final, measured, scores, progress)
    place = {(one.by, one.group): one for one in slices}
    rows = []
    for each in regressed:
        one, kind = place[each.by, each.group], by_name[each.behaviour]
        for row in blamed(drops[each.behaviour], kind, one, clusters):
            trust = row.found.trust
            rows.append(
                StageFinding(
                    behaviour=kind.name,
                    by=one.by,
                    group=one.group,
                    stage=row.found.stage,
                    how=row.found.how,
                    drop=number(row.drop),
                    low=number(row.low),
                    high=number(row.high),
                    trust="exact"
                    if row.found.how == "same"
                    else ""
                    if trust is None
                    else trust_word(trust),
                    reason=row.found.reason,
                    did_it=row.did_it,
                )
            )
    return rows


_EFFECT: How = "stage effect"
_BY_EFFECT = " (by its own effect, not against the old recipe's stage)"


def _named(stages: Sequence[StageFinding], regressed: Sequence[SliceFinding]) -> list[str]:
    """Who did it, a sentence for each slice."""
    said = []
    for each in regressed:
        own = [
            s
            for s in stages
            if (s.behaviour, s.by, s.group) == (each.behaviour, each.by, each.group)
        ]
        names = [s.stage + (_BY_EFFECT if s.how == _EFFECT else "") for s in own if s.did_it]
        if len(names) == 1:
            said.append(f"{each.words}: stage {names[0]} of the new recipe did it.")
        elif names:
            said.append(
                f"{each.words}: stages {', '.join(names)} are not told apart as to which did it."
            )
        else:
            said.append(f"{each.words}: no stage stands out by itself.")
    return said


def _clusters(examples: EvaluationSet) -> np.ndarray | None:
    sources = with_sources(examples).get(CLUSTER)
    return None if sources is None else pd.factorize(sources)[0]
