"""Rows of tokens cut into batches: those of similar length together, with little padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

MOST_PADDING = 0.05
"""The share of padding that batches may have in all, and where it is more,"""
ALSO_PADDED = 64
"""as many tokens: a few short rows are not worth a pass each."""

PIECE_TOKENS = 8192
"""Most tokens, padding included, that pass through a model at once in evaluation."""


def spans_of_similar_length(
    lengths: Sequence[int], most: Callable[[int], int]
) -> Iterator[list[int]]:
    """Cut rows up, the longest first, so that padding to the longest of a batch stays scarce.

    Args:
        lengths: (B,) tokens of every row.
        most: Rows of a batch, at least 1, by the length of its longest.

    Yields:
        Numbers of rows, each once.
    """
    # Stable, so that the same rows are always cut alike.
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    start = total = padding = 0
    while start < len(order):
        longest = max(lengths[order[start]], 1)
        stop, last = start, min(start + most(longest), len(order))
        while stop < last:
            added = longest - lengths[order[stop]]
            total += longest
            if padding + added > max(MOST_PADDING * total, ALSO_PADDED) and stop > start:
                total -= longest
                break
            padding += added
            stop += 1
        yield order[start:stop]
        start = stop


def pieces(
    batch: Mapping[str, Tensor], tokens: int = PIECE_TOKENS
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Cut a batch up for evaluation: rows of similar length together, to avoid padding.

    Args:
        batch: ``input_ids``, ``attention_mask`` and other (B, T) tensors, padded on the right.
        tokens: Most tokens in a piece, padding included; a longer row is a piece by itself.

    Yields:
        The numbers of some rows, and those rows of every tensor.
    """
    mask = batch["attention_mask"]
    lengths = mask.sum(1).tolist()
    for chosen in spans_of_similar_length(lengths, lambda longest: max(tokens // longest, 1)):
        longest = max(lengths[chosen[0]], 1)
        rows = torch.tensor(chosen, device=mask.device)
        yield rows, {name: tensor[rows, :longest] for name, tensor in batch.items()}
