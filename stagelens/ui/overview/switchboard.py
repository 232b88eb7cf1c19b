"""The switchboard: stages as switches above a wall of examples, a number and bars.

Drawn by a component of our own, because every known combination of switches is small enough to be
sent to the browser once: a switch then answers in a few milliseconds, cards turn where they are and
the number counts, none of which a rerun of the page can do. The server is told afterwards, so that
the address holds what is off, and says what a combination would cost that is not known.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from stagelens.analyses.switches import combination_of
from stagelens.charts.style import short
from stagelens.contracts import Behaviour
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, state
from stagelens.ui.reading import loaders, switches
from stagelens.ui.reading.loaders import Effects
from stagelens.wording.folding import listed

from . import board_words, share_jobs
from .board_words import ALL, Focus

_KEY = "switchboard"
_TURNED = state.session_key("wall-turned")
_HERE = Path(__file__).parent


def _part(kind: str) -> str:
    return (_HERE / f"switchboard.{kind}").read_text(encoding="utf-8")


_component = st.components.v2.component(
    "stagelens_switchboard", html=_part("html"), css=_part("css"), js=_part("js")
)


def show(workspace: Workspace, effects: Effects, behaviour: Behaviour, focus: Focus) -> bool:
    """The switchboard of these examples.

    Returns:
        Whether there is one.
    """
    return bool(_fragment(workspace, effects, behaviour, focus))


@st.fragment
def _fragment(workspace: Workspace, effects: Effects, behaviour: Behaviour, focus: Focus) -> bool:
    parts = (workspace.at, workspace.examples.name, effects.estimator, behaviour.name)
    most = board_words.MOST[workspace.noun]
    board = switches.board(*parts, focus.by, focus.group, most)
    if board is None or not board.total:
        return False
    off = combination_of(state.switched_off(), workspace.stages)
    _tell_of_no_stage(workspace)
    asked = _component(
        key=_KEY,
        data=board_words.payload(workspace, effects, behaviour, focus, board, off),
        on_off_change=_nothing,
        on_wall_change=_turned_to,
    )
    if st.session_state.pop(_TURNED, False):
        st.rerun()  # the whole page is about other examples
    # Here and not in a callback, after which a fragment does not send the address.
    if isinstance(asked.off, list):
        state.switch_off([str(name) for name in asked.off])
        off = combination_of(state.switched_off(), workspace.stages)
    if off not in board.models:
        share_jobs.offer_combinations(workspace)
    return True


def _tell_of_no_stage(workspace: Workspace) -> None:
    """Say which names in the link are no stage, and so switch nothing off."""
    gone = [short(name, 60) for name in state.switched_off() if name not in workspace.stages]
    if gone := [name for name in gone if name]:
        said = f"This run has no stage {listed(gone)}, which the link switches off."
        st.warning(components.plain(said), icon=":material/link_off:")


def _nothing() -> None:
    """Streamlit tells a page only of what it has a callback for."""


def _turned_to() -> None:
    to = st.session_state[_KEY].get("wall")
    if to is not None:
        state.put_all_on_wall(to == ALL)
        st.session_state[_TURNED] = True


def focus_of(
    workspace: Workspace,
    effects: Effects,
    behaviour: Behaviour,
    by: str | None,
    group: str | None,
) -> Focus:
    """Whose examples the page is about: the chosen group, else that of the strongest headline.

    All of them where no headline names a group, or where somebody asked for all.
    """
    if group is not None or by is None or workspace.chosen_by_outcome(by):
        return Focus(by, group)
    parts = (workspace.at, workspace.examples.name, effects.estimator, behaviour.name)
    said = loaders.headlines(*parts, by, None, workspace.noun)
    named = [part.text for part in said[0].parts if part.kind == "group"] if said else []
    if not named or named[0] not in workspace.groups:
        return Focus(by, None)
    if state.all_on_wall():
        return Focus(by, None, other=named[0])
    return Focus(by, named[0], chosen=True)
