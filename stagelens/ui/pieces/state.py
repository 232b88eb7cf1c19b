"""What is open and what is chosen: one place, mirrored in the URL.

The run (``run``), the chosen example (``example``), those that stand side by side (``beside``),
the page of the table (``page``) and whatever several pages share (``SHARED``) are plain query
parameters kept here. All other parameters belong to controls of one page, with
``bind="query-params"``, so Streamlit validates them against the control's options.

What pages share is not bound: Streamlit takes a bound parameter out of the address as soon as its
page is left, and lets nobody write it. So the session says what is chosen, :func:`arrive` takes up
what the address says otherwise (a link, or the way back), and writes the rest into it.

Whatever comes from the URL is checked: the run by ``settings.resolve``, choices against their
options, examples against the ids of their set, the page against the number of pages.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from stagelens.ui.server import settings

RUN = "run"
EXAMPLE = "example"
PAGE = "page"
BESIDE = "beside"
OFF = "off"
"""Names of the stages that are switched off on the Overview, with commas between them."""
ABOUT = "about"
"""Whose behaviour *When* and *Which data* ask about; nothing for the one example."""
TRAINED = "trained"
"""The training example that is looked at, by its id."""
BLOCK = "block"
"""Place of the block of the network that is looked at."""
WALL, EVERYTHING = "wall", "all"
"""Says that the Overview's wall shows all examples, where no group was chosen."""
BAR = ("set", "measure", "by", "group", "stage", "estimator")
"""Keys of the controls in the bar on top of every page, and their names in links."""
LEAF = "leaf"
"""Key of the first of them, where a run has several leaves."""
SHARED = (LEAF, *BAR, "chance", "credit")
"""Keys of controls that several pages share; also their names in links."""
FILTERS = ("label", "answer", "side", "changed", "path", "strength", "answers", "q", "sort")
"""Keys of the controls of the Examples page that say which examples it lists, in which order."""
_BEFORE = {
    **{"behaviour": "measure", "trusted": "measure", "gap": "measure"},
    **{"of-stage": "stage", "within": "stage"},
}
"""Names that links had before one bar held these choices for all pages."""
MOST_BESIDE = 5
"""Most examples that stand side by side."""

VIEW, OF_THE_SET, OWN, COMPARED = "view", "Evaluation set", "Own example", "Comparison"
OF_A_STAGE = "Training data"
"""Key of the tabs of the Examples page, and what these are called; also in links."""

PART = "part"
GAPS, FOUND, WHERE = "Group gaps", "Found without metadata", "Where in the input"
NETWORK_PART = "Where in the network"
"""Key of the tabs of the page Spurious features, and what these are called; also in links."""

LOOK = "look"
EFFECTS, WHEN, DATA, INPUT = "Effects", "When", "Which data", "Where"
NETWORK, SIDE_BY_SIDE, ANSWERS = "Network", "Side by side", "Answers"
"""Key of the tabs below the chosen example, and what these are called; also in links."""

ASSEMBLE = "assemble-"
"""Prefix of the keys of the form that makes a run of checkpoints."""
_BEGUN = "begun"
"""Key of whether a page of this visit has been shown."""

_WRITTEN = "stagelens:written"
"""Key of what the address was given of that which pages share, and of what it said before."""
_SHOWN = "stagelens:shown-page"
_HEARD = "\0"
"""Stands for nothing that an address can say."""

_KEPT = (ASSEMBLE, _BEGUN)
"""Prefixes of keys that are no choice within a run, and so outlive the opening of another one."""

OWN_WIDGET = "own-"
"""Prefix of the keys of the own example's widgets."""

_OWN = "stagelens:"
_LONGEST = 1024


def session_key(name: str) -> str:
    """A key of the session state that is in no URL; forgotten when another run is opened."""
    return _OWN + name


def _went_back() -> bool:
    """Whether this page is shown because somebody went back, or forward again, to it."""
    context = get_script_run_ctx()
    return context is not None and context.is_history_navigation


def _get(name: str) -> str | None:
    gone = _went_back() and name not in st.query_params
    if gone or st.query_params.get(name) == "":  # the address says that there is none
        _set(name, None)
        return None
    # A link without the parameter, to another page for instance, does not end the choice.
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


def begin() -> None:
    """Open the run that the dashboard was started with, if a visit begins without naming one."""
    if _BEGUN not in st.session_state:
        st.session_state[_BEGUN] = True
        if _get(RUN) is None:
            _set(RUN, settings.started_with())


def open_reference(reference: str | None) -> None:
    """Open another run, or none: everything that was chosen in the last one is forgotten."""
    for key in [key for key in st.session_state if not str(key).startswith(_KEPT)]:
        del st.session_state[key]
    st.session_state[session_key(RUN)] = reference
    # At once, so that one step back leads to the run that was left.
    st.query_params.from_dict({RUN: reference} if reference else {})


def chosen(key: str) -> str | None:
    """What is chosen of that which pages share; None where nobody chose. Not checked."""
    found = st.session_state.get(session_key(key))
    return found if isinstance(found, str) else None


def choose_shared(key: str, value: str | None) -> None:
    """Choose something that pages share, or nothing; the URL follows with the next run."""
    st.session_state[session_key(key)] = value


def take(key: str) -> None:
    """Keep what somebody just chose with the control of this key: its ``on_change``."""
    choose_shared(key, st.session_state[key])


def prepare(key: str, value: str | None) -> None:
    """Let the control of this key, which is drawn next, show a value."""
    # Also where the session has it already: on another page the browser draws the control anew, and
    # is told of its value only where it has just been set.
    st.session_state[key] = value


