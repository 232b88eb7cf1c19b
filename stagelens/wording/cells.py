"""Text from data in files and terminals that would act on it."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Characters that spreadsheets take for the beginning of a formula."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a terminal may take for a command; tabs and line breaks are left."""


def cell(value: Any) -> Any:
    """A cell of a CSV file, in which text is never a formula."""
    # Text only: a negative number begins with a minus too, and has to stay a number.
    if not isinstance(value, str):
        return value
    if value.startswith(_FORMULA):
        value = f"'{value}"
    # Writers of CSV quote a line feed, but not the carriage return that ends a row for a reader.
    return value.replace("\r\n", "\n").replace("\r", "\n")


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """A table for a CSV file, names of columns included."""
    texts = {name: table[name].map(cell) for name in table.select_dtypes(["object", "string"])}
    return table.assign(**texts).rename(columns=cell)


def for_terminal(text: str) -> str:
    """Text in which no terminal finds an escape sequence: control characters are written out."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
