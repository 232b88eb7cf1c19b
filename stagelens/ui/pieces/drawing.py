"""Charts from memory: drawing a figure takes longer than everything else that a page does."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from typing import ParamSpec

import streamlit as st

from stagelens.charts import Chart

P = ParamSpec("P")


def chart(make: Callable[P, Chart], *args: P.args, **kwargs: P.kwargs) -> Chart:
    """What ``make`` draws of these arguments, drawn once for all sessions; nobody may change it.

    Args:
        make: A function of :mod:`stagelens.charts`, whose chart depends on its arguments alone.
        args: As it takes them. All of their content is looked at, not a sample.
        kwargs: As it takes them.
    """
    asked = (make.__module__, make.__qualname__, args, sorted(kwargs.items()))
    return _drawn(hashlib.sha256(pickle.dumps(asked)).hexdigest(), lambda: make(*args, **kwargs))


@st.cache_resource(max_entries=64, show_spinner=False)
def _drawn(key: str, _draw: Callable[[], Chart]) -> Chart:
    return _draw()
