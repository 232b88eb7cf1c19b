"""How likely tokens are to a causal language model, given those before them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .cutting import PIECE_TOKENS, pieces
from .shared_prefixes import reader
from .transformer_task import IGNORED, Batch

PADDING = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}
"""What rows of a batch hold, and what pads each."""
_PIECE_BYTES = 256 << 20
"""Most bytes that the logits of one pass take, unless a single row takes more."""
_POSITIONS = 128
"""Positions whose logits are held in float64 at a time."""


def likelihoods(
    model: nn.Module, batch: Batch, vocabulary: int, options: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the labels of B rows, and what each row would go on with.

    Args:
        model: In evaluation mode.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, (B, T), padded on the right.
        vocabulary: V.
        options: Of the model, where no cache is used.

    Returns:
        (B, T) float64 in nats, NaN where a token has no label or nothing precedes it; (B,) ids of
        the most probable tokens before the first label, or after a row with labels throughout; (B,)
        float64 probabilities of these.
    """
    every, lengths = batch["labels"], batch["attention_mask"].sum(1)
    values = torch.full(every.shape, torch.nan, dtype=torch.float64, device=every.device)
    next_ids = torch.zeros_like(every[:, 0])
    next_values = torch.zeros_like(values[:, 0])
    answered = every != IGNORED
    before = answered.int().argmax(1) - 1  # of a completion: the token before it
    # Only a text is scored from its first place on: something always precedes a completion.
    last = torch.where(answered[:, 0], lengths - 1, before)
    for rows, first, logits in _passes(model, batch, before.clamp(min=0), vocabulary, options):
        labels = every[rows]
        # The logits at a place predict the token after it.
        row, place = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        own = _gathered(logits, row, place - first[row], labels[row, place + 1])
        values[rows[row], place + 1] = own
        each = torch.arange(len(rows), device=rows.device)
        at = last[rows] - first
        best = logits[each, at].argmax(1)
        next_ids[rows] = best
        next_values[rows] = _gathered(logits, each, at, best).exp()
    return values, next_ids, next_values


def _passes(
    model: nn.Module, batch: Batch, given: Tensor, vocabulary: int, options: Mapping[str, Any]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Numbers of R rows, the places (R,) of their first logits, and those logits (R, S, V).

    Args:
        model: See :func:`likelihoods`.
        batch: B rows.
        given: (B,) tokens of each row whose logits are not needed.
        vocabulary: See :func:`likelihoods`.
        options: See :func:`likelihoods`.
    """
    # 4 bytes per logit, as in float32.
    limit = min(max(_PIECE_BYTES // (4 * vocabulary), 1), PIECE_TOKENS)
    own = {name: batch[name] for name in ("input_ids", "attention_mask")}
    shared = reader(model, own["input_ids"], own["attention_mask"].sum(1).tolist(), given.tolist())
    if shared is not None:
        for read in shared(limit):
            yield read.rows, read.first, read.logits
        return
    for rows, piece in pieces(own, limit):
        yield rows, torch.zeros_like(rows), model(**piece, **options).logits


def below(one: Tensor, other: Tensor, value: int) -> Tensor:
    """(A, S) and (B, T) as (A + B, max(S, T)), padded on the right with ``value``."""
    width = max(one.shape[1], other.shape[1])
    return torch.cat(
        [nn.functional.pad(t, (0, width - t.shape[1]), value=value) for t in (one, other)]
    )


def _gathered(logits: Tensor, rows: Tensor, places: Tensor, tokens: Tensor) -> Tensor:
    """Log p of some tokens, (N,) float64, from (B, T, V) logits; few rows at a time in float64."""
    parts = [logits.new_empty(0, dtype=torch.float64)]
    for part in torch.arange(len(rows), device=rows.device).split(_POSITIONS):
        # Float64 copies of all logits would take twice the memory of the logits themselves.
        own = logits[rows[part], places[part]].double()
        parts.append(own.gather(1, tokens[part, None]).squeeze(1) - own.logsumexp(1))
    return torch.cat(parts)
