"""As many other training examples, drawn at random: what a choice of them is held against.

Leaving any examples out changes what a stage learned. Whether chosen ones did more than others
would have is known from replays without as many of the others, each drawn anew.

If the choice were one more random draw, then of N draws and the choice each would be the highest in
1 of N + 1 cases, and the lowest in as many. Which of the two "more" means is read off the choice's
own effect, so that chance makes it do more in up to 2 of N + 1 cases: with one draw, in any case.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stagelens.contracts import Behaviour, StageLensError
from stagelens.runs.schema import digest
from stagelens.runs.training_rows import TrainingRows
from stagelens.wording.numbers import count_text
from stagelens.wording.signs import gain, gain_range_text, gain_text

from .chosen import AT_RANDOM, Chosen
from .sentences import mean_effect
from .stored import WithoutData

_FEW = 4
"""Draws below which it is said how many would do."""
_ENOUGH = 39
"""So many draws that chance does more in at most 2 of 40 cases."""
_MORE = f": for 1 in {(_ENOUGH + 1) // 2} it takes {_ENOUGH} draws"
_APART = 10
"""The others are drawn from where they are so many times the chosen ones: of fewer, the draws would
share examples with each other and none with the choice, which would not be one more draw."""


def control(rows: TrainingRows, chosen: Chosen, number: int = 0) -> Chosen:
    """As many other examples of the stage, drawn at random.

    The same for the same choice and number, so that a stored replay is found again. Where much of
    the stage was chosen, all are drawn from (:data:`_APART`).

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
    enough = len(others) >= _APART * len(wanted)
    pool = others if enough else every
    seed = int(digest(chosen.stage, sorted(wanted), number)[:16], 16)
    drawn = np.random.default_rng(seed).choice(len(pool), len(wanted), replace=False)
    ids = tuple(pool[place] for place in sorted(drawn))
    among = "the others" if enough else "all"
    return Chosen(chosen.stage, ids, f"{AT_RANDOM} {among} ({number + 1})")


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
    drawn = f"{len(controls[0].facts.ids):,} drawn at random"
    more = bool((np.sign(own) * others < abs(own)).all())
    if len(others) == 1:
        said, each = f"{drawn}: {gain_text(float(others[0]), behaviour)} by replay", ""
    else:
        ends = gain_range_text(float(others.min()), float(others.max()), behaviour)
        said, each = f"{drawn}, {len(others)} times: {ends} by replay", "each "
    few = _MORE if len(others) < _FEW else ""
    if not more:
        as_much = int((np.sign(own) * others >= abs(own)).sum())
        which = "" if len(others) == 1 else f"{as_much} of them "
        tail = f" So few draws do not tell chance from more{few}." if few else ""
        return f"{said}, {which}as much as these or more.{tail}"
    # As a number, what did less harm is more.
    less = f"{each}less {'harm' if gain(own, behaviour) < 0 else 'help'}"
    if len(others) == 1:
        return f"{said}, {less} than these. One draw does not tell that from chance{_MORE}."
    chance = f"By chance alone that would be so in up to 2 of {len(others) + 1} cases"
    return f"{said}, {less} than these. {chance}{few}."
