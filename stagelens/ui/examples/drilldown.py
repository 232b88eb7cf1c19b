"""One example: its input, every answer, the effect of each stage, and its way through them."""

from __future__ import annotations

from math import nan

import pandas as pd
import streamlit as st

from stagelens import charts
from stagelens.analyses.slices.saved import Slice
from stagelens.contracts import Behaviour, is_score
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, inputs, state
from stagelens.ui.pieces.pinning import About
from stagelens.ui.reading import loaders
from stagelens.ui.reading.browse import (
    Chosen,
    answer_column,
    effect_column,
    noise_column,
)
from stagelens.ui.reading.example_errors import example_errors
from stagelens.ui.reading.loaders import Effects
from stagelens.wording.folding import MOST
from stagelens.wording.numbers import count_text, phrase, value_text
from stagelens.wording.sentences import Sentence, example_sentence

from . import (
    answers,
    canvas,
    card,
    contributions,
    live_answers,
    model_answers,
    network,
    saliency,
    shares,
    side_by_side,
    tokens,
    training_data,
    training_steps,
)

CLOSED = state.session_key("closed")
"""The example that was open until now: the table turns to its page."""

_LARGE = 256
"""Pixels on the longer side of the input as it is shown."""
_STYLE = (
    "<style>.st-key-opened-head h2{font-size:1.25rem;padding:0}"
    ".st-key-opened-head button{min-height:2rem;padding:.1rem .45rem}"
    ".st-key-opened-head{gap:.5rem}"
    ".st-key-start-from button,.st-key-start-from button *{white-space:normal}"
    ".st-key-opened-head button kbd{color:inherit;opacity:1}"
    "@media (max-width:640px){.st-key-opened-head{gap:.4rem}"
    ".st-key-opened-head button kbd,.st-key-opened-head button [data-testid*=hortcut]"
    "{display:none}}</style>"
)


def first_button(chosen: Chosen) -> None:
    """Opens the first example that passes the filters; the key is that of the next one."""
    to = chosen.neighbour(None, 1)
    st.button(
        "Open the first",
        icon=":material/arrow_forward:",
        type="tertiary",
        key="first-example",
        on_click=state.choose,
        args=(to,),
        disabled=to is None,
        shortcut="J",
    )


def opened(workspace: Workspace, effects: Effects, chosen: Chosen, example_id: str) -> None:
    """One example in the place of the table: the way on, its input, and a tab for each question."""
    st.html(_STYLE)
    _steps(workspace, effects, chosen, example_id)
    row = chosen.every.row(example_id)
    if chosen.page_of(example_id) is None:
        st.caption("This example does not pass the filters.")
    left, right = st.columns([2, 5] if workspace.noun == "image" else [2, 3], gap="medium")
    with left:
        _input(workspace, chosen, example_id, row)
    with right:
        _tabs(workspace, effects, chosen, example_id, row)


def _input(workspace: Workspace, chosen: Chosen, example_id: str, row: pd.Series) -> None:
    """The input as it is, and what is known of it; of a mean, what it is the mean of."""
    if contributions.asks_about_shown(chosen):
        _mean_of(workspace, chosen, example_id)
        return
    facts = _facts(workspace, chosen.behaviour, row)
    if workspace.noun == "image":
        alt = f"The input of example {example_id}"
        png = loaders.picture(workspace.at, workspace.examples.name, example_id, _LARGE)
        # One element instead of two, because each costs the browser time.
        # Below each other in a column, beside each other where the column is the whole page.
        image = inputs.image_html(png, alt)
        facts = f"<div style='flex:1 1 10rem;max-width:20rem'>{image}</div>{facts}"
    else:
        _texts(workspace, example_id)
    st.html(f"<div style='display:flex;flex-wrap:wrap;gap:1em'>{facts}</div>")
    components.text_block(_measured_by(workspace, chosen.behaviour), muted=True)
    if workspace.noun == "image":
        canvas.button(workspace, example_id)


def _mean_of(workspace: Workspace, chosen: Chosen, example_id: str) -> None:
    """In the place of one example's input, while the mean of those shown is asked about."""
    st.html(components.heading_html(f"Mean of {count_text(len(chosen), workspace.noun)}"))
    if asked := Slice.words_of(chosen.filters.asked()):
        components.text_block(asked, muted=True)
    mean = value_text(float(chosen.rows["final"].mean()), chosen.behaviour)
    components.text_block(f"Mean final {phrase(chosen.behaviour)}: {mean}")
    if chosen.place_of(example_id) is not None:
        components.text_block(f"{example_id} is one of them.", muted=True)


