"""Slices on pages: saving the examples that pass the filters, and slices by stage effect."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from stagelens.analyses.slices.effects import difference_sentence
from stagelens.analyses.slices.saved import Slice, delete_slice, save_slice
from stagelens.contracts import Behaviour, StageLensError
from stagelens.effects.headlines import FEWEST
from stagelens.estimators.stage_trust import StageTrust
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, state
from stagelens.ui.pieces.folding import when_opened
from stagelens.ui.pieces.pinning import About
from stagelens.ui.pieces.trust_marks import trust_line
from stagelens.ui.reading import loaders
from stagelens.ui.reading.browse import Chosen
from stagelens.ui.reading.loaders import Effects
from stagelens.ui.server import settings
from stagelens.wording.folding import strongest
from stagelens.wording.intervals import group_error, hull
from stagelens.wording.numbers import amount_text, axis_unit, count_text, phrase, signed_text
from stagelens.wording.trust_words import MARKS, signs_known, trust_label, trust_word

_SAID = state.session_key("slice-said")
_NAME = state.session_key("slice-name")
_DOUBT = "not a finding, because"
"""Column of the table; left out where no slice has a reason."""

_UNCLEAR = {
    True: "≈ the interval over draws of the recipe holds zero",
    False: "≈ within training noise",
}
"""What ≈ means, where the recipe was drawn and where not."""


def save(workspace: Workspace, estimate: str, chosen: Chosen) -> None:
    """Keep the examples that pass the filters under a name.

    Args:
        workspace: What is open.
        estimate: Whose effects the filters look at.
        chosen: The filters, and the examples that pass them.
    """

    def keep() -> None:
        name = str(st.session_state.get(_NAME, ""))
        try:
            made = save_slice(
                workspace.run,
                workspace.examples,
                name,
                chosen.ids,
                chosen.filters.asked(),
                estimate,
                chosen.behaviour.name,
            )
        except StageLensError as error:
            # A callback runs before the page is drawn; the popover shows the error then.
            st.session_state[_SAID] = str(error)
            return
        st.session_state.pop(_SAID, None)
        st.session_state[_NAME] = ""
        st.toast(
            f"Saved as slice {components.plain(made.name)}: every page can show it now.",
            icon=":material/bookmark_added:",
        )

    with st.popover(
        "Save as slice",
        icon=":material/bookmark_add:",
        type="tertiary",
        disabled=len(chosen) == 0 or settings.read_only(),
        help=settings.READ_ONLY
        if settings.read_only()
        else "Saves these examples under a name in the run folder; every page can then show them "
        "as a group.",
    ):
        count = count_text(len(chosen), workspace.noun)
        asked = Slice.words_of(chosen.filters.asked()) or "no filter"
        components.text_block(f"{count}: {asked}.", muted=True)
        st.text_input(
            "Name of the slice",
            key=_NAME,
            max_chars=64,
            placeholder="hard threes",
            help="Letters, digits, spaces, dots, dashes and underscores.",
        )
        closed = settings.read_only()
        st.button("Save", type="primary", on_click=keep, key="save-slice", disabled=closed)
        if (said := st.session_state.get(_SAID)) is not None:
            components.error_state(said)


def slice_table(workspace: Workspace, effects: Effects, behaviour: Behaviour) -> None:
    """The saved slices by stage effect, and where two of them differ most."""
    st.header("Slices", anchor=False)
    slices = workspace.slices
    if not slices:
        components.text_block(
            f"No slice has been saved of set {workspace.examples.name} yet. A slice is a named "
            "selection of examples: filter on the Examples page, then press Save as slice.",
            muted=True,
        )
        st.page_link(
            "pages/1_Examples.py",
            label="Filter examples",
            icon=":material/filter_alt:",
            query_params=components.here(),
        )
        return
    parts = (workspace.at, workspace.examples.name, effects.estimator, behaviour.name)
    found = loaders.largest_difference(*parts)
    if found is not None:
        with st.container(border=True):
            said = difference_sentence(
                found, behaviour, workspace.noun, effects.trust.get(found.stage)
            )
            components.sentences([said], size="1.05rem")
    elif len(slices) > 1:
        components.text_block(
            f"No stage's effect on the {phrase(behaviour)} is known to differ between two slices "
            f"of at least {count_text(FEWEST, workspace.noun)} that were chosen without looking at "
            "effects or answers.",
            muted=True,
        )
    when_opened(
        "slices",
        "Saved slices as a table",
        lambda: _table(workspace, effects, behaviour, slices),
    )
    _delete(workspace, slices)


def _table(
    workspace: Workspace, effects: Effects, behaviour: Behaviour, slices: list[Slice]
) -> None:
    """One row per slice, one column per stage."""
    parts = (workspace.at, workspace.examples.name, effects.estimator, behaviour.name)
    every = loaders.slice_summary(*parts)
    sizes = every["effect"].abs().groupby(every["stage"], sort=False).max()
    kept = [sizes.index[place] for place in strongest(sizes)]
    by_slice = dict(list(every[every["stage"].isin(kept)].groupby("slice", sort=False)))
    lines = []
    for one in slices:
        rows = by_slice[one.name]
        cells = {
            row["stage"]: _cell(row, behaviour, effects.trust.get(row["stage"]))
            for row in rows.to_dict("records")
        }
        n = int(rows["n"].max())
        lines.append({"slice": one.name, "examples": n, _DOUBT: _doubt(one, n), **cells})
    shown = pd.DataFrame(lines)
    if not shown[_DOUBT].any():
        shown = shown.drop(columns=_DOUBT)
    drawn = bool(every["drawn"].notna().any())
    sharing = loaders.clusters(workspace.at, workspace.examples.name)
    count = count_text(workspace.examples.count, workspace.noun)
    unit = axis_unit(behaviour)
    about = f"Mean stage effect on the {phrase(behaviour)}{f', in {unit}' if unit else ''}"
    column = st.column_config.TextColumn
    components.table(
        shown,
        "slice-table",
        f"{about} of each slice, with 95 % intervals.",
        About(behaviour=behaviour.name),
        height="content",
        column_config={
            "slice": column("slice", pinned=True),
            **{
                stage: column(
                    f"{MARKS[trust_word(known, behaviour.name)]} {stage}",
                    help=f"{about}, with its 95 % interval; {trust_label(known, behaviour.name)}.",
                )
                for stage, known in effects.trust.items()
                if stage in kept
            },
        },
    )
    components.text_block(
        f"{about}: final model minus the counterfactual without the stage; in brackets the 95 % "
        f"interval over {workspace.noun}s and, where it is known, the error of the "
        "estimate. ▲ credit, ▼ blame, ± the interval includes zero or the sign is uncertain, "
        f"{_UNCLEAR[drawn]}, so not a finding. {trust_line(effects.trust, behaviour.name)}"
        + (
            f" Columns are the {len(kept)} of {len(sizes):,} stages with the largest effects."
            if len(kept) < len(sizes)
            else ""
        )
        + (f" {sharing.words(count)}" if sharing is not None else ""),
        muted=True,
    )


def _cell(row: Mapping[Hashable, Any], behaviour: Behaviour, trust: StageTrust | None) -> str:
    """``▼ 0.41 (0.32 to 0.5)``, towards blame; empty where nothing is known."""
    effect, low, high = (float(row[name]) for name in ("effect", "low", "high"))
    if not np.isfinite(effect):
        return ""
    # The error of the estimate is added at either end, where it is known.
    off = (group_error(trust, behaviour.name) or 0.0) * float(row["rms"])
    low, high = hull(effect, (low, high), off, behaviour, float(row["final"]))
    credit = effect * behaviour.sign > 0
    # The amount is printed without its sign, behind a mark, so the interval is turned with it.
    sign = behaviour.sign if credit else -behaviour.sign
    ends = sorted((sign * low, sign * high))
    said = amount_text(effect, behaviour, unit=False)
    # An amount that is rounded to zero has no direction.
    if any(digit in "123456789" for digit in said):
        # Null where training noise is not known, and pd.NA has no truth value.
        known = signs_known(trust, behaviour.name) and not low <= 0 <= high
        mark = "≈" if row["within_noise"] is True else "±" if not known else "▲" if credit else "▼"
        said = f"{mark} {said}"
    if not np.isfinite(low):
        return said
    low_text, high_text = (signed_text(end, behaviour, unit=False).lstrip("+") for end in ends)
    return f"{said} ({low_text} to {high_text})"


def _doubt(one: Slice, n: int) -> str:
    """Why the means of a slice are not findings, whatever the trust of the estimate."""
    said = [f"fewer than {FEWEST}"] if n < FEWEST else []
    said += ["chosen by effects or answers"] if one.by_outcome else []
    return ", ".join(said)


def _delete(workspace: Workspace, slices: list[Slice]) -> None:
    def forget(one: Slice) -> None:
        try:
            delete_slice(workspace.run, one)
        except StageLensError as error:
            st.toast(components.plain(str(error)), icon=":material/error:")

    with st.expander("What the slices hold, and deleting them"):
        for one in slices:
            with st.container(horizontal=True, vertical_alignment="center"):
                components.text_block(
                    f"{one.name}: {count_text(len(one.example_ids), workspace.noun)}; "
                    f"{one.words()}; saved {one.saved:%Y-%m-%d %H:%M} UTC."
                )
                st.button(
                    f"Delete {components.plain(one.name)}",
                    icon=":material/delete:",
                    on_click=forget,
                    args=(one,),
                    disabled=settings.read_only(),
                    key=f"delete-slice-{one.name}",
                    help="Deletes it from the run folder, for everyone.",
                )
