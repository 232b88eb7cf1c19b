"""What a smoothness check says, in words. Without torch."""

from __future__ import annotations

import math

from stagelens.contracts import Behaviour
from stagelens.wording.numbers import count_text, phrase

from .smoothness import LEAST, REACHES, Smoothness

NOTHING_HERE = "First order says nothing here"
SMOOTH_HERE = "The smallest changes are smooth, and leaving examples out goes on with them"


def verdict(check: Smoothness, behaviour: Behaviour) -> str:
    """Whether first order is used, the number, and what it means."""
    facts, value = check.facts, check.of(behaviour.name)
    part = f"{count_text(facts.weighed, 'random training example')} of {facts.stage}"
    horizon = f" {count_text(facts.horizon, 'step')} later" if facts.horizon is not None else ""
    if math.isnan(value):
        return (
            f"{NOTHING_HERE}: with {part} counting less, no {phrase(behaviour)} of the set changed"
            f"{horizon}, so there is nothing to go by."
        )
    number = _number(check, behaviour)
    how = (
        f"as {part} count 1 % and then 2 % less, the {phrase(behaviour)} of the evaluation examples"
    )
    if check.smooth(behaviour.name):
        return (
            f"{SMOOTH_HERE} ({number}): {how}{horizon} goes on as it began, and to the same side "
            "as without them. This does not say by how much first order is off."
        )
    if value >= LEAST:
        return (
            f"{NOTHING_HERE} ({number}): {how}{horizon} goes on as it began, but without them it "
            "goes another way, so no derivative can say what leaving examples out does. Go by "
            "replays without them."
        )
    return (
        f"{NOTHING_HERE} ({number}): {how}{horizon} does not go on as it began, so no derivative "
        "can say what leaving examples out does. Go by replays without them."
    )


def outweighed(check: Smoothness, behaviour: Behaviour, about: str) -> str:
    """What a passed check says below a graver warning: that this one counts.

    Args:
        check: It passed for the behaviour.
        behaviour: Whose.
        about: Whom the warning is about: an example, or several.
    """
    return (
        f"The warning above counts. The smoothness check passes ({_number(check, behaviour)}), but "
        f"it took all evaluation examples, and random training examples: it says nothing of the "
        f"size, or of {about} alone."
    )


def _number(check: Smoothness, behaviour: Behaviour) -> str:
    value, reach = check.of(behaviour.name), check.reach(behaviour.name)
    return (
        f"smoothness {value:.2f} and reach {reach:.2f}, where 1 is the most and {LEAST:g} and "
        f"{REACHES:g} are the least for first order"
    )


def cost() -> str:
    """What a check takes, for buttons."""
    return (
        "Three replays, of this stage and all later ones: a random tenth of its examples with 1 % "
        "and with 2 % less weight, and without them, held against the recorded model."
    )