def _said(workspace: Workspace, effects: Effects, chosen: Chosen, row: pd.Series) -> str:
    """Every stage's effect in words; what its share is stands beside the shares' chart."""
    told = said(workspace, effects, chosen.behaviour, row)
    said_of = components.sentences_html(told, brief=True)
    if (more := len(workspace.stages) - MOST) > 0:
        text = f"{more:,} more stages have smaller effects on it."
        said_of += components.text_html(text, muted=True)
    if all(pd.isna(row[noise_column(s)]) for s in workspace.stages):
        said_of += components.text_html("Training noise not known.", muted=True)
    return said_of


def _tabs(
    workspace: Workspace, effects: Effects, chosen: Chosen, example_id: str, row: pd.Series
) -> None:
    """What can be asked about one example, a tab for each question."""
    names = _looks(workspace, chosen.behaviour)
    tabs = dict(zip(names, st.tabs(names, key=state.LOOK, bind="query-params"), strict=True))
    # Only the open tab is drawn: Streamlit would run the others too, and each reads a lot.
    name, tab = next(((name, tab) for name, tab in tabs.items() if tab.open), (None, None))
    if tab is None:
        return
    with tab:
        if name == state.EFFECTS:
            st.html(_said(workspace, effects, chosen, row))
            _effects(workspace, effects, chosen.behaviour, row)
            shares.waterfall(workspace, chosen, row)
        elif name == state.ANSWERS:
            if is_score(chosen.behaviour):
                st.html(_said(workspace, effects, chosen, row))
            model_answers.answers_tab(workspace, chosen.behaviour, example_id)
        elif name == state.WHEN:
            training_steps.training_steps_tab(workspace, effects, chosen, example_id)
        elif name == state.DATA:
            training_data.training_data_tab(workspace, effects, chosen, example_id)
        elif name == state.INPUT:
            if tokens.has_tokens(workspace):
                tokens.of_the_set(workspace, effects, example_id)
            if tokens.has_maps(workspace):
                saliency.saliency_maps(workspace, effects, chosen.behaviour, example_id)
        elif name == state.NETWORK:
            network.network_of_example(workspace, effects, chosen.behaviour, example_id)
        elif name == state.SIDE_BY_SIDE:
            side_by_side.side_by_side_tab(
                workspace,
                effects,
                chosen,
                lambda own: said(workspace, effects, chosen.behaviour, own),
            )


def _looks(workspace: Workspace, behaviour: Behaviour) -> list[str]:
    """The tabs: what a score is made of are answers, and none of them can be differentiated."""
    if is_score(behaviour):
        return [state.ANSWERS, state.SIDE_BY_SIDE]
    answered = [state.ANSWERS] if model_answers.alike(workspace, behaviour) else []
    asked = [state.WHEN, state.DATA, state.INPUT, state.NETWORK, state.SIDE_BY_SIDE]
    return [state.EFFECTS, *answered, *asked]


def _effects(workspace: Workspace, effects: Effects, behaviour: Behaviour, row: pd.Series) -> None:
    bars(
        workspace, effects, behaviour, row, answers.answers_html(workspace, effects, behaviour, row)
    )


def _steps(workspace: Workspace, effects: Effects, chosen: Chosen, example_id: str) -> None:
    """Back to the table, and through the examples in its order."""

    def back() -> None:
        state.choose(None)
        st.session_state[CLOSED] = example_id

    # The gap is small, so that all stand in one row of a window 1280 pixels wide.
    with st.container(
        horizontal=True, vertical_alignment="center", gap="xsmall", key="opened-head"
    ):
        st.button(
            "Back to the table", icon=":material/table_rows:", on_click=back, shortcut="Escape"
        )
        for label, icon, step, key in (
            ("Previous", ":material/arrow_back:", -1, "K"),
            ("Next", ":material/arrow_forward:", 1, "J"),
        ):
            to = chosen.neighbour(example_id, step)
            st.button(
                label,
                icon=icon,
                on_click=state.choose,
                args=(to,),
                disabled=to is None,
                shortcut=key,
            )
        st.header(components.plain(example_id), anchor=False, width="content")
        place = chosen.place_of(example_id)
        with st.container(width="stretch"):
            if place is not None:
                count = count_text(len(chosen), workspace.noun)
                components.text_block(f"{place + 1:,} of {count}", muted=True)
        side_by_side.button(chosen, example_id)
        card.button(workspace, effects, chosen.behaviour, example_id)


def _texts(workspace: Workspace, example_id: str) -> None:
    """The texts, and a button to change them and ask again."""
    content = loaders.texts(workspace.at, workspace.examples.name, [example_id])[0]
    inputs.texts(content)
    given = {field: text for field, text in content.items() if text is not None}
    st.button(
        "Change it and ask again",
        icon=":material/edit:",
        key="start-from",
        on_click=live_answers.start_from,
        args=(given,),
        help="Opens it as an own example.",
    )
    # The click reruns this fragment only, and the tabs that it switches are outside.
    if st.session_state.get("start-from"):
        st.rerun()


