"""Effects of training examples in words."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from stagelens.contracts import ACCURACY, Behaviour
from stagelens.effects.summary import of_behaviour, with_accuracy
from stagelens.wording.numbers import amount_text, count_text, phrase
from stagelens.wording.sentences import Part, Sentence, would_be

from .chosen import DIVISORS, Chosen
from .stored import WithoutData, WithoutDataFacts

OF_CHOSEN = (
    "In tests by replay (digits, AdamW at a rate of 5e-4), leaving out the 20 examples that hurt "
    "an answer most did 0.4 to 1.0 times what first order said, and 7 in 10 groups by label had "
    "the sign it said. Other rates promise nothing: where training is hard, as on Fashion-MNIST "
    "under SGD, it is off many times over."
)
"""What leave-some-out replays say of first order, see docs/fidelity.md; of one network and its
learning rate, which is why each figure names them."""
OF_GROUPS = (
    "How good is first order's order? In tests by replay, the group by label that hurt an answer "
    "most came first in 6 of 10 cases and among the first three in 9 of 10 (digits, AdamW); in 5 "
    "and 7 of 10 on Fashion-MNIST under SGD."
)
"""What replays without groups by label say of the order of groups, see docs/fidelity.md."""
NO_PART = (
    "Contributions hold the optimiser's denominators fixed and this does not, so it is no part of "
    "their sum and may be larger."
)
"""Why what a choice made for may be more than what all steps are said to have added."""
CHOSEN_ON = (
    "Examples that are said to hurt or help some of this set most were chosen on these very ones: "
    "on others they may do less."
)
DECIDES = "Only a replay tells."

_ONE_VALUE = re.compile(r"with ([\w-]+)=([\w-]+)")


def title(chosen: Chosen) -> str:
    """``212 forum examples``: how many, and which."""
    return "".join(_around(chosen))


def named(chosen: Chosen) -> str:
    """The same with their stage: ``20 examples of sft that hurt the mean of 64 examples most``."""
    before, after = _around(chosen)
    return f"{before} of {chosen.stage}{after}"


def _around(chosen: Chosen) -> tuple[str, str]:
    """What stands before the stage's name and after it."""
    count, words = count_text(len(chosen.ids)), chosen.words
    plain = _ONE_VALUE.fullmatch(words)
    if plain is not None:
        column, value = plain.groups()
        if column == "label":
            return f"{count} labelled {value}", ""
        if column in ("source", "group"):
            return count_text(len(chosen.ids), f"{value} example"), ""
    if words.startswith("of "):
        return f"{count} {words}", ""
    return count, f" {words}".rstrip()


def sentence(
    found: WithoutData, behaviour: Behaviour, ids: frozenset[str] | None = None
) -> Sentence:
    """Such as: Without 212 forum examples of sft, the mean loss would be 0.12 higher.

    Args:
        found: The effects.
        behaviour: Of which behaviour, accuracy included.
        ids: The evaluation examples that it is about; None for all.
    """
    trust = found.facts.trust
    effect = mean_effect(found, behaviour, ids)
    before, after = _around(found.chosen)
    start = (Part(f"Without {before} of "), Part(found.facts.stage, "stage"), Part(after))
    if trust.trust == "refused" or not np.isfinite(effect):
        return Sentence((*start, Part(f": no number. {trust.reason}")), trust, behaviour.name)
    subject = phrase(behaviour)
    if behaviour != ACCURACY:
        subject = f"the {subject}" if ids is not None and len(ids) == 1 else f"the mean {subject}"
    said = (Part(f", {subject}"), *would_be(effect, behaviour, trust), Part("."))
    return Sentence((*start, *said), trust, behaviour.name)


def mean_effect(
    found: WithoutData, behaviour: Behaviour, ids: frozenset[str] | None = None
) -> float:
    """The mean of final - without over evaluation examples, NaN without any value.

    Args:
        found: The effects.
        behaviour: Of which behaviour, accuracy included.
        ids: The evaluation examples; None for all.
    """
    table = with_accuracy(found.table) if behaviour == ACCURACY else found.table
    rows = of_behaviour(table, behaviour.name)
    if ids is not None:
        rows = rows[rows["example_id"].isin(ids)]
    values = rows["effect"].to_numpy(float)
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")


def missed(estimate: float, replayed: float, behaviour: Behaviour) -> str:
    """How far first order was off where a replay is known; empty where there is nothing to hold.

    Args:
        estimate: final - without to first order.
        replayed: The same by replay.
        behaviour: Whose.
    """
    if not np.isfinite([estimate, replayed]).all() or not replayed:
        return ""
    off = f"First order was off by {amount_text(estimate - replayed, behaviour)}"
    if estimate * replayed < 0:
        return f"{off}, with the opposite sign."
    return f"{off}, {100 * abs(estimate / replayed - 1):,.0f} % of what the replay gave."


