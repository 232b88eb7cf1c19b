"""How one text differs from another, word by word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Literal

Change = Literal["same", "added", "gone"]

_PIECES = re.compile(r"\w+|\s+|[^\w\s]")
_WORD = re.compile(r"\w")
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
    # Not its heuristic of popular elements: it would take common words for noise.
    blocks = SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    found: list[tuple[Change, str]] = []
    gone, added = "", ""
    for place, (kind, a, b, c, d) in enumerate(blocks):
        same = _text(other[c:d])
        # Blanks and marks between two changes are no words that stayed: they change with these.
        between = 0 < place < len(blocks) - 1 and not _WORD.search(same)
        if kind == "equal" and not between:
            found += _changed(gone, added)
            found.append(("same", same))
            gone, added = "", ""
        else:
            gone, added = gone + _text(one[a:b]), added + same
    return found + _changed(gone, added)


def _changed(gone: str, added: str) -> list[tuple[Change, str]]:
    found: list[tuple[Change, str]] = [("gone", gone), ("added", added)]
    return [each for each in found if each[1]]


def _text(pieces: Sequence[str]) -> str:
    return "".join(pieces)
