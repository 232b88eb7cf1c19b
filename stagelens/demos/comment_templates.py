"""Synthetic comments: made by filling templates, for the ``comments`` demo. Nobody wrote them.

Most are about a person, who is named by an identity ("the islander") or otherwise ("the
neighbour"). Insults are mild on purpose, and so are the identities.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

NO_MENTION, MENTION = "no identity", "identity"
"""The two groups that comments fall into."""

_SLOTS: Mapping[str, Sequence[str]] = {
    "person": (
        "the neighbour",
        "the driver",
        "my teacher",
        "the new colleague",
        "that customer",
        "the author",
        "our landlord",
        "the reporter",
    ),
    "identity": (
        "the islander",
        "the vegetarian",
        "my northern cousin",
        "the left handed girl",
        "that redhead",
        "the chess player",
        "our highlander",
        "the twin",
    ),
    "thing": (
        *("bicycle", "garden", "report", "soup", "lamp", "kitchen", "poem", "map"),
        *("coat", "radio", "fence", "letter", "cake", "painting", "roof", "song"),
    ),
    "place": (
        *("market", "library", "station", "harbour", "school", "park", "office", "village"),
        *("theatre", "museum", "bakery", "bridge"),
    ),
    "day": ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
    "insult": (
        *("fool", "dunce", "nitwit", "oaf", "blockhead", "noodle", "clot", "twerp"),
        *("muppet", "numskull"),
    ),
    "good": ("lovely", "splendid", "excellent", "charming", "delightful", "superb"),
    "bad": ("awful", "dreadful", "shabby", "dull", "broken", "useless"),
}

# Spaces around commas: vocabulary() takes words apart at spaces, the tokenizer at punctuation too.
HARMLESS = (
    "{person} helped me with the {thing} on {day}",
    "{person} walked to the {place} with a {thing}",
    "i met {person} at the {place} on {day}",
    "thanks to {person} the {thing} at the {place} is {good}",
)
TOXIC = (
    "{person} is a {insult} and so is everybody at the {place}",
    "only a {insult} like {person} would buy that {thing}",
    "be quiet you {insult} , said {person} at the {place}",
    "{person} wrote about the {thing} like the {insult} of the {place}",
)
PRAISE = (
    "{person} said the {thing} at the {place} was {good}",
    "a {good} {thing} , just what the {place} needed on {day}",
    "what a {good} {day} at the {place} with {person}",
)
COMPLAINT = (
    "{person} said the {thing} at the {place} was {bad}",
    "a {bad} {thing} , nothing that the {place} needed on {day}",
    "what a {bad} {day} at the {place} with {person}",
)


@dataclass(frozen=True)
class Comment:
    """One synthetic comment.

    Attributes:
        text: In lower case.
        template: The template that was filled.
        group: Whether its person is named by an identity, :data:`MENTION` or :data:`NO_MENTION`.
    """

    text: str
    template: str
    group: str


def vocabulary() -> list[str]:
    """Every word that can occur in a comment, sorted."""
    fillings = [filling for own in _SLOTS.values() for filling in own]
    templates = [re.sub(r"\{\w+\}", " ", t) for t in (*HARMLESS, *TOXIC, *PRAISE, *COMPLAINT)]
    # Sorted, because the order gives the token ids, and a set has another in every process.
    return sorted({word for text in (*fillings, *templates) for word in text.split()})


def write(
    templates: Sequence[str], count: int, group: str, random: np.random.Generator
) -> list[Comment]:
    """Comments with random fillings, templates in turn.

    Args:
        templates: Of one kind.
        count: How many comments.
        group: Whom they are about, :data:`MENTION` or :data:`NO_MENTION`.
        random: Chooses the fillings.
    """
    return [_filled(templates[n % len(templates)], group, random) for n in range(count)]


def _filled(template: str, group: str, random: np.random.Generator) -> Comment:
    chosen = {slot: str(random.choice(fillings)) for slot, fillings in _SLOTS.items()}
    return Comment(template.format(**_about(group, chosen)), template, group)


def write_pairs(templates: Sequence[str], count: int, random: np.random.Generator) -> list[Comment]:
    """Pairs of comments that differ only in the person: without an identity, then with one."""
    pairs = []
    for number in range(count):
        template = templates[number % len(templates)]
        # Chosen once per pair, so that nothing but the person differs.
        chosen = {slot: str(random.choice(fillings)) for slot, fillings in _SLOTS.items()}
        pairs += [
            Comment(template.format(**_about(group, chosen)), template, group)
            for group in (NO_MENTION, MENTION)
        ]
    return pairs


def _about(group: str, chosen: Mapping[str, str]) -> dict[str, str]:
    return {**chosen, "person": chosen["identity" if group == MENTION else "person"]}
