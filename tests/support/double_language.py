"""A small language model in double precision, whose loss transformers would take in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from torch import Tensor, nn

IGNORED = -100


def loss_in_double(
    logits: Tensor, labels: Tensor, vocab_size: int, num_items_in_batch: Any = None, **_: Any
) -> Tensor:
    """As transformers compute it, but not in float32."""
    shifted = nn.functional.pad(labels, (0, 1), value=IGNORED)[:, 1:]
    how = "mean" if num_items_in_batch is None else "sum"
    given = logits.view(-1, vocab_size), shifted.reshape(-1)
    loss = nn.functional.cross_entropy(*given, reduction=how)
    return loss if num_items_in_batch is None else loss / num_items_in_batch


def made(config: Mapping[str, Any]) -> Any:
    """A GPT-2 in double precision."""
    options = {name: value for name, value in config.items() if name != "model_type"}
    options = transformers.GPT2Config(**options, attn_implementation="eager")
    model = transformers.GPT2LMHeadModel(options).double()
    model.loss_function = loss_in_double
    return model
