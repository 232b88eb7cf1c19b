"""What people say of a finding on the Report page: its title and its note."""

from __future__ import annotations

import re
from collections.abc import Callable

import streamlit as st

from stagelens.contracts import StageLensError
from stagelens.report.finding import LONGEST_NOTE, LONGEST_TITLE, Finding
from stagelens.report.markdown import as_markup
from stagelens.report.store import FindingStore
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, state
from stagelens.ui.server import settings

TAKEN_OUT = state.session_key("taken-out")
"""The finding that was taken out last, until something else is done."""
SAID = state.session_key("report-said")
"""What the next run of the page has to say."""
_MARKED = re.compile(r"<(?!/?p>|br ?/?>)")
"""A tag other than a paragraph's: the note looks otherwise in the report."""


def store(workspace: Workspace) -> FindingStore:
    """The findings of the open run."""
    return FindingStore(workspace.run)


def attempt(change: Callable[[], object]) -> bool:
    """Change something; where that fails, the next run of the page says why."""
    try:
        change()
    except StageLensError as error:
        st.session_state[SAID] = components.plain(str(error))
        return False
    # Undo is offered for the last change only.
    st.session_state.pop(TAKEN_OUT, None)
    return True


def title(workspace: Workspace, finding: Finding) -> None:
    """A button with a field for what the finding claims."""
    edits = sum(edit.title is not None for edit in finding.history)
    shown = f"title-{finding.id}-{edits}"  # a new key shows what others wrote
    with st.popover("Title", icon=":material/edit:", disabled=settings.read_only()):
        st.text_input(
            "What this finding claims",
            finding.title,
            key=shown,
            max_chars=LONGEST_TITLE,
            help="Empty: its own first sentence.",
            on_change=_write_title,
            args=(workspace, finding, shown),
        )


def note(workspace: Workspace, finding: Finding) -> None:
    """The note, as it is read where it has markup, and what it was before."""
    notes = finding.notes
    shown = f"note-{finding.id}-{len(notes)}"
    st.text_area(
        "Note",
        finding.note,
        key=shown,
        max_chars=LONGEST_NOTE,
        height="content",
        placeholder="What it means, or what to do about it. Markdown.",
        disabled=settings.read_only(),
        on_change=_write_note,
        args=(workspace, finding, shown),
    )
    as_read = str(as_markup(finding.note))
    if _MARKED.search(as_read):  # plain words need no second look
        st.html(f"<div style='opacity:.85'><small>In the report:</small>{as_read}</div>")
    earlier = notes[:-1]
    if earlier:
        with st.expander(f"Earlier notes ({len(earlier)})"):
            for edit in reversed(earlier):
                st.caption(f"{edit.time:%d %B %Y, %H:%M} UTC")
                components.text_block(edit.note or "(empty)")


def _write_title(workspace: Workspace, finding: Finding, key: str) -> None:
    text = str(st.session_state.get(key) or "").strip()
    attempt(lambda: store(workspace).edit(finding, title=text))


def _write_note(workspace: Workspace, finding: Finding, key: str) -> None:
    """Keep a note; if somebody else wrote one meanwhile, say that both are kept."""
    text = str(st.session_state.get(key) or "")
    # Read again, so that this edit comes after those made since the page was drawn.
    now = next((f for f in store(workspace).read().kept if f.id == finding.id), finding)
    if attempt(lambda: store(workspace).edit(now, note=text)) and now.notes != finding.notes:
        st.session_state[SAID] = (
            "Someone else changed this note at the same time. Yours is shown; theirs is among the "
            "earlier notes."
        )
