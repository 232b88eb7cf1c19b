"""Charts from memory: drawing a figure takes longer than everything else a page does."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import streamlit as st

from stagelens.charts import Chart, Markup

P = ParamSpec("P")
Drawn = TypeVar("Drawn", Chart, Markup)


def chart(make: Callable[P, Drawn], *args: P.args, **kwargs: P.kwargs) -> Drawn:
    """What ``make`` draws from these arguments, once for all sessions; never to be changed.

    Args:
        make: A function of :mod:`stagelens.charts`, whose chart depends on its arguments alone.
        args: As it takes them. All of their content goes into the key, not a sample.
        kwargs: As it takes them, likewise.
    """
    # Hashed here, because Streamlit hashes large frames from a sample of their rows: a frame that
    # differs in another row would get the old chart. Keywords are sorted, as they have no order.
    asked = (make.__module__, make.__qualname__, args, sorted(kwargs.items()))
    return _drawn(hashlib.sha256(pickle.dumps(asked)).hexdigest(), lambda: make(*args, **kwargs))


@st.cache_resource(max_entries=64, show_spinner=False)
def _drawn(key: str, _draw: Callable[[], Drawn]) -> Drawn:
    # Not part of the key, since Streamlit leaves out arguments whose names begin with _.
    return _draw()
