"""Which data: the answer without some training examples, by replay, beside first order."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from stagelens.analyses.contributions.contribution_table import Stored, opposite
from stagelens.analyses.without_data.chosen import (
    DIVISORS,
    DRAWN,
    Chosen,
    Divisor,
    by_filter,
    columns_of,
)
from stagelens.analyses.without_data.sentences import mean_effect, title
from stagelens.analyses.without_data.stored import stored_without_data
from stagelens.contracts import StageLensError
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components
from stagelens.ui.pieces.pinning import About
from stagelens.ui.reading import training_loaders
from stagelens.wording.numbers import phrase
from stagelens.wording.signs import gain, gain_text
from stagelens.wording.trust_words import trust_word

from . import left_out
from .contributions import Asked
from .left_out import FIRST

HURT, HELPED, DIFFERS, FILTER = (
    "those that hurt most",
    "those that helped most",
    "labels that the final model does not answer",
    "a filter",
)
"""How the examples to leave out are chosen."""


def without_data_section(
    workspace: Workspace, asked: Asked, found: Stored, differs: pd.Series, ranked: bool = True
) -> None:
    """Choose training examples, and what the answer would be without them.

    Args:
        workspace: The run.
        asked: The question that the tab is about.
        found: What training examples contributed to it.
        differs: Of the stage's examples, whether the label is not the final model's answer.
        ranked: Whether contributions rank them; not where first order says nothing.
    """
    st.subheader("Without some of them", anchor=False)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        chosen, where = _choose(workspace, asked, found, differs, ranked)
        divisor = st.segmented_control(
            "Their losses",
            list(DIVISORS),
            format_func=DIVISORS.__getitem__,
            default="rest",
            required=True,
            key="without-divisor",
            help="How the loss of a batch that lacks examples is taken. Mean over the rest: as "
            "training would, so that each of the others counts for more. Divided as before: by the "
            "size of the whole batch, so that each of the others counts as it did and the step is "
            "smaller.",
        )
    own: Divisor = "kept" if divisor == "kept" else "rest"
    components.text_block(DRAWN, muted=True)
    if chosen is not None or where is not None:
        told = found if ranked else None
        what = left_out.left_out(told, chosen, "them", where, own)
        left_out.button_or_result(workspace, asked, what, "replay-without-data")
    _every(workspace, asked)


def _choose(
    workspace: Workspace, asked: Asked, found: Stored, differs: pd.Series, ranked: bool
) -> tuple[Chosen | None, str | None]:
    """The examples, as far as they are known here, and the filter that names them, if any."""
    guided = ranked and not opposite(asked.effect, found.linearised(asked.stage))
    kinds = [*([HURT, HELPED] if guided else []), *([DIFFERS] if differs.any() else []), FILTER]
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
        rows, words = rows[differs], "with labels that the final model does not answer"
    else:
        most = int((gains < 0 if kind == HURT else gains > 0).sum())
        if not most:
            components.text_block("None.", muted=True)
            return None, None
        count = st.number_input(
            "How many", 1, most, min(FIRST, most), key=f"without-count-{kind}", width=110
        )
        order = (gains if kind == HURT else -gains).sort_values(kind="stable")
        rows = rows.loc[order.index[: int(count)]]
        words = f"that {'hurt' if kind == HURT else 'helped'} {asked.about} most"
    places = zip(rows["step"], rows["position"], strict=True)
    return Chosen(asked.stage, tuple(f"{step}-{place}" for step, place in places), words), None


def _by_filter(workspace: Workspace, asked: Asked) -> tuple[Chosen | None, str | None]:
    rows = training_loaders.listed(workspace.run, asked.stage)
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
        return None, text
    try:
        return by_filter(rows, text), text
    except StageLensError as error:
        components.error_state(str(error))
        return None, None


def _every(workspace: Workspace, asked: Asked) -> None:
    """What was replayed so far of this stage, on this set."""
    behaviour, rows, trusts = asked.behaviour, [], []
    for path, facts in stored_without_data(workspace.run, workspace.examples).items():
        if facts.stage != asked.stage:
            continue
        found = left_out.read(workspace, path)
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
            estimator="",  # each as its trust says: some may be coarse
            trust=tuple(trusts),
            filters=asked.filters,
        )
        components.table(pd.DataFrame(rows), "without-data-table", said, about)
