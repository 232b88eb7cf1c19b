"""How one text differs from another, word by word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Literal

Change = Literal["same", "added", "gone"]

_PIECES = re.compile(r"\w+|\s+|[^\w\s]")
MOST = 2_000
"""Words and marks of a text that are compared; the time grows with their square."""


def word_changes(first: str, second: str) -> list[tuple[Change, str]]:
    """The second text in parts, with what the first has and it has not in its place.

    Args:
        first: What is compared with.
        second: What is shown.

    Returns:
        Parts in order; those that are not ``gone`` make up the second text, those that are not
        ``added`` the first.
    """
    one, other = _PIECES.findall(first), _PIECES.findall(second)
    if max(len(one), len(other)) > MOST:
        return [("same", second)] if first == second else [("gone", first), ("added", second)]
    found: list[tuple[Change, str]] = []
    # Not its heuristic of popular elements: it would take common words for noise.
    for kind, a, b, c, d in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        if kind == "equal":
            found.append(("same", _text(other[c:d])))
            continue
        found += [("gone", _text(one[a:b]))] if b > a else []
        found += [("added", _text(other[c:d]))] if d > c else []
    return found


def _text(pieces: Sequence[str]) -> str:
    return "".join(pieces)