def held_against(pairs: Sequence[tuple[float, float]], stage: str, behaviour: Behaviour) -> str:
    """What the replays of a stage that are stored say of first order there; empty without any.

    Args:
        pairs: Of each choice of examples that was replayed, final - without to first order and by
            replay.
        stage: Whose examples.
        behaviour: Whose.
    """
    known = [pair for pair in pairs if np.isfinite(pair).all()]
    if not known:
        return ""
    between = _between([abs(replayed - estimate) for estimate, replayed in known], behaviour)
    wrong = sum(estimate * replayed < 0 for estimate, replayed in known)
    signs = f", in {wrong} with the opposite sign" if wrong else ""
    chosen = "the one choice" if len(known) == 1 else f"the {len(known)} choices"
    were = "was" if len(known) == 1 else "were"
    return (
        f"For {chosen} of examples of {stage} that {were} replayed, first order was off by "
        f"{between}{signs}."
    )


def _between(off: Sequence[float], behaviour: Behaviour) -> str:
    """The least and the most of some errors, or one of them where they read the same."""
    least = amount_text(min(off), behaviour, unit=False)
    most = amount_text(max(off), behaviour)
    return most if least == amount_text(max(off), behaviour, unit=False) else f"{least} to {most}"


def beyond_first_order(
    pairs: Sequence[tuple[float, float]], others: int, behaviour: Behaviour
) -> str:
    """How far the replays of some groups are from first order, as the measure for other groups.

    How much of it groups of a size have in common depends on the run: most of it on digits, about a
    half on Fashion-MNIST, nothing on short texts (docs/fidelity.md). So this is what others may be
    off by, and no bound. Empty with fewer than two replayed groups, or without others.

    Args:
        pairs: Of each replayed group, final - without to first order and by replay.
        others: How many groups were not replayed.
        behaviour: Whose.
    """
    off = np.abs([replayed - estimate for estimate, replayed in pairs])
    if len(off) < 2 or others < 1 or not np.isfinite(off).all():
        return ""
    between = _between(off.tolist(), behaviour)
    rest = "the other one" if others == 1 else f"each of the other {others:,}"
    return (
        f"Replay and first order differ by {between} for the {len(off)} groups that were replayed; "
        f"for {rest} it may be as much, or more, which only a replay tells."
    )


def answers(found: WithoutData, ids: frozenset[str], noun: str) -> str:
    """What became of the answers of evaluation examples; empty where there are none.

    Args:
        found: The effects.
        ids: Of the evaluation examples.
        noun: What an example is called.
    """
    rows = of_behaviour(found.table, found.facts.behaviours[0].name)
    rows = rows[rows["example_id"].isin(ids)].dropna(subset=["prediction_without"])
    if rows.empty:
        return ""
    # Numbers are neither right nor wrong: their column has another name.
    labels = rows["label"] if "label" in rows else pd.Series(None, rows.index, dtype=object)
    if len(ids) == 1:
        (row,), (label,) = rows.to_dict("records"), labels
        count = count_text(len(found.facts.ids), "training example")
        without = f"Without {count} of {found.facts.stage} the answer"
        now, then = (_judged(row[name], label) for name in ("prediction", "prediction_without"))
        if now == then:
            return f"{without} stays {now}."
        return f"{without} to {row['example_id']} is {then}; the final model says {now}."
    changed = rows["prediction"] != rows["prediction_without"]
    said = f"{changed.sum():,} of {count_text(len(rows), noun)} would be answered otherwise"
    if labels.notna().any():
        right = int((changed & (rows["prediction_without"] == labels)).sum())
        wrong = int((changed & (rows["prediction"] == labels)).sum())
        said += f": {right:,} of them right without these examples, {wrong:,} right with them"
    return f"{said}."


def _judged(answer: str, label: object) -> str:
    """An answer, and whether it is right where there is a label."""
    if not isinstance(label, str):
        return answer
    return f"{answer} ({'right' if answer == label else 'wrong'})"


def how(facts: WithoutDataFacts) -> str:
    """What was left out of the batches, and what their losses are then divided by."""
    steps = count_text(facts.steps, "step")
    taken = (
        f"{facts.uses:,} of {facts.all_uses:,} uses are left out, in {facts.changed:,} of {steps}"
    )
    skipped = ""
    if facts.skipped:
        skipped = (
            f"; {facts.skipped:,} of these have none left and are not taken, so that neither "
            "weights nor moments move there"
        )
    return f"{taken}{skipped}. Losses: {DIVISORS[facts.divisor]}."
