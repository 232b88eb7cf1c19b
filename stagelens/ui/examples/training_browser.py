"""The training examples of a stage, listed page by page, and one of them looked at."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from stagelens.analyses.contributions.contribution_table import Question, Stored, left_open
from stagelens.analyses.training_data import tables
from stagelens.analyses.training_data.by_column import columns_to_value_by
from stagelens.analyses.training_data.groups import groupings, with_contributions
from stagelens.contracts import RunError, is_score
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, job_progress, state
from stagelens.ui.pieces.pinning import About
from stagelens.ui.reading import browse, training_loaders
from stagelens.ui.reading.browse import effect_column
from stagelens.ui.reading.loaders import Effects
from stagelens.ui.reading.training_loaders import Loaded
from stagelens.ui.server import settings
from stagelens.wording.cells import cells
from stagelens.wording.numbers import axis_unit, count_text, phrase
from stagelens.wording.signs import gain
from stagelens.wording.trust_words import samples_sentence

from . import (
    contributions,
    filters,
    top_of_list,
    train_next,
    training_cells,
    training_example,
    training_filters,
    training_groups,
)
from .contributions import Asked
from .shown_stage import shown_stage, shown_words
from .smoothness import first_order_says_something
from .training_filters import Wanted

_ABOUT = "t-about"
_EXAMPLE, _MEAN = "This example", "Mean"
_HEAD = "font-size:1rem;font-weight:600;margin:0;padding:0;overflow-wrap:anywhere"


@st.fragment
@components.errors_told()
def training_data_of_a_stage(workspace: Workspace, effects: Effects) -> None:
    """The training examples of the stage in the bar, or of the one most to blame."""
    asked = _asked(workspace, effects)
    loaded = training_loaders.training_data(workspace.at, asked.stage)
    if loaded is None or _incomplete(workspace, loaded):
        _offer(workspace, asked, loaded)
    groups = [] if loaded is None else _browsed(workspace, asked, loaded)
    compared = loaded is not None and loaded.data.facts.kind is not None
    columns = [] if loaded is None else columns_to_value_by(loaded.data, groups)
    train_next.what_to_train_on_next(workspace, asked, compared, columns)


def _browsed(workspace: Workspace, asked: Asked, loaded: Loaded) -> list[str]:
    """The list, one example, and what a replay without some of them would say.

    Returns:
        What the examples can be grouped by.
    """
    frame, found = _with_contributions(workspace, asked, loaded)
    groups = groupings(loaded.data, frame)
    bad = not gain(asked.effect, asked.behaviour) > 0
    wanted = training_filters.choose(loaded, frame, groups, bad)
    chosen = training_filters.select(workspace.at, loaded, frame, groups, wanted, asked.behaviour)
    opened = _list(workspace, asked, loaded, wanted, chosen)
    if opened is not None:
        training_example.shown(
            workspace, asked, loaded, frame.loc[frame["example_id"] == opened].iloc[0]
        )
    listed: tuple[str, ...] = ()
    if not is_score(asked.behaviour):
        # Contributions that can be had come first: by them the list is in another order.
        aside = not contributions.known(workspace, asked)
        listed = top_of_list.leave_out(workspace, asked, chosen, wanted, found, aside)
    if found is not None:
        training_groups.groups_of_a_stage(workspace, asked, frame, groups, listed, found)
    return list(groups)


def _asked(workspace: Workspace, effects: Effects) -> Asked:
    """Whose behaviour, and which stage: what the bar says, or the example that was opened."""
    behaviour = workspace.of_one(effects)
    every = filters.every_example(
        workspace.at, workspace.examples.name, effects.estimator, behaviour.name
    )
    example_id = state.example(every.places)
    rows, question = every.frame, Question()
    by, group = workspace.bar.by, workspace.bar.group
    if group is not None and by is not None and by in rows:
        rows = rows[rows[by].astype(str) == group]
        question = Question(groups={by: group})
        if by not in (*workspace.examples.columns, "label"):  # of a slice, only ids say which
            question = Question(ids=tuple(rows["example_id"]))
    of = group or f"all {len(rows):,}"
    if example_id is not None:
        named = {_EXAMPLE: f"{_EXAMPLE}, {example_id}", _MEAN: f"{_MEAN} of {of}"}
        about = st.segmented_control(
            "Contributions to",
            [_EXAMPLE, _MEAN],
            format_func=lambda option: named[option],
            default=_EXAMPLE,
            key=_ABOUT,
            bind="query-params",
            required=True,
            help="Whose behaviour the training examples are said to have helped or hurt.",
        )
        if about != _MEAN:
            rows = every.frame.iloc[[every.places[example_id]]]
            question = Question(ids=(example_id,))
    means = {s: float(rows[effect_column(s)].mean()) for s in workspace.stages}
    stage = workspace.bar.stage
    if stage is None:
        stage, why = shown_stage(behaviour.sign * pd.Series(means).dropna(), workspace.stages)
        said = "of this example" if len(rows) == 1 else "on average"
        components.text_block(shown_words(stage, why, behaviour, said), muted=True)
    ids = tuple(rows["example_id"])
    return Asked(ids, behaviour, stage, means[stage], effects.trust.get(stage), question)


def _incomplete(workspace: Workspace, loaded: Loaded) -> bool:
    """Whether something is still to be computed, as after a job that was cancelled."""
    if loaded.data.duplicates is None:
        return True
    return loaded.data.answers is None and loaded.data.facts.kind is not None


def _offer(workspace: Workspace, asked: Asked, loaded: Loaded | None) -> None:
    """The way to the training examples: one job, with their contributions where there are any."""
    try:
        tables.stage_of(workspace.run, asked.stage)
    except RunError as error:
        st.info(components.plain(str(error)), icon=":material/info:")
        return
    if not workspace.computable:
        st.info("Nothing can be computed here without the run's task.", icon=":material/info:")
        return
    arguments: tuple[str, ...] = ("training-data", *workspace.at.words, "--stage", asked.stage)
    also = not is_score(asked.behaviour) and contributions.impossible(workspace, asked) is None
    if also:
        arguments = (
            *(*arguments, "--contributions", "--set", workspace.examples.name),
            *("--behaviour", asked.behaviour.name, *asked.options),
        )
    with st.container(border=True):
        if job_progress.job_state(arguments, "Try again"):
            return
        begun = "Some of it is there already. " if loaded is not None else ""
        components.text_block(
            f"{begun}The training examples of {asked.stage} are read from its recorded batches: "
            "what each is, its own loss over time, what models answer to it, where else it occurs"
            f"{f', and what it contributed to the {phrase(asked.behaviour)}' if also else ''}. "
            "The result is kept."
        )
        st.button(
            "Read the training data",
            type="primary",
            disabled=settings.read_only(),
            icon=":material/database:",
            key="read-training-data",
            on_click=job_progress.begin,
            args=(arguments, "Reading the training data"),
            help=settings.READ_ONLY
            if settings.read_only()
            else "Runs in the background: python -m stagelens training-data.",
        )


def _with_contributions(
    workspace: Workspace, asked: Asked, loaded: Loaded
) -> tuple[pd.DataFrame, Stored | None]:
    """The examples with what each contributed, where that is known."""
    if is_score(asked.behaviour):
        components.text_block(
            "A score of answers cannot be differentiated, so no training example has a "
            "contribution to it: choose another behaviour above to see which helped or hurt.",
            muted=True,
        )
        return loaded.frame, None
    found = contributions.answer(workspace, asked)
    if found is None:
        return loaded.frame, None
    if asked.stage in found.facts.steps_only:
        components.text_block(
            f"No training example of {asked.stage} has a contribution of its own: "
            f"{found.facts.steps_only[asked.stage]}.",
            muted=True,
        )
        return loaded.frame, None
    warned = left_open(asked.stage, asked.effect, found.linearised(asked.stage))
    if warned:
        st.warning(components.plain(warned), icon=":material/warning:")
    if contributions.says_nothing(found, asked):
        return loaded.frame, None
    if found.facts.on_samples:
        components.text_block(samples_sentence(found.facts.on_samples), muted=True)
    contributions.leaving_out(workspace, asked, found)
    if not first_order_says_something(workspace, asked, "stage", bool(warned)):
        return loaded.frame, None
    shown = loaded.data.facts.kind is not None
    return with_contributions(workspace.run, loaded.frame, found, asked.stage, shown), found


def _list(
    workspace: Workspace, asked: Asked, loaded: Loaded, wanted: Wanted, chosen: pd.DataFrame
) -> str | None:
    """One page of the table; returns the example that is looked at."""
    count, total = len(chosen), len(loaded.frame)
    key = f"training-{asked.stage}-{wanted.key}"
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        of = "" if count == total else f"{count:,} of "
        said = f"{of}{count_text(total, 'training example')} of {asked.stage}"
        used = f"{int(chosen['uses'].sum()):,} uses"
        # The heading that those of one example and of groups stand below.
        st.html(f"<h2 style='{_HEAD}'>{components.shown(f'{said}, {used}')}</h2>")
        st.download_button(
            "Export CSV",
            data=lambda: _csv(loaded, chosen),
            file_name=f"{workspace.run.name}-{asked.stage}-training-data.csv",
            mime="text/csv",
            icon=":material/download:",
            type="tertiary",
            disabled=count == 0,
            on_click="ignore",
            key="export-training-data",
            help="These training examples, all pages, with everything that is known of them.",
        )
        pages = browse.pages(count)
        page = min(st.pagination(pages, key=f"{key}-page", max_visible_pages=5), pages)
    if not count:
        st.info("No training examples are left. Loosen a filter.", icon=":material/filter_alt_off:")
        return None
    rows = chosen.iloc[(page - 1) * browse.PAGE_SIZE : page * browse.PAGE_SIZE]
    ids = rows["example_id"].tolist()
    table_key = f"{key}-{page}-{asked.behaviour.name}"
    picked = _picked(table_key, ids)
    if picked is not None:
        state.look_at_trained(picked)
    shown, tints = training_cells.shown(workspace, asked, loaded, rows)
    unit = axis_unit(asked.behaviour)
    components.table(
        shown,
        table_key,
        f"Training examples of {asked.stage}, {count:,} listed, {wanted.sort} first"
        if wanted.sort != training_filters.ORDER
        else f"Training examples of {asked.stage}, {count:,} listed in the order of training",
        About(behaviour=asked.behaviour.name),
        kept=shown.drop(columns=[name for name in ("input", "own loss") if name in shown]),
        tints=tints,
        row_height=46 if loaded.data.facts.kind == "image" else 66,
        height="content",
        on_select="rerun",
        selection_mode=("single-row", "single-cell"),
        column_config=training_cells.columns(workspace, asked, loaded, unit),
    )
    return state.trained_on(set(loaded.frame["example_id"]))


def _picked(key: str, ids: list[str]) -> str | None:
    """The example that a click chose; positions are valid on this page of this list only."""
    now = st.session_state.pop(key, None)
    if now is None:
        return None
    places = [*(cell[0] for cell in now["selection"]["cells"]), *now["selection"]["rows"]]
    return next((ids[at] for at in places if 0 <= at < len(ids)), None)


def _csv(loaded: Loaded, chosen: pd.DataFrame) -> bytes:
    table = chosen.drop(columns="content").rename(columns=loaded.data.moment_names)
    return cells(table).to_csv(index=False).encode()