def take_along(query: Mapping[str, str]) -> None:
    """Show on this page what a link to it would."""
    for name, value in query.items():
        if name in SHARED:
            choose_shared(name, value or None)
        elif name in (RUN, EXAMPLE, OFF):
            _set(name, value or None)
        else:
            st.session_state[name] = {"true": True, "false": False}.get(value, value)


def arrive(title: str) -> None:
    """Take up what the address says of that which pages share, and write the rest into it.

    A link that says which examples to list means these: filters of an earlier visit to the page,
    which come back with any other link, do not narrow them down.

    The address decides where it says something else than was written into it. A browser may ask
    for the next run before it has heard of what the last one wrote; what it repeats then is no
    choice.

    Args:
        title: Of the page.
    """
    entered = st.session_state.get(_SHOWN) != title
    st.session_state[_SHOWN] = title
    if entered and any(name in st.query_params for name in FILTERS):
        for name in (each for each in FILTERS if each not in st.query_params):
            st.session_state.pop(name, None)
    asked = {key: st.query_params.get(key) or None for key in SHARED}
    for before, now in _BEFORE.items():
        asked[now] = asked[now] or st.query_params.get(before)
        if before in st.query_params:
            del st.query_params[before]
    written, before_it = st.session_state.setdefault(_WRITTEN, ({}, {}))
    for key, value in asked.items():
        if value == written.get(key):
            before_it.pop(key, None)  # the browser has heard of it
        elif _went_back() or value != before_it.get(key, _HEARD):
            choose_shared(key, value if value is None or len(value) <= _LONGEST else None)
    write()


def write() -> None:
    """Write what is chosen of that which pages share into the address.

    Pages do so when they begin; a fragment that has such a control does so once it is drawn.
    """
    says = {key: st.query_params.get(key) or None for key in SHARED}
    shall = {key: chosen(key) for key in SHARED}
    wrong = [key for key in SHARED if says[key] != shall[key]]
    if put := {key: value for key in wrong if (value := shall[key]) is not None}:
        st.query_params.update(put)
    for key in set(wrong) - set(put):
        del st.query_params[key]
    before_it = st.session_state.get(_WRITTEN, ({}, {}))[1]
    st.session_state[_WRITTEN] = shall, before_it | {key: says[key] for key in wrong}


def kept() -> dict[str, str]:
    """The choices that links to other pages keep, as query parameters."""
    held = {key: chosen(key) for key in SHARED}
    # On pages that do not look at it, it need not be in the URL.
    held[OFF] = st.query_params.get(OFF) or st.session_state.get(session_key(OFF))
    return {key: value for key, value in held.items() if isinstance(value, str) and value}


def example(ids: Collection[str]) -> str | None:
    """The chosen example, where it is one of ``ids``."""
    chosen = _get(EXAMPLE)
    return chosen if chosen in ids else None


def asked_about() -> str | None:
    """Whose behaviour is asked about, where it is not the one example's; not checked."""
    return _get(ABOUT)


def ask_about(value: str | None) -> None:
    """Ask about others than the one example, or about that; the URL follows."""
    _set(ABOUT, value)


def trained_on(ids: Collection[str]) -> str | None:
    """The training example that is looked at, where it is one of ``ids``."""
    chosen = _get(TRAINED)
    return chosen if chosen in ids else None


def look_at_trained(example_id: str | None) -> None:
    """Look at a training example, or at none; the URL follows."""
    _set(TRAINED, example_id)


def opened() -> bool:
    """Whether an example was left open, on this page or on another; not checked."""
    return session_key(EXAMPLE) in st.session_state


def choose(example_id: str | None) -> None:
    """Choose an example, or none; the URL follows."""
    _set(EXAMPLE, example_id)


def side_by_side(ids: Collection[str]) -> list[str]:
    """The examples that stand side by side, of those in ``ids``; the URL names them."""
    # More than fit, because some may not be in this set; bounded, because a link can name any.
    linked = st.query_params.get_all(BESIDE)[: 4 * MOST_BESIDE]
    named = linked or ([] if _went_back() else st.session_state.get(session_key(BESIDE), []))
    found = [name for name in dict.fromkeys(named) if name in ids][:MOST_BESIDE]
    if named and found != linked:
        put_side_by_side(found)
    return found


def put_side_by_side(example_ids: Sequence[str]) -> None:
    """Put these examples side by side; the URL follows."""
    st.session_state[session_key(BESIDE)] = list(example_ids)
    if example_ids:
        st.query_params[BESIDE] = list(example_ids)
    else:
        st.query_params.pop(BESIDE, None)


def linked_page() -> int | None:
    """The page of the table that the URL names; None where it names none."""
    text = st.query_params.get(PAGE, "")
    # int() fails on digits such as ² and on thousands of digits, both of which isdigit() accepts.
    return max(int(text[:9]), 1) if text.isascii() and text.isdigit() else None


def link_page(page: int) -> None:
    """Put the page of the table into the URL; the first one needs no parameter."""
    if page > 1:
        st.query_params[PAGE] = str(page)
    else:
        st.query_params.pop(PAGE, None)


def switched_off() -> list[str]:
    """Names of the stages that are switched off; not checked."""
    named = _get(OFF)
    return [] if named is None else named.split(",")


def switch_off(stages: Sequence[str]) -> None:
    """Switch these stages off, and all others on; the URL follows."""
    _set(OFF, ",".join(stages) or None)


def all_on_wall() -> bool:
    """Whether the wall is to show all examples."""
    return _get(WALL) == EVERYTHING


def put_all_on_wall(wanted: bool) -> None:
    """Put all examples on the wall, or the group that is chosen by itself; the URL follows."""
    _set(WALL, EVERYTHING if wanted else None)
