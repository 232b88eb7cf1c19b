"""The controls that choose examples: every one of them is in the URL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import streamlit as st

from stagelens.analyses.shares.sentences import TITLES
from stagelens.analyses.shares.share_table import WITHOUT, share_table
from stagelens.analyses.slices.saved import Slice
from stagelens.contracts import Behaviour, is_score
from stagelens.trust.trust_columns import with_trust
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, readings
from stagelens.ui.reading import browse, loaders, path_loaders
from stagelens.ui.reading import shares as reading_shares
from stagelens.ui.reading.browse import Answers, Chosen, Every, Filters, Side
from stagelens.ui.reading.loaders import Effects, Source
from stagelens.wording.numbers import axis_unit, count_text, is_share

from . import cards, slices

_STYLE = (
    "<style>"
    ".st-key-filters{display:grid;grid-template-columns:4fr 7fr 6fr 3fr;gap:.5rem;"
    "align-items:center;margin-top:-.6rem}"
    # Without labels, no answer is right or wrong.
    ".st-key-filters:not(:has(>:nth-child(4))){grid-template-columns:7fr 6fr 3fr}"
    ".st-key-filters-of-scores{display:grid;grid-template-columns:5fr 6fr 6fr 5fr 3fr;gap:.5rem;"
    "align-items:center;margin-top:-.6rem}"
    ".st-key-table-head{margin:-.6rem 0;min-height:2.25rem}"
    ".st-key-table-head button{min-height:1.8rem;padding:.1rem .4rem}"
    # What is asked stands under the count, so that both buttons fit beside them.
    "@media (min-width:1200px){.st-key-table-count{flex-wrap:nowrap}}"
    ".st-key-table-count button{white-space:nowrap}.st-key-table-count p{margin:0}"
    ".st-key-opened-head{margin-top:-1.6rem}"
    "[class*=st-key-filters] input{font-size:.875rem;padding-top:.25rem;padding-bottom:.25rem}"
    "[class*=st-key-filters] .react-aria-ComboBox>[role=group]{min-height:2rem;height:2rem}"
    '[class*=st-key-filters] [data-testid="stTextInputRootElement"]{height:2rem}'
    '[class*=st-key-filters] [data-testid="stPopover"] button{min-height:2rem;padding:.1rem .5rem}'
    "@media (max-width:1100px){.st-key-filters-of-scores{grid-template-columns:1fr 1fr}}"
    "@media (max-width:640px){.st-key-filters,"
    ".st-key-filters:not(:has(>:nth-child(4))){grid-template-columns:1fr 1fr}"
    ".st-key-first-example{display:none}}"
    f"{cards.STYLE}"
    "</style>"
)
HIDDEN = "<style>[class*=st-key-filters]{display:none!important}</style><span></span>"
"""Hides the controls while an example stands in the place of the table. They stay on the page, or
Streamlit would forget what they ask for. Of styles alone Streamlit would not let go again."""

_FURTHER = {
    "label": None,
    "answer": None,
    "side": None,
    "changed": False,
    "path": None,
    "credit": TITLES[WITHOUT],
    "strength": 0.0,
}
"""Keys of the further filters, with what they are at first."""


@st.cache_resource(max_entries=3, show_spinner=False)
def every_example(at: Source, set_name: str, estimator: str, behaviour: str) -> Every:
    """All examples of a set with their stage effects."""
    # Cached by names and stamps: Streamlit hashes large frames from a sample of their rows.
    found = loaders.effects(at, set_name, estimator)
    assert found is not None, "pages ask only for estimators that have a result"
    names = [stage.name for stage in loaders.run(at).stages]
    columns = list(loaders.examples(at, set_name).columns.drop(["example_id", "label"]))
    parts = found.parts(behaviour, browse.frame_columns(columns))
    frame = browse.example_frame(parts, found.behaviours[behaviour], names, columns)
    return Every.of(frame, names)


@st.cache_resource(max_entries=3, show_spinner=False)
def _with_shares(at: Source, set_name: str, estimator: str, behaviour: str, stored: str) -> Every:
    every = every_example(at, set_name, estimator, behaviour)
    found = reading_shares.shares(at, set_name, behaviour)
    return every if found is None else every.with_shares(reading_shares.columns(found))


def _every(workspace: Workspace, effects: Effects, behaviour: str) -> tuple[Every, bool]:
    """All examples, and whether they have shares."""
    at, name = workspace.at, workspace.examples.name
    if reading_shares.shares(at, name, behaviour) is None:
        return every_example(at, name, effects.estimator, behaviour), False
    stored = reading_shares.stamp(at)
    return _with_shares(at, name, effects.estimator, behaviour, stored), True


def choose(workspace: Workspace, effects: Effects) -> Chosen:
    """The filter controls in one row; returns the examples that pass them."""
    behaviour = workspace.of_one(effects)
    every, shared = _every(workspace, effects, behaviour.name)
    st.html(_STYLE)
    scored = is_score(behaviour)
    with st.container(key="filters-of-scores" if scored else "filters"):
        answers = _answers() if workspace.labelled and not scored else None
        side, changed = (_flip(), _changed(brief=True)) if scored else (None, False)
        search = _search(workspace.noun == "text")
        sort = _sort(workspace.labelled)
        count = _asked_for(("side", "changed") if scored else ())
        with st.popover(
            f"More ({count})" if count else "More",
            icon=":material/tune:",
            width="stretch",
            help="Further filters; in brackets how many of them are set.",
        ):
            filters = _further(workspace, every, behaviour, shared)
    if scored:
        filters = replace(filters, side=side, changed=changed)
    filters = replace(
        filters,
        stage=workspace.bar.stage,
        by=workspace.bar.by,
        group=workspace.bar.group,
        answers=answers,
        search=search,
        sort=sort,
    )
    # Every text of the set is read for this, so only once somebody searches.
    searched = loaders.searchable(workspace.at, workspace.examples.name) if search else None
    on_path = None
    if filters.path is not None:
        known = path_loaders.paths(workspace.at, workspace.examples.name)
        assert known is not None, "a path is asked for only where paths are known"
        on_path = path_loaders.taken(known, filters.path, every.frame["example_id"].tolist())
    return browse.select(every, filters, behaviour, workspace.stages, searched, on_path)


def _further(workspace: Workspace, every: Every, behaviour: Behaviour, shared: bool) -> Filters:
    """What is asked less often."""
    label = pick_label(every.labels) if workspace.labelled else None
    answer, scored = None, is_score(behaviour)
    if every.answers and not scored:
        answer = _pick(
            "Answer", every.answers, "answer", "Any answer", "What the final model says."
        )
    side = None if scored else pick_side()
    changed = False if scored else _changed()
    path = _path(workspace)
    reading = WITHOUT
    if reading_shares.known(workspace.at, workspace.examples.name) and not scored:
        chosen = readings.choose(told=False)
        reading = chosen if shared else WITHOUT
    largest = every.largest
    if reading != WITHOUT:
        largest = every.largest_in(reading, workspace.stages)
    strength = _strength(largest, behaviour)
    return Filters(
        label=label,
        answer=answer,
        side=side,
        changed=changed,
        path=path,
        credit=reading,
        strength=strength,
    )


def _asked_for(elsewhere: Sequence[str]) -> int:
    """How many of the further filters are set, from their state: they are drawn later.

    Args:
        elsewhere: Keys of those that stand outside.
    """
    count = 0
    for key, unset in _FURTHER.items():
        if key in elsewhere:
            continue
        value = st.session_state.get(key, st.query_params.get(key))
        count += value not in (None, "", unset, str(unset).lower(), str(unset))
    return count


def _answers() -> Answers | None:
    answers = _pick(
        "Final answer",
        ("right", "wrong"),
        "answers",
        "Right and wrong",
        "Whether the final model's answer is the label.",
        hidden=True,
    )
    # Spelled out, because the control returns any str and not one of the two literals.
    return "right" if answers == "right" else "wrong" if answers == "wrong" else None


def _sort(labelled: bool) -> str:
    sorts = browse.SORTS if labelled else [s for s in browse.SORTS if s != browse.WRONG_FIRST]
    start = 0 if labelled else sorts.index("strongest effect")
    return st.selectbox(
        "Sort by",
        sorts,
        index=start,
        key="sort",
        bind="query-params",
        icon=":material/sort:",
        label_visibility="collapsed",
        help="Order of the examples.",
    )


def pick_side() -> Side | None:
    """A control for credit or blame; None for both."""
    about = "Credit: the stage makes the behaviour better for this example. Blame: worse."
    return _side("Both", about)


def _flip() -> Side | None:
    """The same for a score, whose changes are what people look for."""
    about = "Credit: the answer scores better than without the stage. Blame: worse."
    return _side("Score better or worse", about, hidden=True)


def _side(none: str, about: str, hidden: bool = False) -> Side | None:
    side = _pick("Credit or blame", ("credit", "blame"), "side", none, about, hidden)
    # Spelled out, because the control returns any str and not one of the two literals.
    return "credit" if side == "credit" else "blame" if side == "blame" else None


def _changed(brief: bool = False) -> bool:
    return st.toggle(
        "Answer changes" if brief else "Only where the answer changes without the stage",
        key="changed",
        bind="query-params",
        help="Examples that the final model and a counterfactual answer differently.",
    )


def _path(workspace: Workspace) -> str | None:
    """A control for what was learned, forgotten or flipped; None where that is not known."""
    known = path_loaders.paths(workspace.at, workspace.examples.name)
    if known is None:
        return None
    text = (
        "Answers after the base and after every stage: learned, forgotten, flipped more than once; "
        "or one path, with a tick or a cross for every boundary."
    )
    return _pick("Path", path_loaders.options(known), "path", "Any path", text)


def _search(in_texts: bool) -> str:
    text = st.text_input(
        "Search" if in_texts else "Search by id",
        key="q",
        bind="query-params",
        max_chars=200,
        placeholder="Words of a text, or of an id" if in_texts else "Part of an example id",
        icon=":material/search:",
        label_visibility="collapsed",
        help="Examples that contain this; upper and lower case count as the same.",
    )
    return (text or "").strip()


def _pick(
    label: str, options: Sequence[str], key: str, none: str, text: str, hidden: bool = False
) -> str | None:
    return st.selectbox(
        label,
        options,
        index=None,
        placeholder=none,
        key=key,
        bind="query-params",
        help=text,
        label_visibility="collapsed" if hidden else "visible",
    )


def pick_label(labels: Sequence[str]) -> str | None:
    """A control for one of these labels; None for all."""
    text = "The class that an example belongs to."
    if len(labels) <= browse.MANY:  # with more, it is typed
        return _pick("Label", labels, "label", "All labels", text)
    return st.text_input("Label", key="label", bind="query-params", help=text) or None


def _strength(largest: float, behaviour: Behaviour) -> float:
    # Probabilities and the like are chosen in percent, as they are printed.
    scale = 100.0 if is_share(behaviour) else 1.0
    unit = axis_unit(behaviour)
    most = scale * largest
    # A power of ten that divides the range into 20 to 200 steps; no effects still need a range.
    step = 10.0 ** np.floor(np.log10(most / 20)) if most > 0 else 0.1
    # A whole number of steps, so that the slider can reach its end.
    top = float(np.ceil(most / step) * step) if most > 0 else 1.0
    chosen = st.slider(
        f"Strength of effect{f' ({unit})' if unit else ''}",
        0.0,
        top,
        0.0,
        step=float(step),
        # As many decimals as the step has.
        format=f"%.{max(-int(np.floor(np.log10(step))), 0)}f",
        key="strength",
        bind="query-params",
        help="Smallest size of the stage effect, whether credit or blame.",
    )
    return float(chosen) / scale


def count_and_export(workspace: Workspace, effects: Effects, chosen: Chosen) -> None:
    """How many examples are left, with buttons that save them as a slice and as CSV."""
    count, total = len(chosen), len(chosen.every.frame)
    with st.container(
        horizontal=True, vertical_alignment="center", gap="xsmall", key="table-count"
    ):
        of = "" if count == total else f"{count:,} of "
        with st.container(gap=None):
            st.html(components.text_html(of + count_text(total, workspace.noun)))
            if asked := Slice.words_of(chosen.filters.asked()):
                st.html(f"<small>{components.text_html(asked, muted=True)}</small>")
        slices.save(workspace, effects.estimator, chosen)
        st.download_button(
            "Export CSV",
            # Written when somebody clicks, not on every rerun.
            data=lambda: _csv(workspace, effects, chosen),
            file_name=f"{workspace.run.name}-{workspace.examples.name}-"
            f"{'effects' if chosen.filters.credit == WITHOUT else 'shares'}.csv",
            mime="text/csv",
            icon=":material/download:",
            type="tertiary",
            disabled=count == 0,
            on_click="ignore",
            help="The effects, or shares, of the examples that pass the filters, with trust.",
        )


def _csv(workspace: Workspace, effects: Effects, chosen: Chosen) -> bytes:
    behaviour = chosen.behaviour.name
    found = reading_shares.coalitions(workspace.at, workspace.examples.name)
    if chosen.filters.credit != WITHOUT and found is not None:
        return browse.export(share_table(found, [behaviour]), chosen.ids, [behaviour])
    table = with_trust(effects.of(behaviour), effects.trust, behaviour)
    return browse.export(table, chosen.ids, [behaviour])
