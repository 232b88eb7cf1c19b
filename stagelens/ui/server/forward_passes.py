"""Asking models inside the dashboard: bounded forward passes, one page at a time.

Anything longer runs in a child process, see ``jobs``. Torch shares its threads, its random state
and its modules' weights among all threads of a server, so pages that ask models wait for each
other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st


@st.cache_resource(show_spinner=False)
def _turn() -> threading.RLock:
    """The one lock of this server; see ``jobs.registry`` for why it is no module's variable."""
    return threading.RLock()


@contextmanager
def alone() -> Iterator[None]:
    """Hold this around every call that runs a model in a page's thread; draw nothing inside."""
    with _turn():
        yield
