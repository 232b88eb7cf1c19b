"""The title, the author and the summary of the report, which people write above its findings."""

from __future__ import annotations

import streamlit as st

from stagelens.contracts import StageLensError
from stagelens.report.cover import Cover, read_cover, write_cover
from stagelens.report.finding import LONGEST_NOTE, LONGEST_TITLE
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, state
from stagelens.ui.server import settings

_KEYS = {name: f"cover-{name}" for name in Cover.model_fields}
_SAID = state.session_key("cover-said")


def section(workspace: Workspace) -> Cover:
    """The fields, kept when they are left; what is kept now."""
    cover, problems = read_cover(workspace.run)
    for problem in problems:
        st.warning(components.plain(f"{problem}."), icon=":material/warning:")
    if (said := st.session_state.pop(_SAID, None)) is not None:
        components.error_state(said)
    with st.expander("Title, author and summary", icon=":material/title:"):
        left, right = st.columns([2, 1])
        off = settings.read_only()
        with left:
            st.text_input(
                "Title",
                cover.title,
                max_chars=LONGEST_TITLE,
                placeholder=workspace.run.name,
                key=_KEYS["title"],
                on_change=_write,
                args=(workspace, "title"),
                disabled=off,
            )
        with right:
            st.text_input(
                "Author",
                cover.author,
                max_chars=LONGEST_TITLE,
                key=_KEYS["author"],
                on_change=_write,
                args=(workspace, "author"),
                disabled=off,
            )
        st.text_area(
            "Summary",
            cover.summary,
            max_chars=LONGEST_NOTE,
            height="content",
            placeholder="What the findings say in short, and what should be done. Markdown.",
            key=_KEYS["summary"],
            on_change=_write,
            args=(workspace, "summary"),
            disabled=off,
        )
    return cover


def _write(workspace: Workspace, name: str) -> None:
    text = str(st.session_state.get(_KEYS[name]) or "").strip()
    try:
        write_cover(workspace.run, **{name: text})
    except StageLensError as error:
        st.session_state[_SAID] = str(error)
