"""Words and spans of a text that a tokenizer has cut into pieces. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_NEAR = 0.5
"""A word belongs to the span of its neighbour where it has at least this part of its value."""


def words_of(tokens: Sequence[str]) -> list[tuple[int, int]]:
    """Where words begin and end: pieces that letters or digits join are one word.

    Args:
        tokens: (T,) printable pieces. Where no piece has a space, they have lost those between
            words, and nothing says which pieces belong together: each is a word.
    """
    if not runs_on(tokens):
        return [(place, place + 1) for place in range(len(tokens))]
    starts = [
        place
        for place, token in enumerate(tokens)
        if place == 0 or not (tokens[place - 1][-1:].isalnum() and token[:1].isalnum())
    ]
    return list(zip(starts, [*starts[1:], len(tokens)], strict=True))


def runs_on(tokens: Sequence[str]) -> bool:
    """Whether the pieces contain the spaces between them."""
    return any(token[:1].isspace() or token[-1:].isspace() for token in tokens)


def strongest_span(tokens: Sequence[str], values: np.ndarray) -> tuple[str, float]:
    """The words with the largest value, with neighbours of the same sign and of similar size.

    Args:
        tokens: (T,) printable pieces.
        values: (T,) one per piece; NaN for those without a value.

    Returns:
        The span as it stands in the text, and the sum of its values.
    """
    words = words_of(tokens)
    sums = np.array([np.nansum(values[start:end]) for start, end in words])
    best = int(np.abs(sums).argmax())
    near = sums * np.sign(sums[best]) >= _NEAR * abs(sums[best])
    first = last = best
    while first > 0 and near[first - 1] and sums[best]:
        first -= 1
    while last + 1 < len(words) and near[last + 1] and sums[best]:
        last += 1
    between = "" if runs_on(tokens) else " "
    pieces = tokens[words[first][0] : words[last][1]]
    return between.join(pieces).strip(), float(sums[first : last + 1].sum())
