"""What the kinds of training runs are called on which promised errors were measured."""

from __future__ import annotations

from collections.abc import Mapping

_NETWORKS: Mapping[str, str] = {
    "mlp": "fully connected network",
    "cnn": "convolutional network",
    "cnn-batch": "convolutional network with BatchNorm",
    "cnn-group": "convolutional network with GroupNorm",
    "residual-batch": "residual network with BatchNorm",
    "residual-group": "residual network with GroupNorm",
    "vit": "vision transformer",
    "bert": "BERT",
    "gpt": "GPT",
    "encoder": "transformer encoder",
}
"""By the first part of a family's name; the last part is its data."""


def kind_of_run(family: str) -> str:
    """``vit-fashion`` as ``vision transformer on fashion``; other names stay as they are."""
    network, _, data = family.rpartition("-")
    return f"{_NETWORKS[network]} on {data}" if network in _NETWORKS else family