def _facts(workspace: Workspace, behaviour: Behaviour, row: pd.Series) -> str:
    pairs = [("label", row["label"])] if workspace.labelled else []
    pairs += [(column, row[column]) for column in workspace.examples.columns]
    pairs.append((f"final {phrase(behaviour)}", value_text(row["final"], behaviour)))
    lines = "".join(
        f"<div style='opacity:.75'>{components.shown(str(name))}</div>"
        "<div style='overflow-wrap:anywhere;overflow:hidden'>"
        f"{components.shown(answers.value_shown(value))}</div>"
        for name, value in pairs
    )
    return (
        "<div style='flex:1 1 10rem;display:grid;"
        "grid-template-columns:fit-content(40%) minmax(0,1fr);"
        "align-content:start;gap:.3em 1em;font-size:.9em;overflow:hidden'>"
        f"{lines}</div>"
    )


def _measured_by(workspace: Workspace, behaviour: Behaviour) -> str:
    """What the numbers on one example are of, and why not of the behaviour that was chosen."""
    description = behaviour.description
    said = f"{phrase(behaviour).capitalize()}: {description[:1].lower()}{description[1:]}"
    if behaviour.name == "margin":
        said += " An answer may be right below 0: it has to be the most probable one, no more."
    if behaviour.name == workspace.bar.behaviour.name or is_score(behaviour):
        return said
    return f"{said} It stands for {workspace.bar.behaviour.name}: one example is right or wrong."


def sentences(workspace: Workspace, effects: Effects, behaviour: Behaviour, row: pd.Series) -> None:
    """Every stage's effect on an example, in words; see :func:`said`."""
    components.sentences(said(workspace, effects, behaviour, row), brief=True)


def said(
    workspace: Workspace, effects: Effects, behaviour: Behaviour, row: pd.Series
) -> list[Sentence]:
    """Every stage's effect on an example, as sentences; of many, the strongest.

    Args:
        workspace: What is open.
        effects: Contain the example's effects.
        behaviour: Which of its behaviours.
        row: The example, from ``browse.example_frame``.
    """
    label = None if answers.value_shown(row["label"]) == "none" else str(row["label"])
    errors = example_errors(workspace.at, workspace.examples.name, effects, behaviour)
    return [
        example_sentence(
            stage,
            behaviour,
            float(row[effect_column(stage)]),
            effects.trust.get(stage),
            None
            if workspace.continues_text or is_score(behaviour)
            # A next token is neither right nor wrong, and answers of many words stand beside it.
            else (str(row["prediction"]), str(row[answer_column(stage)])),
            label,
            within_noise=_within_noise(row, stage),
            error=errors.get(stage, nan),
            final=float(row["final"]),
        )
        for stage in answers.shown_stages(workspace, row)
    ]


def _within_noise(row: pd.Series, stage: str) -> bool:
    within = row[noise_column(stage)]
    # Null where training noise is not known; only what is known to be noise is called so.
    return bool(within) if pd.notna(within) else False


def bars(
    workspace: Workspace,
    effects: Effects,
    behaviour: Behaviour,
    row: pd.Series,
    before: str,
    own: bool = False,
    towards: str | None = None,
) -> None:
    """Every stage's effect on an example, as bars; see :func:`sentences`.

    Args:
        workspace: What is open.
        effects: Contain the example's effects.
        behaviour: Which of its behaviours.
        row: The example, from ``browse.example_frame``.
        before: Markup to show beside the bars, or above them in a narrow window.
        own: Whether it is an own example, which is in no set.
        towards: The answer that the behaviour is about, where nobody has said that it is right.
    """
    errors = example_errors(workspace.at, workspace.examples.name, effects, behaviour)
    values = pd.DataFrame(
        {
            "stage": workspace.stages,
            "error": [errors.get(stage, float("nan")) for stage in workspace.stages],
            "effect": [row[effect_column(stage)] for stage in workspace.stages],
            "within_noise": [_within_noise(row, stage) for stage in workspace.stages],
            "final": float(row["final"]),
        }
    )
    about = About(
        title="" if own else f"Effect of each stage on example {row['example_id']}",
        behaviour=behaviour.name,
        sentences=lambda: said(workspace, effects, behaviour, row),
        trust=[effects.trust[stage] for stage in workspace.stages if stage in effects.trust],
        filters={"example": str(row["example_id"])} if not own else {},
        own=own,
    )
    drawn = charts.effect_bars(values, behaviour, effects.trust, towards=towards)
    heading = components.heading_html("Effect of each stage")
    beside = (
        "<div style='display:grid;gap:1rem 2rem;"
        "grid-template-columns:repeat(auto-fit,minmax(min(340px,100%),1fr))'>"
        f"<div>{before}</div><div>{heading}{drawn.html}</div></div>"
    )
    components.drawn(
        charts.Markup(beside, drawn.alt),
        "example-effects",
        lambda: charts.example_effects(values, behaviour, effects.trust, charts.EITHER, towards),
        about,
    )
