"""Arrays of a figure's JSON, which plotly writes as lists or as bytes."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np


def values_of(array: object) -> list[Any]:
    """The values of a figure's array, which plotly may have written as base64 bytes."""
    if isinstance(array, Mapping) and "bdata" in array:
        flat = np.frombuffer(base64.b64decode(array["bdata"]), np.dtype(str(array["dtype"])))
        shape = [int(n) for n in str(array.get("shape", len(flat))).split(",")]
        values = flat.astype(object)
        values[flat != flat] = None  # JSON knows no NaN
        found: list[Any] = values.reshape(shape).tolist()
        return found
    return list(array) if isinstance(array, list | tuple) else []
