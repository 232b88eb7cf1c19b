"""Which data: the answer without some training examples, by replay, beside first order."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

from stagelens.analyses.contributions.contribution_table import Stored
from stagelens.analyses.training_data.tables import columns_path
from stagelens.analyses.without_data.chosen import (
    DIVISORS,
    DRAWN,
    Chosen,
    Divisor,
    by_filter,
    columns_of,
    load_listed,
)
from stagelens.analyses.without_data.sentences import (
    answers,
    first_order,
    how,
    mean_effect,
    sentence,
    title,
)
from stagelens.analyses.without_data.stored import (
    WithoutData,
    read_without_data,
    stored_without_data,
    without_data_path,
)
from stagelens.contracts import StageLensError
from stagelens.estimators.durations import STARTING, paces
from stagelens.runs.training_rows import TrainingRows, training_rows_path
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, job_progress
from stagelens.ui.pieces.pinning import About
from stagelens.ui.server import jobs, settings
from stagelens.wording.numbers import phrase, predicted_time
from stagelens.wording.signs import gain, gain_text, side
from stagelens.wording.trust_words import FIRST_ORDER, MARKS, trust_word

from .contributions import Asked, impossible, show_tiles

HURT, HELPED, DIFFERS, FILTER = (
    "those that hurt most",
    "those that helped most",
    "labels that the final model does not answer",
    "a filter",
)
"""How the examples to leave out are chosen."""
_AT_FIRST, _MOST = 20, 500
"""Examples that are left out until another number is given, and the most: each is an argument of
the command; filters have no limit."""


def without_data_section(
    workspace: Workspace, asked: Asked, found: Stored, differs: pd.Series
) -> None:
    """Choose training examples, and what the answer would be without them.

    Args:
        workspace: The run.
        asked: The question that the tab is about.
        found: What training examples contributed to it.
        differs: Of the stage's examples, whether the label is not the final model's answer.
    """
    st.subheader("Without some of them", anchor=False)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        chosen, option = _choose(workspace, asked, found, differs)
        divisor = st.segmented_control(
            "Their losses",
            list(DIVISORS),
            format_func=DIVISORS.__getitem__,
            default="rest",
            required=True,
            key="without-divisor",
            help="What is left of a batch's loss: the mean over the rest, as training would "
            "compute it; or the left-out examples weigh 0 and the divisor stays that of the whole "
            "batch, so that the step's gradient is smaller.",
        )
    own: Divisor = "kept" if divisor == "kept" else "rest"
    components.text_block(DRAWN, muted=True)
    if option is None:
        return
    answer = None if chosen is None else _stored(workspace, chosen, own)
    estimate = None
    if chosen is not None and found.facts.kind is not None:
        total, known = first_order(found, chosen)
        # Of some of them alone it would say something else.
        estimate = total if known == len(chosen.ids) else None
    if answer is not None:
        _shown(workspace, asked, answer, estimate)
    else:
        if estimate is not None and chosen is not None:
            _first_order_alone(asked, chosen, estimate)
        _offer(workspace, asked, option, own)
    _every(workspace, asked)


def _choose(
    workspace: Workspace, asked: Asked, found: Stored, differs: pd.Series
) -> tuple[Chosen | None, tuple[str, ...] | None]:
    """The examples, as far as they are known here, and how the command line names them."""
    kinds = [HURT, HELPED, *([DIFFERS] if differs.any() else []), FILTER]
    if found.facts.kind is None or asked.stage in found.facts.steps_only:
        kinds = [FILTER]  # examples have no contributions, or each use counts by itself
    first = HURT if gain(asked.effect, asked.behaviour) < 0 else HELPED
    kind = st.selectbox(
        "Leave out",
        kinds,
        index=kinds.index(first) if first in kinds else 0,
        key="without-kind",
        width=310,
    )
    if kind == FILTER:
        return _by_filter(workspace, asked)
    rows = found.part("example", asked.stage)
    gains = gain(rows["value"], asked.behaviour)
    if kind == DIFFERS:
        rows = rows[differs]
    else:
        most = int(min((gains < 0 if kind == HURT else gains > 0).sum(), _MOST))
        if not most:
            components.text_block("None.", muted=True)
            return None, None
        count = st.number_input(
            "How many", 1, most, min(_AT_FIRST, most), key=f"without-count-{kind}", width=110
        )
        order = (gains if kind == HURT else -gains).sort_values(kind="stable")
        rows = rows.loc[order.index[: int(count)]]
    if len(rows) > _MOST:
        components.text_block(
            f"{len(rows):,} examples are more than {_MOST} that a button can name; choose them by "
            "a filter, or with stagelens without-data --ids FILE."
        )
        return None, None
    names = tuple(
        f"{step}-{place}" for step, place in zip(rows["step"], rows["position"], strict=True)
    )
    return Chosen(asked.stage, names), tuple(f"--example={name}" for name in names)


def _by_filter(workspace: Workspace, asked: Asked) -> tuple[Chosen | None, tuple[str, ...] | None]:
    rows = _rows(workspace, asked.stage)
    columns = "label, uses" if rows is None else ", ".join(columns_of(rows))
    text = st.text_input(
        "Filter",
        key="without-filter",
        placeholder="label=4 & uses>1",
        help=components.plain(
            f"Columns: {columns}. = != < <= > >=, ~ for a part of a text, joined by & | ! and "
            "brackets."
        ),
    ).strip()
    if not text:
        return None, None
    if rows is None:
        return None, ("--where", text)
    try:
        return by_filter(rows, text), ("--where", text)
    except StageLensError as error:
        components.error_state(str(error))
        return None, None


def _rows(workspace: Workspace, stage: str) -> TrainingRows | None:
    run = workspace.run
    path, given = training_rows_path(run, run.stage(stage)), columns_path(run, stage)
    if not path.exists():
        return None
    stamps = [file.stat().st_mtime_ns for file in (path, given) if file.exists()]
    return _read_rows(str(path), tuple(stamps), workspace, stage)


@st.cache_resource(max_entries=8, show_spinner=False)
def _read_rows(
    path: str, stamps: tuple[int, ...], _workspace: Workspace, _stage: str
) -> TrainingRows | None:
    return load_listed(_workspace.run, _workspace.run.stage(_stage))


def _stored(workspace: Workspace, chosen: Chosen, divisor: Divisor) -> WithoutData | None:
    path = without_data_path(workspace.run, workspace.examples, chosen.left_out(divisor))
    return _read(str(path), path.stat().st_mtime_ns) if path.exists() else None


@st.cache_resource(max_entries=32, show_spinner=False)
def _read(path: str, stamp: int) -> WithoutData | None:
    # The path says what was asked. A file that is written again is read again, by its stamp.
    return read_without_data(Path(path))


def _shown(workspace: Workspace, asked: Asked, found: WithoutData, estimate: float | None) -> None:
    """The effect by replay beside first order, in words, and what became of the answers."""
    ids, behaviour, facts = frozenset(asked.ids), asked.behaviour, found.facts
    components.sentences([sentence(found, behaviour, ids)])
    trust = facts.trust
    if trust.trust == "refused":
        return
    effect, word = mean_effect(found, behaviour, ids), trust_word(trust, behaviour.name)
    tiles = [("by replay", effect, f"{side(effect, behaviour)}, {MARKS[word]} {word}")]
    if estimate is not None:
        note = f"{MARKS[FIRST_ORDER]} {FIRST_ORDER}, weight 0, divisor kept"
        tiles.append(("to first order", estimate, note))
    tiles.append((f"all of {asked.stage}", asked.effect, "effect of the whole stage"))
    show_tiles([(name, gain_text(value, behaviour), note) for name, value, note in tiles])
    if not workspace.continues_text:  # a next token that stays says little of a whole answer
        components.text_block(answers(found, ids, workspace.noun))
    components.text_block(f"{how(facts)} {trust.reason}", muted=True)


def _first_order_alone(asked: Asked, chosen: Chosen, estimate: float) -> None:
    components.text_block(
        f"To first order these {title(chosen)} contributed {gain_text(estimate, asked.behaviour)} "
        f"to the {phrase(asked.behaviour)} ({MARKS[FIRST_ORDER]} {FIRST_ORDER}; for weight 0 with "
        "the divisor kept). Groups do more or less than that: a replay decides."
    )


def _offer(workspace: Workspace, asked: Asked, option: tuple[str, ...], divisor: Divisor) -> None:
    if (why := impossible(workspace, asked)) is not None:
        st.info(components.plain(why), icon=":material/info:")
        return
    arguments = (
        *("without-data", *workspace.at.words, "--stage", asked.stage),
        *("--set", workspace.examples.name, "--divisor", divisor, *option),
    )
    if job_progress.job_state(arguments, "Try again"):
        return
    known = paces(workspace.run)
    later = known.stages[workspace.stages.index(asked.stage) :]
    took = ""
    if all(pace.seconds is not None for pace in later):
        # Checked as recorded where that was not done, and measured.
        seconds = STARTING + sum((1 + pace.check) * (pace.seconds or 0.0) for pace in later)
        took = f", predicted: {predicted_time(known.at_present(seconds, jobs.running()))}"
    st.button(
        f"Replay without them{took}",
        type="primary",
        disabled=settings.read_only(),
        icon=":material/play_arrow:",
        key="replay-without-data",
        on_click=job_progress.begin,
        args=(arguments, "The replay without these examples"),
        help=settings.READ_ONLY
        if settings.read_only()
        else f"Replays {asked.stage} and the later stages: python -m stagelens without-data.",
    )


def _every(workspace: Workspace, asked: Asked) -> None:
    """What was replayed so far of this stage, on this set."""
    behaviour, rows, trusts = asked.behaviour, [], []
    for path, facts in stored_without_data(workspace.run, workspace.examples).items():
        if facts.stage != asked.stage:
            continue
        found = _read(str(path), path.stat().st_mtime_ns)
        if found is None or behaviour.name not in found.behaviours:
            continue
        effect = mean_effect(found, behaviour, frozenset(asked.ids))
        trusts.append(facts.trust)
        rows.append(
            {
                "without": title(found.chosen),
                "losses": DIVISORS[facts.divisor],
                f"effect ({phrase(behaviour)})": gain_text(effect, behaviour),
                "by": facts.estimator,
                "trust": trust_word(facts.trust, behaviour.name),
            }
        )
    if not rows:
        return
    with st.expander(f"Replayed so far ({len(rows)})"):
        said = f"Effects of training examples of {asked.stage} on {asked.about}. {DRAWN}"
        about = About(
            title=f"Without training examples of {asked.stage}",
            behaviour=behaviour.name,
            estimator="replay",
            trust=tuple(trusts),
            filters=asked.filters,
        )
        components.table(pd.DataFrame(rows), "without-data-table", said, about)
