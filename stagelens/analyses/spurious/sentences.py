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


def feature_sentence(
    row: Mapping[Any, Any], behaviour: Behaviour, noun: str, trust: StageTrust | None
) -> Sentence:
    """The strongest feature: "What is most closely associated with the effect of *shortcut*: ...".

    Args:
        row: A row of a table of features.
        behaviour: Whose effects were tested.
        noun: What an example is called.
        trust: What is known of the stage's counterfactual.
    """
    with_, without = (signed_text(row[name], behaviour) for name in ("mean_with", "mean_without"))
    certain = is_certain(trust, behaviour)
    verb = "is" if certain else "may be"
    among = f"Among {noun}s labelled {row['label']}" if row["label"] else f"Among all {noun}s"
    if row["kind"] == "patch":
        rest = (
            Part(f"{among} that have something there, it {'makes' if certain else 'may make'} up "),
            Part(with_, "amount"),
            Part(f" of the stage's effect on the {phrase(behaviour)}."),
        )
    else:
        rest = (
            Part(f"{among}, the stage's effect on the {phrase(behaviour)} {verb} "),
            Part(with_, "amount"),
            Part(f" with it, and {without} without."),
        )
    opening = (
        Part("What is most closely associated with the effect of "),
        Part(str(row["stage"]), "stage"),
        Part(f": the {KINDS[row['kind']]} "),
        # Names of patches begin with their kind, which has just been said.
        Part(str(row["name"]).removeprefix(f"{row['kind']} "), "group"),
        Part(". "),
    )
    return Sentence((*opening, *rest), trust, behaviour.name)
