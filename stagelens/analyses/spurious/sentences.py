"""A found feature in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagelens.contracts import Behaviour
from stagelens.estimators.stage_trust import StageTrust
from stagelens.wording.numbers import phrase, signed_text
from stagelens.wording.sentences import Part, Sentence, is_certain

KINDS: Mapping[str, str] = {
    "patch": "patch",
    "word": "word",
    "pair": "word pair",
    "cluster": "group of look-alikes",
    "column": "column",
}
"""What a feature of each kind is called."""


def feature_name(row: Mapping[Any, Any]) -> str:
    """Its name, with those that the same examples have."""
    return ", also ".join([str(row["name"]), *row["also"]])


def feature_sentence(
    row: Mapping[Any, Any], behaviour: Behaviour, noun: str, trust: StageTrust | None
) -> Sentence:
    """The strongest feature: "What is most closely associated with the effect of *shortcut*: ...".

    Args:
        row: Of ``ranking.strongest``; its numbers are on the credit scale.
        behaviour: Whose effects were tested.
        noun: What an example is called.
        trust: What is known of the stage's counterfactual.
    """
    with_, without = (signed_text(row[name], behaviour) for name in ("mean_with", "mean_without"))
    certain = is_certain(trust, behaviour)
    verb = "is" if certain else "may be"
    among = f"Among {noun}s labelled {row['label']}" if row["label"] else f"Among all {noun}s"
    rest: tuple[Part, ...]
    if row["kind"] == "patch":
        rest = (
            Part(f"{among} that have something there, it {'makes' if certain else 'may make'} up "),
            Part(with_, "amount"),
            Part(f"{_side(row, behaviour)} of the stage's effect on the {phrase(behaviour)}."),
        )
    else:
        rest = (
            Part(f"{among}, the stage's effect on the {phrase(behaviour)} {verb} "),
            Part(with_, "amount"),
            Part(f"{_side(row, behaviour)} with it, and {without} without."),
        )
    if row["opposite"]:
        rest = (*rest, Part(f" Among {noun}s labelled {row['opposite']} it is the opposite."))
    opening = (
        Part("What is most closely associated with the effect of "),
        Part(str(row["stage"]), "stage"),
        Part(f": the {KINDS[row['kind']]} "),
        # Names of patches begin with their kind, which has just been said.
        Part(feature_name(row).removeprefix(f"{row['kind']} "), "group"),
        Part(". "),
    )
    return Sentence((*opening, *rest), trust, behaviour.name)


def _side(row: Mapping[Any, Any], behaviour: Behaviour) -> str:
    """Whether the effect with the feature is credit or blame, whichever way is better."""
    sign = signed_text(row["mean_with"], behaviour)[0]
    return {"+": " (credit)", "−": " (blame)"}.get(sign, "")
