"""A small language that chooses rows of a table by what stands in their columns.

``label=4 & source=forum``, ``(length > 200 | source ~ wiki) & !label=toxic``: comparisons of a
column with a value, joined by ``&``, ``|``, ``!`` and brackets, ``&`` before ``|``. ``=`` and
``!=`` compare texts, or numbers where the column holds numbers; ``<``, ``<=``, ``>`` and ``>=``
compare numbers; ``~`` looks for a part of a text, whatever its case. A column or a value with
blanks or signs stands in quotes: ``"kind of text"='a & b'``. A cell without a value fits only
``!=`` and ``!``. Nothing of it is ever run as code.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from stagelens.contracts import StageLensError

_TOKEN = re.compile(
    r"""\s*(?:(?P<sign>!=|<=|>=|=|<|>|~|&|\||!|\(|\))
    |"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>(?:[^'\\]|\\.)*)'
    |(?P<word>[^\s!=<>~&|()"']+))""",
    re.VERBOSE,
)
_ORDERED: Mapping[str, Callable[[pd.Series, float], pd.Series]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_COMPARED = ("=", "!=", "~", *_ORDERED)
_DEEPEST = 50
"""Brackets within brackets; more are no question that a person asks."""


class FilterError(StageLensError):
    """A filter that cannot be read, or asks for a column that is not there."""


class UnknownColumn(FilterError):
    """A filter that asks for a column that is not there."""


@dataclass(frozen=True)
class _Token:
    text: str
    sign: bool
    place: int


def _tokens(text: str) -> list[_Token]:
    found, place = [], 0
    while text[place:].strip():
        match = _TOKEN.match(text, place)
        if match is None:
            raise FilterError(_at(text, place, "a quote is not closed"))
        kind = str(match.lastgroup)
        own = match[kind]
        if kind in ("double", "single"):
            own = re.sub(r"\\(.)", r"\1", own)
        found.append(_Token(own, kind == "sign", match.start(kind)))
        place = match.end()
    return found


def _at(text: str, place: int, why: str) -> str:
    return (
        f"the filter {text!r} cannot be read at character {place + 1}: {why}; write it like "
        "label=4 & source=forum"
    )


def asked_columns(text: str) -> list[str]:
    """The columns that a filter compares, each once; of one that can be read."""
    tokens = _tokens(text)
    return list(
        dict.fromkeys(
            column.text
            for column, sign in pairwise(tokens)
            if not column.sign and sign.sign and sign.text in _COMPARED
        )
    )


def where(
    table: pd.DataFrame, text: str, columns: Sequence[str], digests: Sequence[str] = ()
) -> np.ndarray:
    """Which rows of a table a filter chooses.

    Args:
        table: N rows.
        text: The filter.
        columns: Of the table, those that it may ask for.
        digests: Others that it may ask for whole: they hold no text to look for a part of.

    Returns:
        (N,) truth values.

    Raises:
        FilterError: It cannot be read, or asks for another column; says where, or names them.
    """
    reader = _Reader(text, table, columns, digests)
    found = reader.either(0)
    reader.end()
    return found


class _Reader:
    """Reads a filter from left to right, and evaluates it on the way."""

    def __init__(
        self, text: str, table: pd.DataFrame, columns: Sequence[str], digests: Sequence[str]
    ) -> None:
        self._text, self._table = text, table
        self._columns, self._digests = columns, digests
        self._tokens, self._place = _tokens(text), 0

    def end(self) -> None:
        if self._place < len(self._tokens):
            extra = self._tokens[self._place]
            raise self._error(extra, f"{extra.text!r} does not belong there")

    def either(self, depth: int) -> np.ndarray:
        found = self._both(depth)
        while self._sign("|"):
            found = found | self._both(depth)
        return found

    def _both(self, depth: int) -> np.ndarray:
        found = self._one(depth)
        while self._sign("&"):
            found = found & self._one(depth)
        return found

    def _one(self, depth: int) -> np.ndarray:
        if depth > _DEEPEST:
            raise FilterError(_at(self._text, 0, "it has too many brackets"))
        if self._sign("!"):
            return ~self._one(depth + 1)
        if self._sign("("):
            found = self.either(depth + 1)
            if not self._sign(")"):
                raise self._error(self._next(), "a bracket is not closed")
            return found
        return self._comparison()

    def _comparison(self) -> np.ndarray:
        column, sign, value = self._word("a column"), self._next(), None
        if sign is None or not sign.sign or sign.text not in _COMPARED:
            raise self._error(sign, f"after {column!r} there has to be {', '.join(_COMPARED)}")
        self._place += 1
        value = self._word("a value")
        if column in self._digests and sign.text == "~":
            raise FilterError(
                f"the filter {self._text!r} looks for a part of {column!r}, which is a digest of "
                "the whole input and holds no text; ask for a part of text, where texts are known"
            )
        if column not in (*self._columns, *self._digests):
            raise UnknownColumn(
                f"the filter {self._text!r} asks for {column!r}, which there is not; there are "
                f"{', '.join(self._columns)}"
            )
        return self._compared(self._table[column], sign, value)

    def _compared(self, cells: pd.Series, sign: _Token, value: str) -> np.ndarray:
        numbers = is_numeric_dtype(cells) and not is_bool_dtype(cells)
        if sign.text in _ORDERED or (numbers and sign.text in ("=", "!=")):
            try:
                asked = float(value)
            except ValueError:
                raise self._error(sign, f"{value!r} is not a number") from None
            held = pd.to_numeric(cells, errors="coerce").astype(float)
            if sign.text in _ORDERED:
                return _ORDERED[sign.text](held, asked).to_numpy(bool)
            same = (held == asked).to_numpy(bool)
            return same if sign.text == "=" else ~same
        known = cells.notna().to_numpy()
        texts = cells.astype(str)
        if sign.text == "~":
            held = texts.str.contains(value, case=False, regex=False)
            return known & held.to_numpy(bool)
        same = known & (texts == value).to_numpy(bool)
        return same if sign.text == "=" else ~same

    def _next(self) -> _Token | None:
        return self._tokens[self._place] if self._place < len(self._tokens) else None

    def _sign(self, text: str) -> bool:
        token = self._next()
        here = token is not None and token.sign and token.text == text
        self._place += here
        return here

    def _word(self, what: str) -> str:
        token = self._next()
        if token is None or token.sign:
            raise self._error(token, f"{what} is missing")
        self._place += 1
        return token.text

    def _error(self, token: _Token | None, why: str) -> FilterError:
        return FilterError(_at(self._text, len(self._text) if token is None else token.place, why))
