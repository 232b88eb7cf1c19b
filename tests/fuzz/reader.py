"""What a reader is to the fuzzer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        inputs: What it is given.
        read: Reads one; ends well, or with a StageLensError.
        weight: Share of a run's inputs, in relation to the others.
        watched: Whether what it opens and starts is watched. Pages are not: Streamlit's cache
            unpickles what it pickled itself.
    """

    inputs: st.SearchStrategy[Any]
    read: Callable[[Any], object]
    weight: float = 1.0
    watched: bool = True


def put(path: Path, data: bytes) -> None:
    """Write a new file in the place of one that may still be mapped into memory."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
