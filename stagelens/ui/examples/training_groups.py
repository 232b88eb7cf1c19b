"""What groups of a stage's training examples contributed together, and replays without them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import pandas as pd
import streamlit as st

from stagelens.analyses.contributions.contribution_table import Stored
from stagelens.analyses.contributions.durations import contributions_seconds
from stagelens.analyses.contributions.parts_of_the_set import (
    FEWEST,
    PARTS,
    Parts,
    load_parts,
    parts_path,
)
from stagelens.analyses.training_data.groups import CONTRIBUTION, group_table
from stagelens.analyses.without_data.first_order import first_order_of_groups
from stagelens.analyses.without_data.sentences import (
    OF_GROUPS,
    beyond_first_order,
    sentence,
)
from stagelens.contracts import Behaviour
from stagelens.derivatives.curvature_kinds import USUAL, Curvature
from stagelens.estimators.durations import paces
from stagelens.report.provenance import FIRST_ORDER
from stagelens.runs.schema import digest
from stagelens.runs.sets.folds import folds
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, job_progress
from stagelens.ui.pieces.pinning import About
from stagelens.ui.server import settings
from stagelens.wording.folding import listed as listed_words
from stagelens.wording.numbers import axis_unit, count_text, phrase
from stagelens.wording.signs import gain, gain_range_text, marked

from . import left_out
from .contributions import Asked, impossible
from .grouping import Grouping

_OTHERS = "other examples of a group"
_EFFECT, _ADDED = "effect", "added"
_MEANT = (
    "Effect: the final model against one trained without the group (losses: mean over the rest); "
    "the table is in this order{replayed}. Added: the sum of contributions, with the optimiser's "
    "denominators held fixed: what steps added, not what leaving the group out would take away."
)

_SHOWN = 12
"""Groups of a table: the largest amounts."""
_SEVERAL = 3
"""Groups that one button replays."""
_TOLD = 6
"""Groups whose replays are told in a sentence each beside the chosen one; all are in the table."""
_LEADS = "A replay leads where there is one: the first column, and the order. "


def groups_of_a_stage(
    workspace: Workspace,
    asked: Asked,
    frame: pd.DataFrame,
    groups: dict[str, pd.Series],
    listed: tuple[str, ...],
    found: Stored,
) -> None:
    """A table of groups, and buttons that replay the training without one, or the first three.

    Args:
        workspace: What is open.
        asked: Whose behaviour, and which stage.
        frame: Its training examples with their contributions.
        groups: What they can be grouped by.
        listed: Those that the list offers to leave out, which are not offered twice.
        found: What they contributed.
    """
    st.html(components.heading_html("Groups of training examples"))
    if not groups:
        command = ("stagelens", "training-data", *workspace.at.words, "--stage", asked.stage)
        components.text_block(
            f"None: the training examples of {asked.stage} do not differ in anything they could be "
            "grouped by (recorded columns, labels, lengths, uses). To add columns of your own, "
            f"give the training data with them as a file: {shlex.join(command)} --columns FILE",
            muted=True,
        )
        return
    by = st.selectbox(
        "Groups by",
        list(groups),
        key="t-by",
        bind="query-params",
        help="First come columns of the recorded data set, and of a file given to stagelens "
        "training-data --columns.",
    )
    curvature = found.facts.curvature
    parts = parts_of(workspace, asked, curvature)
    named = groups[by].set_axis(frame["example_id"]).fillna("")
    # Where a task shows no examples, what is known is of single uses.
    each = None
    if left_out.told(found):
        each = first_order_of_groups(found, asked.stage, named, "rest")
    table = group_table(frame, groups[by], parts, each)
    known = bool(table["without"].notna().all())
    ranked = table["without" if known else CONTRIBUTION]
    table = table.assign(gain=gain(ranked, asked.behaviour))
    side = _on_the_side(table, bool(gain(asked.effect, asked.behaviour) < 0))
    members = {
        str(name): tuple(own) for name, own in frame["example_id"].groupby(groups[by], sort=False)
    }
    grouping = Grouping.of(workspace, asked, by, members)
    effects = [grouping.effect(str(name)) for name in table["group"]]
    table = _replays_first(table.assign(replayed=pd.Series(effects, dtype=object)), asked.behaviour)
    shown, effects = table.head(_SHOWN), table["replayed"].tolist()
    unit = axis_unit(asked.behaviour)
    of = f" ({unit})" if unit else ""
    ends = {_ADDED: ("low", "high"), _EFFECT: ("without_low", "without_high")}
    columns = {_EFFECT: "without", _ADDED: CONTRIBUTION} if known else {_ADDED: CONTRIBUTION}
    out: dict[str, object] = {by: shown["group"]}
    tints: dict[str, list[float]] = {}
    if any(one is not None for one in effects):
        head, gains = f"by replay{of}", [_gain(one, asked.behaviour) for one in shown["replayed"]]
        out[head] = [_told(one, asked.behaviour) for one in shown["replayed"]]
        largest = max(map(abs, gains)) or 1.0
        tints[head] = [one / largest for one in gains]
    for name, column in columns.items():
        gains = gain(shown[column], asked.behaviour)
        low, high = (shown[end] for end in ends[name])
        head, largest = f"{name}{of}", float(gains.abs().max()) or 1.0
        out[head] = [marked(one, asked.behaviour, unit=False) for one in gains]
        out[f"{name}: 95 % interval"] = [
            "not known"
            if pd.isna(one)
            else gain_range_text(one, other, asked.behaviour, unit=False)
            for one, other in zip(low, high, strict=True)
        ]
        # Neither helped nor hurt where zero is in the interval, or nothing says how far it is.
        tints[head] = (gains / largest).where(low * high > 0).tolist()
    cells = pd.DataFrame({**out, "examples": shown["examples"], "uses": shown["uses"]})
    key = f"training-groups-{digest(by, shown['group'].tolist())[:12]}"
    picked = _picked(key, shown["group"].tolist())
    leading = "those that were replayed first, each time " if f"by replay{of}" in out else ""
    components.table(
        cells,
        key,
        f"What leaving groups of training examples of {asked.stage} out takes from the "
        f"{phrase(asked.behaviour)} of {asked.about}, and what they added, to first order, by "
        f"{by}, {leading}the largest amount first.",
        About(
            behaviour=asked.behaviour.name,
            estimator=FIRST_ORDER,
            trust=(),
        ),
        tints=tints,
        height="content",
        on_select="rerun",
        selection_mode="single-row",
    )
    more = len(table) - len(shown)
    after = " after those that were replayed" if leading else ""
    meant = f"{_MEANT.format(replayed=after)} " if known else ""
    others = _OTHERS
    if parts is not None:
        others = f"{_OTHERS}, and for what they added also other evaluation examples,"
    components.text_block(
        f"▲ helped, ▼ hurt. {_LEADS if leading else 'All to first order. '}{meant}"
        f"Intervals say where sums might lie had as many {others} been drawn; no colour where zero "
        "is inside. What first order misses grows with the group, and only a replay shows it."
        + (f" {more:,} more groups are smaller." if more > 0 else ""),
        muted=True,
    )
    if known:
        pairs = zip(table["without"], effects, strict=True)
        both = [(told, one) for told, one in pairs if one is not None and isfinite(one)]
        if others_left := len(table) - len(both):
            off = beyond_first_order(both, others_left, asked.behaviour)
            components.text_block(off or OF_GROUPS, muted=not off)
    if parts is None:
        _offer_both(workspace, asked, by, curvature)
    _replays(grouping, table, listed, found, picked)
    _several(grouping, side)


def _replays(
    grouping: Grouping,
    table: pd.DataFrame,
    listed: tuple[str, ...],
    found: Stored,
    picked: str | None,
) -> None:
    """One group, whichever is chosen, by replay, and what all others gave."""
    asked, by = grouping.asked, grouping.by
    names = [str(name) for name in table["group"]]
    first = _first(table, bool(gain(asked.effect, asked.behaviour) < 0))
    # The same whatever is replayed, so that what somebody chose stays.
    key = f"without-group-of-{digest(by, sorted(names))[:12]}"
    own_choice, replayed = st.session_state.get(key), set(table["group"][table["replayed"].notna()])
    # Nobody chose it: a replay leads over what first order put there.
    unmoved = own_choice == st.session_state.get(f"{key}-first") and first in replayed
    if picked is not None or own_choice not in names or unmoved:
        st.session_state[key] = picked or first
        st.session_state[f"{key}-first"] = first
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        group = st.selectbox(
            "Group to leave out",
            names,
            key=key,
            width=260,
            help="Or click its row in the table.",
        )
        place = st.container()
    own = grouping.members[group]
    if set(own) == set(listed):
        components.text_block("This group is what the list above leaves out.", muted=True)
    else:
        words = f"{count_text(len(own), 'training example')} with {by} {group}"
        what = replace(left_out.left_out(found, grouping.without(group), words), aside=True)
        left_out.button_or_result(grouping.workspace, asked, what, "without-group", place)
    others = (replayed & set(grouping.replays)) - {group}
    ids = frozenset(asked.ids)
    told = [name for name in names if name in others][:_TOLD]
    said = [sentence(grouping.replays[name], asked.behaviour, ids) for name in told]
    if said:
        with st.container(border=True):
            components.sentences(said)


def _several(grouping: Grouping, names: Sequence[str]) -> None:
    """The groups that did most of what the stage did by one job, each by itself.

    To first order, whatever was replayed, so that it stays one job while it runs.
    """
    workspace, asked, by = grouping.workspace, grouping.asked, grouping.by
    chosen, did = names[:_SEVERAL], "hurt" if gain(asked.effect, asked.behaviour) < 0 else "helped"
    left = [name for name in chosen if name not in grouping.replays]
    lines = [{"example_id": each, by: name} for name in chosen for each in grouping.members[name]]
    ids = pd.DataFrame(lines).to_csv(index=False)
    file = workspace.run.files.inside(
        f"results/training-data/groups-{digest(workspace.run.digest, asked.stage, ids)[:32]}.csv"
    )
    arguments = (
        *("without-data", *workspace.at.words, "--stage", asked.stage),
        *("--set", workspace.examples.name, "--divisor", "rest"),
        *("--ids", str(file), "--each", by),
    )
    # However few are left to replay: the job goes on until the last is.
    if job_progress.job_state(arguments, "Try again"):
        return
    if len(left) < 2 or settings.read_only() or left_out.no_replay(workspace, asked.stage):
        return
    took = left_out.took(workspace, asked.stage, len(left))
    st.button(
        components.plain(f"Replay without each of the {len(chosen)} groups that {did} most{took}"),
        icon=":material/replay:",
        key="without-groups",
        type="tertiary",
        on_click=left_out.begin,
        args=(file, ids, arguments, f"Replays without {listed_words(chosen)}"),
        help=f"To first order: {components.plain(listed_words(chosen))}. One replay each, but for "
        "those that were replayed before. The table then shows what they gave.",
    )


def _told(effect: float | None, behaviour: Behaviour) -> str:
    """An effect on the credit scale."""
    if effect is None:
        return ""
    return marked(gain(effect, behaviour), behaviour, unit=False) if isfinite(effect) else "refused"


def _picked(key: str, names: Sequence[str]) -> str | None:
    """The group whose row was clicked."""
    now = st.session_state.pop(key, None)
    rows = [] if now is None else now["selection"]["rows"]
    return next((str(names[at]) for at in rows if 0 <= at < len(names)), None)


def parts_of(workspace: Workspace, asked: Asked, curvature: Curvature) -> Parts | None:
    """Contributions to parts of the mean that is asked about; None where they are not stored."""
    of = (asked.behaviour.name, asked.ids, asked.stage, curvature)
    path = parts_path(workspace.run, workspace.examples, *of)
    return _load(str(path), path.stat().st_mtime_ns, workspace, of) if path.is_file() else None


@st.cache_resource(max_entries=8, show_spinner=False)
def _load(path: str, stamp: int, _workspace: Workspace, _of: Any) -> Parts | None:
    # The path says what was asked. A file that is written again is read again, by its stamp.
    return load_parts(_workspace.run, _workspace.examples, *_of)


def _offer_both(workspace: Workspace, asked: Asked, by: str, curvature: Curvature) -> None:
    """The way to intervals over evaluation examples too, where a mean is asked about."""
    if len(asked.ids) < FEWEST or settings.read_only() or impossible(workspace, asked):
        return
    # Counted as the command counts them: examples of one source are in one part.
    if len(folds(workspace.examples, asked.ids, FEWEST)) < FEWEST:
        return
    arguments = (
        *("training-data", *workspace.at.words, "--stage", asked.stage, "--by", by),
        *("--over-evaluation", "--set", workspace.examples.name),
        *("--behaviour", asked.behaviour.name, *asked.options),
        *(("--curvature", curvature) if curvature != USUAL else ()),
    )
    if job_progress.job_state(arguments, "Try again"):
        return
    known = paces(workspace.run)
    since = known.stages[workspace.stages.index(asked.stage) :]
    seconds = contributions_seconds(since)
    took = job_progress.predicted(
        known, None if seconds is None else PARTS * seconds, on_button=True
    )
    st.button(
        components.plain(f"Intervals over evaluation examples too{took}"),
        icon=":material/error_med:",
        key="groups-over-both",
        on_click=job_progress.begin,
        args=(arguments, "Intervals over evaluation examples"),
        help=f"{PARTS} more backward sweeps, each for a part of the evaluation examples; they "
        "serve every grouping. Runs in the background: python -m stagelens training-data.",
    )


def _gain(effect: float | None, behaviour: Behaviour) -> float:
    """An effect on the credit scale for its colour: 0 where there is none."""
    return 0.0 if effect is None or not isfinite(effect) else float(gain(effect, behaviour))


def _replays_first(table: pd.DataFrame, behaviour: Behaviour) -> pd.DataFrame:
    """Groups that were replayed before the others, the largest amount by replay first.

    Args:
        table: In the order of first order, with a column ``replayed``: None or NaN without one.
        behaviour: Whose.

    Returns:
        The same rows; ``gain`` is by replay where one is known.
    """
    known = table["replayed"].astype(float)
    order = known.abs().sort_values(ascending=False, kind="stable", na_position="last").index
    own = gain(known, behaviour).fillna(table["gain"])
    return table.assign(gain=own).loc[order].reset_index(drop=True)


def _on_the_side(table: pd.DataFrame, blamed: bool) -> list[str]:
    """The groups that did what the stage did, in the order of the table."""
    return [str(name) for name in table["group"][(table["gain"] < 0) == blamed]]


def _first(table: pd.DataFrame, blamed: bool) -> str:
    """The group that did most of what the stage did; of all, where none did."""
    own = table[table["gain"] < 0] if blamed else table[table["gain"] > 0]
    return str((own if len(own) else table)["group"].iloc[0])
