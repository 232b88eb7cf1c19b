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
    "multi-label-classification": BuiltIn(
        "stagelens.tasks.multi_label_classification:MultiLabelClassification",
        TaskTraits("text", (("text",),), assembled_by_name=True, several_labels=True),
    ),
    "token-classification": BuiltIn(
        "stagelens.tasks.token_classification:TokenClassification",
        TaskTraits(
            "text",
            (("text",),),
            has_token_values=True,
            assembled_by_name=True,
            several_labels=True,
            typed_label=True,
        ),
    ),
    "masked-lm": BuiltIn(
        "stagelens.tasks.masked_lm:MaskedLM",
        TaskTraits(
            "text", (("text",),), has_token_values=True, assembled_by_name=True, typed_label=True
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
    "seq2seq": BuiltIn(
        "stagelens.tasks.seq2seq:Seq2Seq",
        TaskTraits(
            "text",
            (("prompt", "completion", "rejected"),),
            has_token_values=True,
            continues_text=True,
            assembled_by_name=True,
            has_maps=False,
        ),
    ),
    "sentence-embeddings": BuiltIn(
        "stagelens.tasks.sentence_embeddings:SentenceEmbeddings",
        TaskTraits(
            "text",
            (("text", "other", "rejected"),),
            typed_label=True,
            has_maps=False,
        ),
    ),
    "transformers-image-classification": BuiltIn(
        "stagelens.tasks.transformers_image_classification:TransformersImageClassification",
        TaskTraits("image", (("image",),), assembled_by_name=True),
    ),
}


def traits(name: str) -> TaskTraits | None:
    """The traits of a task, by its registered name; None for one that is not built in."""
    found = BUILT_IN.get(name)
    return None if found is None else found.traits
