"""Coalitions in which the halves of one stage are parties of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagelens.contracts import Progress, ProgressCallback, no_progress
from stagelens.estimators.halves import halved, middle_steps, whole_mask
from stagelens.estimators.parties import name_of, parties_of
from stagelens.runs.cutting import Cut
from stagelens.runs.run import Run

from .coalition_measuring import measure_coalitions
from .coalition_results import CoalitionResult, key_of, parts_of, save_part, stored_part


def measure_halves(
    run: Run,
    set_name: str,
    estimator: str,
    cut: Cut,
    settings: Mapping[str, Any] | None = None,
    progress: ProgressCallback = no_progress,
) -> CoalitionResult:
    """All coalitions of the other stages and the two halves of one, on an evaluation set.

    A half that happens without the other runs its own recorded steps: the first from the stage's
    start, and the stage ends after them; the second from the stage's start too, with the optimiser
    as it is there. What was measured with both halves or with neither is read from the run folder.

    Args:
        run: The run as recorded.
        set_name: One of its evaluation sets.
        estimator: ``replay``, ``coarse-replay`` or ``task-vector``.
        cut: Where the stage is taken as two.
        settings: Of the estimator.
        progress: Called for the work.

    Raises:
        StageLensError: The stage cannot be taken as two there, or nothing can be measured.
    """
    overall, steps = Progress(progress), middle_steps(run, cut)
    share = 0.1 if steps else 0.0
    made = halved(run, cut, overall.part(0.0, share, "Between the halves: "))
    adopt(run, made, set_name, estimator, settings or {}, cut)
    return measure_coalitions(
        made,
        set_name,
        estimator,
        range(1 << len(made.stages)),
        None,
        settings,
        overall.part(share, 1.0),
        {"cut": [cut.stage, cut.step]},
    )


def adopt(
    run: Run, made: Run, set_name: str, estimator: str, settings: Mapping[str, Any], cut: Cut
) -> None:
    """Keep what was measured of whole stages for the run in which one is taken as two."""
    examples, index = run.evaluation_set(set_name), run.stage(cut.stage).index
    known, own = (key_of(each, examples, estimator, settings) for each in (run, made))
    there, has = parts_of(run, known), parts_of(made, own)
    for mask in range(1 << len(made.stages)):
        whole = whole_mask(mask, index)
        if whole is None or whole not in there or mask in has:
            continue
        found = stored_part(run, known, whole)
        if found is not None:
            part, table = found
            name = name_of(parties_of(made), mask)
            trust = part.trust.model_copy(update={"stage": name, "seconds": 0.0})
            update = {"key": own, "mask": mask, "trust": trust, "passes": 0}
            save_part(made, part.model_copy(update=update), table)
