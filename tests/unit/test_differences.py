"""How one answer differs from another, word by word."""

from __future__ import annotations

import pytest

from stagelens.wording.differences import MOST, word_changes


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("it is 4.", "it is 4.", [("same", "it is 4.")]),
        (
            "it is four.",
            "it is five.",
            [("same", "it is "), ("gone", "four"), ("added", "five"), ("same", ".")],
        ),
        # Marks between words that changed are no part that stayed.
        (
            "answer : rye .",
            "it : is .",
            [("gone", "answer : rye"), ("added", "it : is"), ("same", " .")],
        ),
        ("yes", "yes, sir", [("same", "yes"), ("added", ", sir")]),
        ("a b", "", [("gone", "a b")]),
        ("", "a b", [("added", "a b")]),
        ("", "", []),
    ],
)
def test_words_that_differ(first: str, second: str, expected: list[tuple[str, str]]) -> None:
    assert word_changes(first, second) == expected


@pytest.mark.parametrize("count", [40, MOST + 1])
def test_parts_make_up_both_texts(count: int) -> None:
    first = "".join(f"w{k % 7} " for k in range(count))
    second = "".join(f"w{k % 5}\n" for k in range(count))
    parts = word_changes(first, second)
    assert "".join(text for kind, text in parts if kind != "added") == first
    assert "".join(text for kind, text in parts if kind != "gone") == second
