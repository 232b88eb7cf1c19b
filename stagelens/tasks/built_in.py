"""The tasks that come with StageLens, by their registered names. Importing this loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stagelens.contracts import TaskTraits


@dataclass(frozen=True)
class BuiltIn:
    """A task that comes with StageLens: where its class is, and its traits."""

    # As text, so that listing the tasks imports no torch.
    target: str
    traits: TaskTraits


BUILT_IN: Mapping[str, BuiltIn] = {
    "image-classification": BuiltIn(
        "stagelens.tasks.image_classification:ImageClassification",
        TaskTraits("image", (("image",),)),
    ),
    "text-classification": BuiltIn(
        "stagelens.tasks.text_classification:TextClassification",
        TaskTraits("text", (("text",),), assembled_by_name=True),
    ),
    "regression": BuiltIn(
        "stagelens.tasks.regression:Regression",
        TaskTraits("text", (("text",),), assembled_by_name=True, typed_label=True),
    ),
    "reward-model": BuiltIn(
        "stagelens.tasks.reward_model:RewardModel",
        TaskTraits(
            "text", (("prompt", "completion", "rejected"), ("text",)), assembled_by_name=True
        ),
    ),
    "causal-lm": BuiltIn(
        "stagelens.tasks.causal_lm:CausalLM",
        TaskTraits(
            "text",
            (("prompt", "completion", "rejected"), ("text",)),
            has_token_values=True,
            continues_text=True,
            assembled_by_name=True,
        ),
    ),
}


def traits(name: str) -> TaskTraits | None:
    """The traits of a task, by its registered name; None for one that is not built in."""
    found = BUILT_IN.get(name)
    return None if found is None else found.traits
