"""What all classifiers share: behaviours and predictions, from logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stagelens.contracts import Behaviour, Predictions
from stagelens.contracts.task_defaults import NO_ANSWER

NO_LABEL = -1
"""Class index of an example without a label."""

CLASSIFIER_BEHAVIOURS = (
    Behaviour(
        "margin",
        "higher",
        "nats",
        "Log-odds of the label: how strongly the model prefers the label to everything else.",
    ),
    Behaviour("loss", "lower", "nats", "Cross-entropy of the label.", lowest=0.0),
    Behaviour(
        "probability",
        "higher",
        "",
        "Probability that the model gives to the label.",
        lowest=0.0,
        highest=1.0,
    ),
)


def class_names(classes: Sequence[str], labels: Tensor) -> list[str | None]:
    """Labels of a batch as names; None for a label that is no class, or not a single one.

    Args:
        classes: C names.
        labels: (B,) class indices; in any other form, such as (B, C) probabilities, without names.
    """
    if labels.ndim != 1 or labels.is_floating_point():
        return [None] * len(labels)
    return [classes[i] if 0 <= i < len(classes) else None for i in labels.tolist()]


def classifier_behaviours(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Loss, margin and probability of the label.

    With p the softmax of the logits and y the label: loss = -log p_y, probability = p_y and
    margin = log p_y - log(1 - p_y), each computed from logits without cancellation.

    Args:
        logits: (B, C).
        labels: (B,) class indices; ``NO_LABEL`` where there is none.

    Returns:
        Behaviour name to (B,) values in float64; NaN where there is no label.
    """
    logits = logits.double()
    known = labels != NO_LABEL
    # gather needs a valid class; rows without a label become NaN in the end.
    index = labels.clamp(min=0).unsqueeze(1)
    own = logits.gather(1, index).squeeze(1)
    others = logits.scatter(1, index, -torch.inf).logsumexp(1)
    margin = own - others
    # Without 1 - p_y, which cancels near 1: p_y = 1 / (1 + exp(-margin)), and so
    # -log p_y = log(1 + exp(-margin)).
    values = {
        "margin": margin,
        "loss": torch.nn.functional.softplus(-margin),
        "probability": torch.sigmoid(margin),
    }
    return {name: torch.where(known, value, torch.nan) for name, value in values.items()}


def classifier_predictions(logits: Tensor, classes: Sequence[str]) -> Predictions:
    """The most probable class of each row, with its probability; ``NO_ANSWER`` if not finite.

    Args:
        logits: (B, C).
        classes: C names.
    """
    confidences, answers = logits.double().softmax(1).max(1)
    known = confidences.isfinite().tolist()
    named = zip(answers.tolist(), known, strict=True)
    return Predictions([classes[i] if k else NO_ANSWER for i, k in named], confidences.tolist())
