"""Which horizon to look ahead: each is judged by replaying what it would choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stagelens.analyses.contributions.contribution_table import Question
from stagelens.contracts import Progress, ProgressCallback, no_progress
from stagelens.derivatives.curvature_kinds import USUAL, Curvature
from stagelens.runs.run import Run, Stage

from .outcomes import TRIALS
from .proving import prove
from .ranking import rank
from .tables import Ranking


@dataclass(frozen=True)
class Tried:
    """A horizon, and the target after the stage was replayed with what it chose.

    Attributes:
        ranking: Made with it.
        values: The target's mean behaviour, by draw; none of a horizon that is not judged.
    """

    ranking: Ranking
    values: tuple[float, ...] = ()


def try_horizons(
    run: Run,
    stage: Stage,
    set_name: str,
    question: Question,
    keep: float,
    horizons: Sequence[int],
    behaviour: str | None = None,
    progress: ProgressCallback = no_progress,
    curvature: Curvature = USUAL,
    per_label: bool = True,
) -> list[Tried]:
    """Rank by every horizon, and replay what each would choose; the best one first.

    Where first order breaks down, a longer look ahead says less, and one that is too short sees
    little but the next step: at higher learning rates the best horizon is shorter. The target's own
    examples judge, so that what is proved later is proved on others.

    Args:
        run: The run.
        stage: Whose examples.
        set_name: The evaluation set that the target is of.
        question: Which of its examples.
        keep: The share of the stage's examples that is chosen.
        horizons: In steps. A single one is not replayed.
        behaviour: What is to become better; see :func:`~.ranking.target_behaviour`.
        progress: Called for every step.
        curvature: What stands for second derivatives.
        per_label: Whether the same share of every label is chosen; see
            :meth:`~.tables.Ranking.within_labels`.

    Raises:
        SetError: The question names what the set does not have.
        Refused: As :func:`~.ranking.rank` and :func:`~.proving.prove`.
    """
    overall, found = Progress(progress), []
    for number, horizon in enumerate(horizons):
        part = overall.part(number / len(horizons), (number + 1) / len(horizons))
        asked = (run, stage, set_name, question, horizon, behaviour)
        ranking = rank(*asked, part.part(0.0, 0.7), curvature)
        if per_label:
            ranking = ranking.within_labels()
        values: tuple[float, ...] = ()
        if len(horizons) > 1:
            proof = prove(
                *(run, stage, set_name, question, ranking, ranking.kept(keep)),
                draws=TRIALS,
                kinds=("chosen",),
                progress=part.part(0.7, 1.0),
            )
            values = tuple(proof.values("chosen", ranking.facts.behaviour.name).tolist())
        found.append(Tried(ranking, values))
    if len(found) == 1:
        return found
    sign = found[0].ranking.facts.behaviour.behaviour().sign

    def worth(tried: Tried) -> float:
        mean = float(np.mean(tried.values))
        return -np.inf if np.isnan(mean) else sign * mean  # of models that are no longer finite

    return sorted(found, key=worth, reverse=True)
