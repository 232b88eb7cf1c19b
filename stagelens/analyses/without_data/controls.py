"""As many other training examples, drawn at random: what a choice of them is held against.

Leaving any examples out changes what a stage learned. Whether chosen ones did more than others
would have is known from replays without as many of the others, each drawn anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stagelens.contracts import Behaviour, StageLensError
from stagelens.runs.schema import digest
from stagelens.runs.training_rows import TrainingRows
from stagelens.wording.numbers import count_text
from stagelens.wording.signs import gain_range_text, gain_text

from .chosen import Chosen
from .sentences import mean_effect
from .stored import WithoutData


def control(rows: TrainingRows, chosen: Chosen, number: int = 0) -> Chosen:
    """As many other examples of the stage, drawn at random.

    The same for the same choice and number, so that a stored replay is found again. Where more than
    half of the stage was chosen there are not as many others, and all are drawn from.

    Args:
        rows: All examples of the stage.
        chosen: Some of them.
        number: Which draw, from 0.

    Raises:
        StageLensError: All examples of the stage are chosen.
    """
    wanted = set(chosen.ids)
    every = [str(name) for name in rows.table["example_id"]]
    others = [name for name in every if name not in wanted]
    if not others:
        raise StageLensError(
            f"all {count_text(len(every), 'training example')} of {chosen.stage} are left out, so "
            "there are no others to hold them against; leave fewer out"
        )
    enough = len(others) >= len(wanted)
    pool = others if enough else every
    seed = int(digest(chosen.stage, sorted(wanted), number)[:16], 16)
    drawn = np.random.default_rng(seed).choice(len(pool), len(wanted), replace=False)
    ids = tuple(pool[place] for place in sorted(drawn))
    among = "the others" if enough else "all"
    return Chosen(chosen.stage, ids, f"drawn at random among {among} ({number + 1})")


def against(
    found: WithoutData,
    controls: Sequence[WithoutData],
    behaviour: Behaviour,
    ids: frozenset[str] | None = None,
) -> str:
    """Whether chosen examples did more than random ones, in a sentence; empty without numbers.

    Args:
        found: Without the chosen examples.
        controls: Without as many random ones, a draw each.
        behaviour: Of which behaviour, accuracy included.
        ids: The evaluation examples that it is about; None for all.
    """
    own = mean_effect(found, behaviour, ids)
    others = np.array([mean_effect(one, behaviour, ids) for one in controls])
    if not len(others) or not np.isfinite([own, *others]).all():
        return ""
    count = len(controls[0].facts.ids)
    if len(others) == 1:
        said = f"{count:,} drawn at random: {gain_text(float(others[0]), behaviour)} by replay."
    else:
        ends = (float(others.min()), float(others.max()))
        said = (
            f"{count:,} drawn at random, {len(others)} times: "
            f"{gain_range_text(*ends, behaviour)} by replay."
        )
    if not (np.sign(own) * others < abs(own)).all():
        return f"{said} So these did no more than random ones."
    draws = "it" if len(others) == 1 else "each of these draws"
    return (
        f"{said} Those left out above did more than {draws}; were they random too, that would "
        f"be so in 1 of {len(others) + 1} cases."
    )
