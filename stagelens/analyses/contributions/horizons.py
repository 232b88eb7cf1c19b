"""How far ahead first order holds for a stage's training examples, without a replay.

A random tenth of them is left out for some steps: for the whole stage, a third of it, a tenth and
so on, in up to three stretches each. At the end of each stretch stands the effect on a behaviour to
first order, and what it neglects (:mod:`stagelens.derivatives.windows`); then the same for the
whole stage and the final model. The curvature of the behaviour itself is counted in, since
contributions are linear in it too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pandas as pd

from stagelens.contracts import (
    Example,
    NotSeparable,
    Progress,
    ProgressCallback,
    Refused,
    no_progress,
)
from stagelens.derivatives.windows import Window, WindowEnd, follow
from stagelens.effects.results import BehaviourFacts
from stagelens.estimators.course import moves_statistics, unlike_the_bench
from stagelens.estimators.replay_check import check_given
from stagelens.runs import fact_tables
from stagelens.runs.optimizer_kinds import update_of
from stagelens.runs.run import Run, Stage
from stagelens.runs.training_rows import training_rows

from .contribution_table import Question
from .first_order import behaviour_along
from .horizon_table import COLUMNS, SHARE, HorizonFacts, Horizons, horizons_path, load_horizons

_STRETCHES = 3
"""Stretches of a stage at most, for each horizon."""
_READING = 0.05
"""The share of the time that it takes to list the training examples, for ``progress``."""
_TINY = 1e-30


def horizons(
    run: Run,
    stage: Stage,
    set_name: str,
    question: Question,
    behaviour: str | None = None,
    share: float = SHARE,
    progress: ProgressCallback = no_progress,
) -> Horizons:
    """Expected errors of first order by horizon; read from disk where stored.

    Args:
        run: The run.
        stage: Whose training examples.
        set_name: One of its evaluation sets.
        question: Which of its examples are asked about.
        behaviour: One of the task's; None for its first.
        share: Of the training examples that are left out, above 0 and below 1.
        progress: Called for every step.

    Raises:
        SetError: The question names what the set does not have.
        Refused: The behaviour is unknown or has no value, or there is no first order here; see
            :func:`stagelens.derivatives.windows.follow`. Or the learning rate was 0 throughout.
            Or a loss of the user's own that was given is not the recorded one.
    """
    began = time.perf_counter()
    examples = run.evaluation_set(set_name)
    ids = question.of(examples)
    kinds = {kind.name: kind for kind in run.task.behaviour_kinds}
    name = behaviour or next(iter(kinds))
    if name not in kinds:
        raise Refused(f"the task has no behaviour {name!r}; use one of {', '.join(kinds)}")
    stored = load_horizons(run, examples, name, ids, stage, share)
    if stored is not None:
        return stored
    check_given(run)
    if not moves(stage):
        raise Refused(
            f"the learning rate of stage {stage.name!r} was 0 at every step: its training examples "
            "moved nothing, so there is no step to look at, and no effect for first order to miss"
        )
    overall = Progress(progress)
    rows = training_rows(run, stage, overall.part(0.0, _READING))
    names = rows.table["example_id"].to_numpy()
    count = max(1, round(share * len(names)))
    chosen = np.random.default_rng(0).choice(names, count, replace=False)
    places = rows.places([str(each) for each in chosen])
    windows = stretches(stage.steps, sorted(places))
    asked, found = examples.by_id(ids), []

    def reached(end: WindowEnd) -> None:
        found.append(_measured(run, name, asked, end))

    try:
        follow(run, stage, places, windows, reached, progress=overall.part(_READING, 1.0))
    except NotSeparable as error:
        raise Refused(f"examples of stage {stage.name!r} cannot be told apart: {error}") from None
    followed = run.stages[stage.index :]
    answer = Horizons(
        HorizonFacts(
            run_digest=run.digest,
            set_digest=examples.digest,
            stage=stage.name,
            count=len(ids),
            behaviour=BehaviourFacts.of(kinds[name]),
            share=share,
            left_out=count,
            steps=stage.steps,
            later=sum(later.steps for later in run.stages[stage.index + 1 :]),
            seconds=time.perf_counter() - began,
            task=run.task.name,
            optimizers={each.name: update_of(each.optimizer) for each in followed},
            normalised=tuple(
                each.name
                for each in followed
                if moves_statistics(each.start().model, each.end().model)
            ),
            unlike=unlike_the_bench(run, stage),
        ),
        _table(pd.DataFrame(found)),
    )
    path = horizons_path(run, examples, name, ids, stage.name, share)
    fact_tables.write(path, answer.table, answer.facts)
    return answer


def moves(stage: Stage) -> bool:
    """Whether any learning rate of a stage is above 0."""
    steps = stage.read_steps()
    return any(
        float(group["lr"]) > 0
        for number in range(stage.steps)
        for group in steps.facts(number).groups
    )


def stretches(steps: int, used: Sequence[int]) -> list[Window]:
    """Stretches of a stage for every horizon, and the whole with all later stages.

    Args:
        steps: Of the stage.
        used: Steps at which an example is left out; a stretch without any says nothing.
    """
    lengths = sorted({max(1, round(steps / 10 ** (place / 2))) for place in range(7)})
    found = []
    for length in lengths:
        number = min(_STRETCHES, steps // length)
        # Their middles are as far apart from each other as from both ends.
        middles = [(2 * place + 1) * steps / (2 * number) for place in range(number)]
        for middle in middles:
            begin = min(max(round(middle - length / 2), 0), steps - length)
            if length < steps and not any(begin <= step < begin + length for step in used):
                begin = min(used, key=lambda step: abs(step - middle))
                begin = min(begin, steps - length)
            found.append(Window(begin, begin + length))
    return [*dict.fromkeys(found), Window(0, None)]


def _measured(
    run: Run, behaviour: str, asked: Sequence[Example], end: WindowEnd
) -> dict[str, float | None]:
    """One stretch: means, and squared lengths over the examples."""
    without = {n: t - end.first_order[n] - end.neglected[n] for n, t in end.values.items()}
    for name in without:
        if name.endswith("running_var"):
            without[name] = without[name].clamp(min=0)
    now, along = behaviour_along(run, end.own, behaviour, asked, end.values, end.first_order)
    then, _ = behaviour_along(run, end.own, behaviour, asked, without, None)
    known = np.isfinite(now)
    effect, along = (now - then)[known], along[known]
    window = end.window
    return {
        "horizon": None if window.end is None else window.end - window.begin,
        "first_order": float(along.mean()),
        "neglected": float((effect - along).mean()),
        "missed": float(np.square(effect - along).mean()),
        "size": float(np.square(effect).mean()),
        "gradients": end.gradients,
    }


def _table(found: pd.DataFrame) -> pd.DataFrame:
    """One row per horizon, the shortest first and the final model last."""
    rows = []
    for horizon, own in found.groupby("horizon", dropna=False, sort=True):
        size = own["size"].sum()
        # Where the learning rate is 0 in all stretches, nothing is moved, and nothing is known.
        still = size == 0 and own["missed"].sum() == 0
        error = float("nan") if still else float(np.sqrt(own["missed"].sum() / (size + _TINY)))
        rows.append(
            {
                "horizon": horizon,
                "windows": len(own),
                "first_order": float(own["first_order"].mean()),
                "neglected": float(own["neglected"].mean()),
                # What is no number any more has left first order far behind.
                "expected_error": error if still or np.isfinite(error) else np.inf,
                "gradients": float(own["gradients"].sum()),
            }
        )
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({"horizon": "Int64"})
