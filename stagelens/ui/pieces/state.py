"""What is open and what is chosen: one place, mirrored in the URL.

The run (``run``), the chosen example (``example``), those that stand side by side (``beside``)
and the page of the table (``page``) are plain query parameters kept here. All other parameters
belong to widgets with ``bind="query-params"``, so Streamlit validates them against the widget's
options and keeps them when pages are switched. Whatever comes from the URL is checked: the run by
``settings.resolve``, examples against the ids of their set, the page against the number of pages.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import streamlit as st

RUN = "run"
EXAMPLE = "example"
PAGE = "page"
BESIDE = "beside"
MOST_BESIDE = 5
"""Examples that stand side by side."""

VIEW, OF_THE_SET, OWN, COMPARED = "view", "Evaluation set", "Own example", "Comparison"
"""Key of the tabs of the Examples page, and what these are called; in links too."""

PART = "part"
GAPS, FOUND, WHERE = "Group gaps", "Found without metadata", "Where in the input"
"""Key of the tabs of the page Spurious features, and what these are called; in links too."""

LOOK = "look"
EFFECTS, WHEN, DATA, INPUT = "Effects", "When", "Which data", "Where"
SIDE_BY_SIDE = "Side by side"
"""Key of the tabs below the chosen example, and what these are called; in links too."""

ASSEMBLE = "assemble-"
"""Keys of the form that makes a run of checkpoints begin with it."""
_KEPT = (ASSEMBLE,)
"""Keys that begin so are no choice within a run, and outlive the opening of another one."""

OWN_WIDGET = "own-"
"""Keys of the widgets of the own example begin with it."""

_OWN = "stagelens:"
_LONGEST = 1024


def session_key(name: str) -> str:
    """A key of the session state that no widget has; forgotten when another run is opened."""
    return _OWN + name


def _get(name: str) -> str | None:
    value = st.query_params.get(name) or st.session_state.get(session_key(name))
    if not isinstance(value, str) or not value or len(value) > _LONGEST:
        return None
    st.session_state[session_key(name)] = value
    if st.query_params.get(name) != value:
        st.query_params[name] = value
    return value


def _set(name: str, value: str | None) -> None:
    if value is None:
        st.session_state.pop(session_key(name), None)
        st.query_params.pop(name, None)
    else:
        st.session_state[session_key(name)] = value
        st.query_params[name] = value


def reference() -> str | None:
    """How the URL names the open run; None where none is open. Not yet checked."""
    return _get(RUN)


def open_reference(reference: str | None) -> None:
    """Open another run, or none: everything that was chosen in the one before is forgotten."""
    for key in [key for key in st.session_state if not str(key).startswith(_KEPT)]:
        del st.session_state[key]
    for name in (EXAMPLE, PAGE, BESIDE):
        _set(name, None)
    _set(RUN, reference)


def example(ids: Collection[str]) -> str | None:
    """The chosen example, where it is one of ``ids``."""
    chosen = _get(EXAMPLE)
    return chosen if chosen in ids else None


def choose(example_id: str | None) -> None:
    """Choose an example, or none; the URL follows."""
    _set(EXAMPLE, example_id)


def side_by_side(ids: Collection[str]) -> list[str]:
    """The examples that stand side by side, those that are among ``ids``; the URL names them."""
    linked = st.query_params.get_all(BESIDE)[: 4 * MOST_BESIDE]
    named = linked or st.session_state.get(session_key(BESIDE), [])
    known = set(ids)
    found = [name for name in dict.fromkeys(named) if name in known][:MOST_BESIDE]
    if named and found != linked:
        put_side_by_side(found)
    return found


def put_side_by_side(example_ids: Sequence[str]) -> None:
    """Let these examples stand side by side; the URL follows."""
    st.session_state[session_key(BESIDE)] = list(example_ids)
    if example_ids:
        st.query_params[BESIDE] = list(example_ids)
    else:
        st.query_params.pop(BESIDE, None)


def linked_page() -> int | None:
    """The page of the table that the URL names; None where it names none."""
    text = st.query_params.get(PAGE, "")
    return max(int(text[:9]), 1) if text.isascii() and text.isdigit() else None


def link_page(page: int) -> None:
    """Put the page of the table into the URL; the first one needs no words."""
    if page > 1:
        st.query_params[PAGE] = str(page)
    else:
        st.query_params.pop(PAGE, None)
