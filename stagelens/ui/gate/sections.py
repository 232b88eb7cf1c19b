"""The regression gate's page: what is asked, what it takes, and what was found."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import pandas as pd
import streamlit as st

from stagelens.analyses.gate import tables
from stagelens.analyses.gate.cost import GateCost, gate_cost
from stagelens.analyses.gate.report import GateReport, SliceFinding
from stagelens.analyses.gate.stored import StoredGate, gate_path, load_gate, stored_gates
from stagelens.charts.gate import drop_rows
from stagelens.estimators.durations import paces
from stagelens.runs.schema import digest
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, job_progress, state
from stagelens.ui.pieces.pinning import About
from stagelens.ui.server import jobs
from stagelens.wording.numbers import count_text, predicted_time

from .asking import Question, ask

_TITLE = "Regression gate"
_TOLD = 5
"""Most slices of which it is told in words why nothing can be said."""
_VERDICTS = {
    "regressed": "Regressed: a slice got worse by more than is allowed.",
    "fine": "Fine: on every slice, a drop of more than is allowed is ruled out.",
    "could not tell": "Could not tell: a drop of more than is allowed is neither shown nor ruled "
    "out on every slice.",
}

_NOT_FOUND = (
    "This was judged, but its result is not found: the runs, the set, the slices or the scores may "
    "have changed while it was computed, or its file was removed. Reload the page and judge again; "
    "if that does not help, the command below prints what it finds."
)
_SAME = "Fine, but only because both models are the same."


def gate_page(workspace: Workspace) -> None:
    """The controls, then the verdict, or what it takes to have one."""
    components.text_block(
        f"Is {workspace.run.name} worse anywhere than an older run, or than another leaf? Judged "
        "slice by slice, on the same examples; where one got worse, the old run's stages are "
        "replayed within this run to say which stage did it."
    )
    question = ask(workspace)
    before = stored_gates(workspace.run, workspace.examples)
    found = None
    if question is not None:
        old, new, *further = question.runs()
        found = load_gate(gate_path(old, new, question.asked, *further), new)
        if found is None:
            _offer(workspace, question)
        _command(question)
    elif before:
        found = before[0]
        components.text_block("Shown is what was judged last.", muted=True)
    # A command may have asked otherwise than the controls can, or left out what they always say.
    if (chosen := _chosen(before)) is not None:
        found = chosen
        components.text_block("Shown is what is chosen of what was judged before.", muted=True)
    if found is not None:
        _shown(workspace, found)
    _before(before)


def _offer(workspace: Workspace, question: Question) -> None:
    """What it takes, and the button; or how far it is."""
    if not workspace.computable:
        components.text_block("It cannot be judged here: the run's model cannot be built.")
        return
    # Whatever the verdict: to a job, another exit status is a failure.
    arguments = (*question.arguments(), "--exit-zero")
    with st.container(border=True):
        if job_progress.job_state(arguments, "Try again"):
            return
        old, new, *further = question.runs()
        job = jobs.find(arguments)
        if job is not None and job.status().state == "done":
            # It may have ended since the page looked.
            if load_gate(gate_path(old, new, question.asked, *further), new) is not None:
                st.rerun()
            st.warning(_NOT_FOUND, icon=":material/warning:")
        price = gate_cost(old, new, question.asked, (bool(further[0]), bool(further[1])))
        components.text_block(_told(workspace, price))
        if components.only_shown():
            return
        st.button(
            "Judge",
            type="primary",
            icon=":material/rule:",
            key="gate-judge",
            on_click=job_progress.begin,
            args=(arguments, _TITLE),
            help="Runs in the background: python -m stagelens gate.",
        )


def _told(workspace: Workspace, price: GateCost) -> str:
    known, own = paces(workspace.run), jobs.running()

    def time(seconds: float | None) -> str:
        if seconds is None:
            return "how long is not known, as the recordings have no timings"
        return predicted_time(known.of_a_job(seconds, own))

    if price.trainings:
        said = (
            f"{count_text(price.trainings, 'training')} of what the recipes do not share, by "
            f"replay: {time(price.seconds)}. They are kept one by one, so that work that was "
            "cancelled goes on where it stopped."
        )
    elif price.exchanges:
        said = f"Both models answer the set, and nothing is trained: {time(0.0)}."
    else:
        return f"Both models are the same, which takes no training to see: {time(0.0)}."
    if price.exchanges:
        more = (
            "" if price.more is None else f": {predicted_time(known.at_present(price.more, own))}"
        )
        stages = count_text(price.exchanges, "stage")
        said += f" Where a slice got worse, replays for {stages} come on top{more}."
    return said


def _command(question: Question) -> None:
    with st.expander("Command for continuous integration", icon=":material/terminal:"):
        said = shlex.join(("stagelens", *question.arguments(), "--json"))
        st.code(said, language=None, wrap_lines=True)
        components.text_block(
            "Exit status 0: fine, 3: regressed, 4: could not tell; 1 and 2 are errors. "
            "docs/gate.md has a workflow for GitHub Actions.",
            muted=True,
        )


def _shown(workspace: Workspace, stored: StoredGate) -> None:
    found = stored.report
    st.header(f"{_name(found, new=True)} against {_name(found)}", anchor=False)
    say = {"regressed": st.error, "fine": st.success, "could not tell": st.warning}
    icons = {"regressed": "trending_down", "fine": "check_circle", "could not tell": "help"}
    if found.same_model and found.verdict == "fine":
        st.warning(f"**{_SAME}**", icon=":material/content_copy:")
    else:
        icon = f":material/{icons[found.verdict]}:"
        say[found.verdict](f"**{_VERDICTS[found.verdict]}**", icon=icon)
    worst = [row for row in found.slices if row.verdict == "regressed"]
    for row in worst:
        components.text_block(tables.verdict_sentence(row))
    for note in tables.notes(found):
        components.text_block(note)
    for row in [row for row in found.slices if row.verdict == "could not tell"][:_TOLD]:
        components.text_block(f"{row.words}: {row.reason}", muted=True)
    for rows in _by_behaviour(found.slices):
        st.html(drop_rows(rows, tables.behaviour_of(rows[0])).html)
    about = About(
        behaviour=", ".join(dict.fromkeys(row.behaviour for row in found.slices)),
        observed=f"final models of {_name(found)} and {_name(found, new=True)}",
        filters={},
    )
    title = f"Slices of {found.set}: {_name(found, new=True)} against {_name(found)}."
    slices = tables.slice_rows(found)
    if slices["behaviour"].nunique() == 1:
        slices = slices.drop(columns="behaviour")
    components.table(slices, "gate-slices-table", title, about, height="content")
    said = f"Positive drops are worse. {tables.trained(found)} {tables.counted(found).capitalize()}"
    components.text_block(said, muted=True)
    _stages(found)
    st.download_button(
        "Save as JSON",
        found.model_dump_json(indent=1),
        file_name="gate.json",
        mime="application/json",
        icon=":material/download:",
        key="gate-json",
        help="What stagelens gate --json prints.",
    )
    _examples(worst)


def _stages(found: GateReport) -> None:
    if not found.stages:
        return
    st.header("Which stage did it", anchor=False)
    rows = tables.stage_rows(found)
    about = About(
        behaviour=", ".join(dict.fromkeys(row.behaviour for row in found.stages)),
        observed="the new model with the old run's stages, by replay",
        filters={},
    )
    title = f"What each stage of {_name(found, new=True)} has to do with what got worse."
    components.table(rows, "gate-stages", title, about, height="content")
    components.text_block(tables.STAGES_ARE, muted=True)
    for reason in tables.stage_reasons(found):
        components.text_block(reason, muted=True)


def _examples(worst: Sequence[SliceFinding]) -> None:
    """The way to the examples of the slices that got worse."""
    groups = {(row.by, row.group) for row in worst if row.by is not None}
    for by, group in sorted(groups, key=str):
        st.page_link(
            components.EXAMPLES,
            label=components.plain(f"Examples of {by} = {group}"),
            icon=":material/grid_view:",
            query_params=components.here(by=str(by), group=str(group), view=state.OF_THE_SET),
        )


def _key(stored: Sequence[StoredGate]) -> str:
    """Of the table of what was judged before: a row that is chosen is one of these very ones."""
    return f"gate-before-{digest([one.model_dump(mode='json') for one in stored])[:12]}"


def _chosen(stored: Sequence[StoredGate]) -> StoredGate | None:
    """What was judged before, if a row of it is chosen."""
    now = st.session_state.get(_key(stored))
    rows = [] if now is None else now["selection"]["rows"]
    return next((stored[at] for at in rows if 0 <= at < len(stored)), None)


def _before(stored: Sequence[StoredGate]) -> None:
    if not stored:
        return
    with st.expander(f"Judged before ({len(stored)})"):
        rows = [
            {
                "judged": one.judged.replace("T", " ").partition("+")[0],
                "against": _name(one.report),
                "behaviours": ", ".join(dict.fromkeys(s.behaviour for s in one.report.slices)),
                "slices": len(one.report.slices),
                "drops of": one.report.estimand,
                "verdict": one.report.verdict,
            }
            for one in stored
        ]
        said = "What gates found of this run on this set, the latest first; times are UTC."
        components.text_block("A row that is chosen is shown above.", muted=True)
        components.table(
            pd.DataFrame(rows),
            _key(stored),
            said,
            About(behaviour="", filters={}),
            on_select="rerun",
            selection_mode="single-row",
        )


def _name(found: GateReport, new: bool = False) -> str:
    side, other = (found.new, found.old) if new else (found.old, found.new)
    leaf = f", leaf {side.leaf}" if side.leaf else ""
    if side.name != other.name or side.leaf != other.leaf:
        return f"{side.name}{leaf}"
    return f"{side.run.rstrip('/').rpartition('/')[2]}{leaf}"


def _by_behaviour(rows: Sequence[SliceFinding]) -> list[list[SliceFinding]]:
    names = dict.fromkeys(row.behaviour for row in rows)
    return [[row for row in rows if row.behaviour == name] for name in names]
