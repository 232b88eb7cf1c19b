"""The sections of the Report page: the findings of a run, their notes, and their export."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import get_args
from urllib.parse import urljoin

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from stagelens.report import provenance
from stagelens.report.cover import Cover
from stagelens.report.finding import Finding
from stagelens.report.page import Charts, Report, Section, as_html, pinned
from stagelens.report.rows import as_csv, as_json
from stagelens.report.sections import default_sections, tables_used
from stagelens.report.store import Findings, FindingStore
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, state
from stagelens.ui.pieces.trust_marks import trust_badges
from stagelens.ui.reading import loaders
from stagelens.ui.reading.loaders import Source
from stagelens.ui.server import settings
from stagelens.wording.numbers import count_text

from . import editing

_PAGES = {title: path for path, title, _ in components.PAGES}
_PREVIEW_ROWS = 100


def heading(workspace: Workspace) -> None:
    """What the page is for."""
    components.text_block(
        "Findings of this run, in the order of the report. Pin a chart or a table on any page with "
        "the pin beside it; it stays as it was when you pinned it. Findings are kept in the run "
        "folder, so everyone who opens the run sees them."
    )
    if (said := st.session_state.pop(editing.SAID, None)) is not None:
        st.warning(said, icon=":material/group:")


def read(workspace: Workspace) -> Findings:
    """The findings as they are now; what cannot be read is reported on the page."""
    # People in other sessions pin and edit too, so the folder is looked at on every rerun.
    stamp = FindingStore(workspace.run).stamp()
    found = _read(workspace.at.path, workspace.at.recorded, stamp, workspace.run)
    for problem in found.problems:
        st.warning(components.plain(f"{problem}."), icon=":material/warning:")
    return found


@st.cache_resource(max_entries=8, show_spinner=False)
def _read(path: str, recorded: str, stamp: str, _run: object) -> Findings:
    return FindingStore(_run).read()  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------- export


def export(workspace: Workspace, found: Findings, cover: Cover) -> None:
    """One HTML file, and the rows as CSV and JSON."""
    measured = bool(loaders.available(workspace.at, workspace.examples.name))
    with st.container(border=True):
        whole = st.toggle(
            "Add the run's own report",
            value=True,
            key="whole",
            disabled=not measured,
            help="Scores, headlines, credit and blame, stages, group gaps, found features and "
            f"trust on set {components.plain(workspace.examples.name)}, after the pinned "
            "findings. The same as stagelens report writes.",
        )
        drawn: Charts = st.radio(
            "Charts in the HTML file",
            get_args(Charts),
            format_func=_CHARTS.__getitem__,
            horizontal=True,
            key="charts",
            help="Interactive charts show numbers under the pointer and bring plotly.js along. "
            "Pictures need no script, so the file is small enough for any mail.",
        )
        nothing = not found.kept and not (whole and measured)
        with st.container(horizontal=True, vertical_alignment="center"):
            for label, ending, mime, write, text in _KINDS:
                made = partial(as_html, charts=drawn) if write is as_html else write
                pictures = write is as_html and drawn == "static"
                st.download_button(
                    label,
                    data=_writer(workspace, found, cover, bool(whole and measured), made),
                    file_name=f"{workspace.run.name}-report{'-pictures' * pictures}.{ending}",
                    mime=mime,
                    icon=":material/download:",
                    type="primary" if ending == "html" else "secondary",
                    disabled=nothing,
                    # A download changes nothing on the page, so the page is not run again.
                    on_click="ignore",
                    help=text,
                    key=f"export-{ending}",
                )


_CHARTS: Mapping[Charts, str] = {
    "interactive": "Interactive, up to 2.5 MB",
    "static": "Pictures, under 1 MB",
}
_KINDS: tuple[tuple[str, str, str, Callable[[Report], bytes], str], ...] = (
    (
        "Export HTML",
        "html",
        "text/html",
        as_html,
        "One file that holds everything: it opens without a network and without StageLens, in "
        "light and dark, and prints.",
    ),
    (
        "Rows as CSV",
        "csv",
        "text/csv",
        as_csv,
        "The rows behind every finding, each with its trust, estimator, set and filters.",
    ),
    (
        "Rows as JSON",
        "json",
        "application/json",
        as_json,
        "The same as one document, with the run digest.",
    ),
)


def _writer(
    workspace: Workspace,
    found: Findings,
    cover: Cover,
    whole: bool,
    write: Callable[[Report], bytes],
) -> Callable[[], bytes]:
    """The function that makes the file, called when somebody downloads it."""
    # Read now: the download runs later, when there is no page to ask for its address.
    reference, address = state.reference() or "", st.context.url or ""

    def make() -> bytes:
        sections = [Section("", "", found.kept)]
        if whole:
            own = _default(workspace.at, workspace.examples.name)
            sections = [pinned(found.kept), *own]
        report = Report(
            workspace.run.title,
            workspace.run.digest,
            sections,
            address=urljoin(address, "."),
            run_reference=reference,
            tables=tables_used(workspace.run, sections),
            cover=cover,
        )
        return write(report)

    return make


@st.cache_resource(max_entries=4, show_spinner=False)
def _default(at: Source, set_name: str) -> list[Section]:
    return default_sections(loaders.run(at), set_name)


# ------------------------------------------------------------------------------------ findings


def listed(workspace: Workspace, found: Findings) -> None:
    """Every finding with its note, in order."""
    _undo(workspace, found)
    if not found.kept:
        st.info(
            "No finding has been pinned yet. Browse the pages, and press the pin beside anything "
            "worth keeping.",
            icon=":material/push_pin:",
        )
        return
    components.text_block(count_text(len(found.kept), "finding"), muted=True)
    for number, finding in enumerate(found.kept):
        with st.container(border=True, key=f"finding-{finding.id}"):
            _head(workspace, found.kept, number)
            editing.note(workspace, finding)
            claimed = finding.claim and finding.title == finding.claim
            components.sentences(provenance.sentences(finding.seen)[1 if claimed else 0 :])
            _seen(workspace, finding)
            _facts(workspace, finding)


def _head(workspace: Workspace, order: Sequence[Finding], number: int) -> None:
    finding = order[number]
    left, right = st.columns([3, 2], vertical_alignment="top")
    with left:
        # Escaped: Markdown would take a number and a full stop for the start of a list.
        st.header(f"{number + 1}\\. {components.plain(finding.title)}", anchor=False)
        if finding.title != finding.seen.title:
            components.text_block(finding.seen.title, muted=True)
    with right, st.container(horizontal=True, horizontal_alignment="right", gap="small"):
        for label, icon, step, off in (
            ("Up", ":material/arrow_upward:", -1, number == 0),
            ("Down", ":material/arrow_downward:", 1, number == len(order) - 1),
        ):
            st.button(
                label,
                key=f"{label.lower()}-{finding.id}",
                icon=icon,
                disabled=off or settings.read_only(),
                on_click=_move,
                args=(workspace, order, finding, step),
            )
        editing.title(workspace, finding)
        st.button(
            "Take out",
            key=f"out-{finding.id}",
            icon=":material/close:",
            on_click=_take_out,
            args=(workspace, finding),
            disabled=settings.read_only(),
            help="Removes it from the report. You can put it back.",
        )


def _seen(workspace: Workspace, finding: Finding) -> None:
    seen = finding.seen
    if seen.kind == "chart":
        figure = _figure(workspace.at.path, finding.id, seen.pinned.isoformat(), finding)
        if isinstance(figure, str):
            components.error_state(figure)
            return
        st.plotly_chart(
            figure,
            # Streamlit's theme would repaint a figure that must stay as it was pinned.
            theme=None,
            key=f"figure-{finding.id}",
            alt=seen.said,
            config={"displayModeBar": False},
        )
    elif seen.kind == "table":
        rows = seen.rows
        frame = pd.DataFrame(list(rows.values), columns=list(rows.columns)).head(_PREVIEW_ROWS)
        st.dataframe(
            frame,
            key=f"rows-{finding.id}",
            hide_index=True,
            alt=seen.said,
            height="content" if len(frame) < 12 else 420,
            column_config={
                name: st.column_config.NumberColumn(name, format=form)
                for name, form in rows.formats.items()
            }
            | {
                name: st.column_config.ImageColumn(name)
                for name, value in zip(
                    rows.columns, rows.values[0] if rows.values else (), strict=False
                )
                if isinstance(value, str) and value.startswith("data:image/")
            },
        )
        if rows.total > len(frame):
            components.text_block(f"{len(frame):,} of {rows.total:,} rows.", muted=True)


@st.cache_resource(max_entries=64, show_spinner=False)
def _figure(path: str, name: str, pinned: str, _finding: Finding) -> go.Figure | str:
    """The figure, or why it cannot be drawn."""
    try:
        return go.Figure(_finding.seen.figure)
    except ValueError:  # how plotly refuses a property that it does not have
        return (
            f"findings/{name}/seen.json holds a figure that plotly does not know; restore the "
            "file, or take the finding out"
        )


def _facts(workspace: Workspace, finding: Finding) -> None:
    """Trust, estimator, set and filters, and a link to the view."""
    seen = finding.seen
    if seen.trust:
        trust_badges(seen.trust, seen.behaviour or None, seen.trust_of)
    else:
        known = provenance.known(seen)[0]
        components.text_block(f"{known.mark} {known.words}. {known.meaning}", muted=True)
    facts = [f"set {seen.set_name}"]
    facts += [seen.behaviour] if seen.behaviour else []
    facts += [f"by {provenance.estimator(seen)}"] if seen.trust else []
    facts += [provenance.filters_text(seen.filters)] if seen.filters else []
    facts.append(f"pinned {seen.pinned:%d %B %Y, %H:%M} UTC")
    components.text_block(" · ".join(facts), muted=True)
    leaf = seen.view.query.get(state.LEAF, "")
    if leaf and leaf != workspace.at.leaf:
        st.caption(components.plain(f"These numbers describe another leaf of the run, {leaf}."))
    elif seen.run_digest != workspace.run.digest:
        st.caption("Recording has continued since: these numbers describe the run as it was then.")
    if seen.view.title in _PAGES:
        st.page_link(
            _PAGES[seen.view.title],
            label=f"Open on the {seen.view.title} page",
            icon=":material/open_in_new:",
            query_params={**seen.view.query, state.RUN: state.reference() or ""},
        )


# --------------------------------------------------------------------------------------- edits


def _move(workspace: Workspace, order: Sequence[Finding], finding: Finding, step: int) -> None:
    editing.attempt(lambda: editing.store(workspace).move(order, finding, step))


def _take_out(workspace: Workspace, finding: Finding) -> None:
    if editing.attempt(lambda: editing.store(workspace).edit(finding, removed=True)):
        st.session_state[editing.TAKEN_OUT] = finding.id


def _put_back(workspace: Workspace, finding: Finding) -> None:
    editing.attempt(lambda: editing.store(workspace).edit(finding, removed=False))


def _undo(workspace: Workspace, found: Findings) -> None:
    last = st.session_state.get(editing.TAKEN_OUT)
    finding = next((each for each in found.removed if each.id == last), None)
    if finding is None:
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        components.text_block(f"Taken out: {finding.seen.title}.")
        st.button(
            "Undo",
            key="undo",
            icon=":material/undo:",
            on_click=_put_back,
            args=(workspace, finding),
        )


def taken_out(workspace: Workspace, found: Findings) -> None:
    """Findings that were taken out, and the way back."""
    if not found.removed:
        return
    with st.expander(f"Taken out ({len(found.removed)})"):
        for finding in found.removed:
            with st.container(horizontal=True, vertical_alignment="center"):
                st.button(
                    "Put back",
                    key=f"back-{finding.id}",
                    icon=":material/undo:",
                    disabled=settings.read_only(),
                    on_click=_put_back,
                    args=(workspace, finding),
                )
                components.text_block(finding.seen.title)
