"""The blame card of an example: a picture to share, shown before it is downloaded."""

from __future__ import annotations

from urllib.parse import urlsplit

import pandas as pd
import streamlit as st

from stagelens.contracts import Behaviour, StageLensError
from stagelens.report.card.content import Card, make_card
from stagelens.report.card.page import as_html
from stagelens.report.card.picture import as_png
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, state
from stagelens.ui.reading.example_errors import example_errors
from stagelens.ui.reading.loaders import Effects

_COLUMNS = (
    *("example_id", "stage", "behaviour", "label", "final", "without", "effect"),
    *("prediction", "prediction_without", "within_noise"),
)


def button(workspace: Workspace, effects: Effects, behaviour: Behaviour, example_id: str) -> None:
    """A button that makes the card of an example and opens it."""
    if st.button(
        "Card",
        icon=":material/share:",
        key="card",
        help="A picture of this example to share: what the model says, and without which stage it "
        "would say something else.",
    ):
        _dialog(workspace, effects, behaviour, example_id)


def card_of(workspace: Workspace, effects: Effects, behaviour: Behaviour, example_id: str) -> Card:
    """The card by the effects that the page shows, with a link to this very view.

    Raises:
        SetError: No effect on the example is known.
    """
    parts = effects.parts(behaviour.name, _COLUMNS)
    rows = pd.concat([part[part["example_id"] == example_id] for part in parts])
    errors = example_errors(workspace.at, workspace.examples.name, effects, behaviour)
    return make_card(
        *(workspace.run, workspace.examples, rows, behaviour, effects.trust, errors),
        stage=workspace.bar.stage,
        link=_link(example_id),
    )


def _link(example_id: str) -> str:
    """The address of this view, with everything that is chosen in it."""
    here = urlsplit(st.context.url or "")
    # A proxy may serve the dashboard below a path of its own; the page's name is the last part.
    below = here.path.removesuffix("/Examples").rstrip("/")
    query = components.address("Examples", **{state.EXAMPLE: example_id})
    return f"{here.scheme}://{here.netloc}{below}/{query}" if here.netloc else query


@st.dialog("Blame card", width="large", icon=":material/share:")
def _dialog(workspace: Workspace, effects: Effects, behaviour: Behaviour, example_id: str) -> None:
    try:
        card = card_of(workspace, effects, behaviour, example_id)
    except StageLensError as error:
        components.error_state(str(error))
        return
    picture = as_png(card)
    st.image(picture, width="stretch", alt=f"Example {card.example_id} {card.title}")
    name = f"{workspace.run.name}-{example_id}"
    with st.container(horizontal=True):
        for ending, mime, content in (
            ("png", "image/png", picture),
            ("html", "text/html", as_html(card)),
        ):
            st.download_button(
                ending.upper(),
                data=content,
                file_name=f"{name}.{ending}",
                mime=mime,
                icon=":material/download:",
                type="primary" if ending == "png" else "secondary",
                on_click="ignore",
                key=f"card-{ending}",
            )
    if card.lit is None and workspace.computable:
        components.text_block(
            f"The tab {state.INPUT} finds where in the input {card.stage} acts; the card then "
            "shows it.",
            muted=True,
        )
