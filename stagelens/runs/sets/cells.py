"""Cells of metadata columns: as text, in JSON, and as a set's digest covers them."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd


def text_of(value: Any) -> str | None:
    """A metadata cell as text; None where it is missing."""
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return None
    return value if isinstance(value, str) else json.dumps(value, default=in_json)


def in_json(value: Any) -> str:
    """Dates and decimals within lists and dicts, as text.

    Raises:
        TypeError: Bytes, whose text nobody could use.
    """
    if isinstance(value, bytes | bytearray):
        raise TypeError(f"{len(value):,} bytes within a cell")
    return str(value)


def token(value: Any) -> bytes:
    """A cell's value for the digest, which does not depend on the library that it comes from."""
    if isinstance(value, float):  # hex is exact
        return b"f" + value.hex().encode()
    if hasattr(value, "isoformat"):
        return b"t" + value.isoformat().encode()
    # With its type: True, 1 and "1" are three values.
    return f"{type(value).__name__}:{value}".encode()
