"""Asking models inside the dashboard: bounded forward passes, one page at a time.

Anything longer runs in a child process, see ``jobs``. All threads of a server share torch's thread
pool, its random state and the modules' weights, so pages that ask models wait for each other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st


@st.cache_resource(show_spinner=False)
def _turn() -> threading.RLock:
    """The one lock of this server; see ``jobs.registry`` for why it is not a module variable."""
    return threading.RLock()


@contextmanager
def alone() -> Iterator[None]:
    """Hold this around every call that runs a model in a page's thread; draw nothing inside."""
    with _turn():
        yield
