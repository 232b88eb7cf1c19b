"""Rows of tokens in which several documents are packed: where each of them is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from stagelens.contracts import Example

from .transformer_task import IGNORED


def documents_in(batch: Mapping[str, Any], ends: Collection[int] = ()) -> Tensor | None:
    """The document that each token of a batch belongs to, as the batch itself says.

    A document begins where one of these does, the first that the batch has: ``cu_seq_lens_q``;
    another ``seq_idx``; ``position_ids`` that do not go on; another number in ``attention_mask``;
    in a mask of pairs of tokens (B, 1, T, T), a token that may not read the one before it.

    Args:
        batch: ``input_ids`` and ``labels``, (B, T), and what else the model takes.
        ends: Tokens after which a document ends, for rows that say nothing of the kind.

    Returns:
        (B, T) numbers, counted from 0 over the batch, -1 for padding; None where no row has more
        than one document, or there are no labels of tokens.
    """
    ids, labels = batch.get("input_ids"), batch.get("labels")
    if not (isinstance(ids, Tensor) and isinstance(labels, Tensor)):
        return None
    if ids.ndim != 2 or labels.shape != ids.shape or not ids.numel():
        return None
    real = _real(batch, ids)
    begins = _begins(batch, ids, ends)
    begins[:, 0] = True
    # What follows padding begins anew.
    begins[:, 1:] |= real[:, 1:] & ~real[:, :-1]
    real = real & ~_filling(begins, real, labels)
    begins &= real
    if int(begins.sum(1).max()) < 2:
        return None
    numbers = begins.flatten().cumsum(0).reshape(ids.shape) - 1
    return numbers.masked_fill(~real, -1)


def _real(batch: Mapping[str, Any], ids: Tensor) -> Tensor:
    """Which tokens are no padding, (B, T)."""
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor):
        return torch.ones_like(ids, dtype=torch.bool)
    if mask.shape == ids.shape:
        return mask != 0
    if (pairs := _pairs(mask, ids)) is not None:
        return pairs.diagonal(dim1=1, dim2=2)
    return torch.ones_like(ids, dtype=torch.bool)


def _pairs(mask: Any, ids: Tensor) -> Tensor | None:
    """Whether each token may read each other one, (B, T, T), where a mask says so."""
    if not isinstance(mask, Tensor) or mask.ndim not in (3, 4):
        return None
    own = mask[:, 0] if mask.ndim == 4 else mask
    count, width = ids.shape
    if own.shape != (count, width, width):
        return None
    # Masks that are added to scores are 0 where a token may be read.
    return own == 0 if own.is_floating_point() else own != 0


def _begins(batch: Mapping[str, Any], ids: Tensor, ends: Collection[int]) -> Tensor:
    """Where documents begin, (B, T), without the first of a row."""
    found = torch.zeros_like(ids, dtype=torch.bool)
    lengths, kinds = batch.get("cu_seq_lens_q"), batch.get("seq_idx")
    positions, mask = batch.get("position_ids"), batch.get("attention_mask")
    if isinstance(lengths, Tensor) and len(ids) == 1:
        places = lengths.long()
        found[0, places[places < ids.shape[1]]] = True
    elif isinstance(kinds, Tensor) and kinds.shape == ids.shape:
        found[:, 1:] = kinds[:, 1:] != kinds[:, :-1]
    elif isinstance(positions, Tensor) and positions.ndim == 2:
        positions = positions.expand_as(ids)
        found[:, 1:] = positions[:, 1:] <= positions[:, :-1]
    elif isinstance(mask, Tensor) and mask.shape == ids.shape and int(mask.max()) > 1:
        found[:, 1:] = mask[:, 1:] != mask[:, :-1]
    elif (pairs := _pairs(mask, ids)) is not None:
        found[:, 1:] = ~pairs.diagonal(-1, dim1=1, dim2=2)
    if ends and not found.any():
        found[:, 1:] = torch.isin(ids, torch.tensor(sorted(ends)))[:, :-1]
    return found


def _filling(begins: Tensor, real: Tensor, labels: Tensor) -> Tensor:
    """Tokens at the ends of rows, each a document by itself and without a label: padding."""
    after = torch.cat([begins[:, 1:], torch.ones_like(begins[:, :1])], 1)
    alone = (begins & after & (labels == IGNORED)) | ~real
    return alone.flip(1).int().cummin(1).values.bool().flip(1)


def shown(
    batch: Mapping[str, Any], documents: Tensor | None, text: Callable[[list[int]], str]
) -> list[Example]:
    """Texts, or prompts and completions, of the documents of a batch, in their order.

    A prompt is what comes before the first token that has a label.

    Args:
        batch: As :func:`documents_in` takes it.
        documents: What that returned; None for a batch whose rows are one each.
        text: Decodes tokens.
    """
    ids, labels = batch["input_ids"], batch["labels"]
    if documents is None:
        mask = batch.get("attention_mask", torch.ones_like(ids)) != 0
        numbers = torch.arange(len(ids))[:, None].expand_as(ids)
        places = [(numbers == number) & mask for number in range(len(ids))]
    else:
        places = [documents == number for number in range(int(documents.max()) + 1)]
    # Nothing predicts the first token of one that others are packed with, or might have been: it
    # has no label, and is no prompt for that.
    alone = documents is not None or "position_ids" in batch
    found = []
    for number, own in enumerate(places):
        tokens, scored = ids[own].tolist(), labels[own] != IGNORED
        first = int(scored.int().argmax()) if scored.any() else len(tokens)
        first = 0 if alone and first == 1 else first
        prompt, rest = text(tokens[:first]), text(tokens[first:])
        content = {"prompt": prompt, "completion": rest} if prompt else {"text": rest}
        found.append(Example(str(number), content))
    return found


def without_documents(batch: Mapping[str, Any], documents: Tensor, kept: Collection[int]) -> Any:
    """The batch with only some documents in the loss: the tokens of others have no label."""
    mine = torch.isin(documents, torch.tensor(sorted(kept), dtype=documents.dtype))
    return {**batch, "labels": batch["labels"].masked_fill(~mine, IGNORED)}


def with_other_tokens(batch: Mapping[str, Any], documents: Tensor, kept: Collection[int]) -> Any:
    """The batch with other tokens in all documents but some, to see whether these read them."""
    mine = torch.isin(documents, torch.tensor([*kept, -1], dtype=documents.dtype))
    ids = batch["input_ids"]
    # Half of the numbers away that there are, so that each is another one than it was.
    count = int(ids.max()) + 1
    return {**batch, "input_ids": torch.where(mine, ids, (ids + count // 2) % count)}
