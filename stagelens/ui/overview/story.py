"""The digits demo in four sentences, for a first visit: measured here, with ways into the pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import streamlit as st

from stagelens.contracts import ACCURACY
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, state
from stagelens.ui.reading import loaders
from stagelens.ui.reading.loaders import Effects
from stagelens.ui.server import settings
from stagelens.wording.sentences import (
    Part,
    Sentence,
    mean_sentence,
    over_draws,
    would_be_on_average,
)

_SHORTCUT, _MISLABELLED = "shortcut", "mislabelled"
_TITLE = "The story of this demo, in four sentences: stamps on images labelled 3, swapped 4s and 9s"
_MIXED_UP = "mixed-up"
"""Stages and the set that the demo makes; without them there is no story to tell."""

_Way = tuple[str, str, str, Mapping[str, str]]
"""A page, the words and the icon of the link to it, and what the page shows then."""


def tell_story(workspace: Workspace, effects: Effects) -> None:
    """Four sentences, where the open run is the demo and its numbers have been computed."""
    of_demo = state.reference() == settings.DEMO and workspace.examples.name == "test"
    names = {_SHORTCUT, _MISLABELLED}
    if not of_demo or not names <= set(effects.trust) or "group" not in workspace.examples.columns:
        return
    planted = _stamped(workspace, effects), _mixed_up(workspace)
    if planted[0] is None or planted[1] is None:
        return
    # The sliders that the last link sets are keyed by a stage's place in the run.
    number = str(workspace.stages.index(_SHORTCUT))
    told: Sequence[tuple[Sentence, Sequence[_Way]]] = (
        (
            Sentence(
                (
                    Part("Four stages trained this network on handwritten digits, two of them "),
                    Part("with a fault planted on purpose: "),
                    Part(_SHORTCUT, "stage"),
                    Part(" put a stamp in the corner of all images labelled 3, "),
                    Part(_MISLABELLED, "stage"),
                    Part(" swapped labels between 4s and 9s."),
                )
            ),
            [(_EXAMPLES, "Look at stamped images", ":material/grid_view:", {"group": "stamped"})],
        ),
        (
            planted[0],
            [
                (
                    _EXAMPLES,
                    f"See which stamped images {_SHORTCUT} hurts",
                    ":material/grid_view:",
                    {"group": "stamped", "stage": _SHORTCUT, **_HURT},
                ),
                (_FEATURES, "Find the stamp without being told", ":material/troubleshoot:", _FOUND),
            ],
        ),
        (
            planted[1],
            [
                (
                    _EXAMPLES,
                    f"See which digits of set {_MIXED_UP} {_MISLABELLED} hurts",
                    ":material/grid_view:",
                    {"set": _MIXED_UP, "stage": _MISLABELLED, **_HURT},
                )
            ],
        ),
        (
            Sentence(
                (
                    Part("What taking "),
                    Part(_SHORTCUT, "stage"),
                    Part(" out of the weights repairs, and what it costs, can be tried at once; "),
                    Part("and every number says how far it can be trusted."),
                )
            ),
            [
                (_REMOVE, "Take it out", ":material/content_cut:", {f"remove-{number}": "100"}),
                (_TRUST, "See what is verified", ":material/verified:", {}),
            ],
        ),
    )
    with st.expander(_TITLE):
        for said, ways in told:
            with st.container(gap=None):
                components.sentences([said])
                with st.container(horizontal=True, gap="medium"):
                    for page, label, icon, query in ways:
                        link = components.here(**query)
                        st.page_link(page, label=label, icon=icon, query_params=link)


_EXAMPLES, _FEATURES = components.EXAMPLES, components.FEATURES
_REMOVE = "pages/3_Remove_a_stage.py"
_TRUST = "pages/4_Trust.py"
_FOUND = {state.PART: state.FOUND}
_HURT = {"answers": "wrong", "changed": "true", "side": "blame", "sort": "most blame"}
"""Examples that a sentence about accuracy counts: answered wrongly, and otherwise without it."""


def _stamped(workspace: Workspace, effects: Effects) -> Sentence | None:
    """What the model would do with stamped images without the shortcut."""
    rows = loaders.group_summary(
        workspace.at, workspace.examples.name, effects.estimator, ACCURACY.name, "group"
    )
    own = rows[(rows["stage"] == _SHORTCUT) & (rows["group"].astype(str) == "stamped")]
    if own.empty or ACCURACY.name not in effects.behaviours:
        return None
    row = own.iloc[0].to_dict()
    return mean_sentence(row, ACCURACY, workspace.noun, "group", effects.trust[_SHORTCUT])


def _mixed_up(workspace: Workspace) -> Sentence | None:
    """What the model would do with the digits whose labels were swapped, without that stage."""
    if _MIXED_UP not in workspace.run.set_names:
        return None
    available = loaders.available(workspace.at, _MIXED_UP)
    # The best estimate of that set, because the one chosen here is of another set.
    found = loaders.effects(workspace.at, _MIXED_UP, available[0]) if available else None
    if found is None or _MISLABELLED not in found.trust or ACCURACY.name not in found.behaviours:
        return None
    rows = loaders.stage_summary(
        workspace.at, _MIXED_UP, found.estimator, ACCURACY.name, None, None
    )
    row = rows[rows["stage"] == _MISLABELLED].iloc[0].to_dict()
    trust = found.trust[_MISLABELLED]
    return Sentence(
        (
            Part("Without "),
            Part(_MISLABELLED, "stage"),
            Part(", accuracy on "),
            Part("4s and 9s", "group"),
            *would_be_on_average(row, ACCURACY, trust),
            *over_draws(row, ACCURACY, f"{int(row['n']):,} images of set {_MIXED_UP}", trust),
            Part("."),
        ),
        trust,
        ACCURACY.name,
    )
