"""Broken input: files with bytes changed, JSON with values changed, and names that nobody means."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

NAMES = (
    "..",
    "../x",
    "/etc/passwd",
    "a/../../b",
    "C:\\x",
    "a\0b",
    "a\nb",
    "\x1b[31m",
    "\ud800",
    "‮abc",
    ".",
    "",
    " ",
    "~root",
    "x" * 5000,
    "con",
    "🔍",
    "link",
)
"""Names and paths that lead elsewhere, or that nobody means; ``link`` is a link out."""

_BORDERS = (0, 1, 127, 128, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)

names = st.one_of(st.sampled_from(NAMES), st.text(max_size=12))
values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([*_BORDERS, -1, 2**70, 10**30]),
        st.floats(),
        names,
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)),
    max_leaves=4,
)
"""Anything that JSON can hold, and what Python's reader takes for JSON beyond it."""

_change = st.tuples(
    st.sampled_from(["flip", "set", "number", "cut", "insert", "repeat", "end"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 2**64 - 1) | st.sampled_from(_BORDERS),
    st.integers(1, 40),
)


def changed(whole: bytes, first: int = 0) -> st.SearchStrategy[bytes]:
    """A file with one to four changes: bits, bytes, numbers, pieces taken out or put in.

    Args:
        whole: The file.
        first: Changes begin here, so that a header can be kept.
    """
    return st.lists(_change, min_size=1, max_size=4).map(lambda made: _applied(whole, made, first))


def _applied(whole: bytes, changes: list[tuple[str, float, int, int]], first: int) -> bytes:
    data = bytearray(whole)
    for kind, share, number, length in changes:
        at = first + int(share * max(len(data) - first, 1))
        if kind == "flip" and at < len(data):
            data[at] ^= 1 << (number % 8)
        elif kind == "set" and at < len(data):
            data[at] = number % 256
        elif kind == "number":
            size = (2, 4, 8)[length % 3]
            order = "little" if length % 2 else "big"
            data[at : at + size] = (number % 256**size).to_bytes(size, order)
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "insert":
            data[at:at] = number.to_bytes(8, "little") * (1 + length // 8)
        elif kind == "repeat":
            data[at:at] = data[at : at + length]
        elif kind == "end":
            del data[at:]
    return bytes(data)


def changed_json(whole: Any) -> st.SearchStrategy[bytes]:
    """A JSON file with one or two values replaced, taken out, renamed or put in beside others."""
    places = list(_places(whole))
    edit = st.tuples(
        st.sampled_from(["replace", "remove", "rename", "add"]),
        st.sampled_from(places),
        values,
        names,
    )
    return st.lists(edit, min_size=1, max_size=2).map(lambda edits: _edited(whole, edits))


def _places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in children:
        yield (*before, key)
        if isinstance(child, dict | list):
            yield from _places(child, (*before, key))


def _edited(whole: Any, edits: list[tuple[str, tuple[Any, ...], Any, str]]) -> bytes:
    whole = copy.deepcopy(whole)
    for kind, (*above, key), value, name in edits:
        holder = whole
        try:
            for step in above:
                holder = holder[step]
            old = holder[key]
        except (KeyError, IndexError, TypeError):
            continue  # the first edit took it away
        if kind == "replace":
            holder[key] = value
        elif kind == "remove":
            del holder[key]
        elif isinstance(holder, dict):
            if kind == "rename":
                del holder[key]
            holder[name] = old if kind == "rename" else value
        else:
            holder.insert(key, value)
    return json.dumps(whole).encode()
