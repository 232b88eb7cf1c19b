"""One example's shares: its waterfall, and each stage's share of it in words."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from stagelens import charts
from stagelens.analyses.shares import sentences
from stagelens.analyses.shares.bridge import bridges
from stagelens.analyses.shares.share_table import SEEN_AFTER, SHARE, WITHOUT, Shares
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, drawing, readings
from stagelens.ui.pieces.pinning import About
from stagelens.ui.reading import shares as reading_shares
from stagelens.ui.reading.browse import Chosen
from stagelens.wording.folding import strongest
from stagelens.wording.sentences import Sentence


def shares_of(workspace: Workspace, chosen: Chosen) -> Shares | None:
    """What the table of examples shows in place of effects; None where it shows these."""
    if chosen.filters.credit == WITHOUT:
        return None
    name = workspace.examples.name
    return reading_shares.shares(workspace.at, name, chosen.behaviour.name)


def said(found: Shares, reading: str, place: int) -> list[Sentence]:
    """Each stage's share of one example, or what is seen after it; of many, the strongest."""
    means = found.of_example(reading, place)
    kept = strongest(one.mean for one in means)
    return [sentences.example_sentence(means[at], found.behaviour, reading) for at in kept]


def waterfall(workspace: Workspace, chosen: Chosen, row: pd.Series) -> None:
    """From the base to the final model on one example; nothing where shares are not known.

    Shares, unless what is seen after stages was chosen. In words too where one of the two was.

    Args:
        workspace: What is open.
        chosen: The examples, their behaviour, and what was chosen to credit by.
        row: The example, from ``browse.example_frame``.
    """
    behaviour, asked = chosen.behaviour, chosen.filters.credit
    place = chosen.every.places[str(row["example_id"])]
    found = reading_shares.shares(workspace.at, workspace.examples.name, behaviour.name)
    if found is None:
        return
    reading = SEEN_AFTER if asked == SEEN_AFTER else SHARE
    means = found.of_example(reading, place)
    what = readings.DIFFERENCE if reading == SEEN_AFTER else "share"
    title = "Seen after each stage" if reading == SEEN_AFTER else "Share of each stage"
    example = f"example {row['example_id']}"
    ends = float(found.base[place]), float(found.final[place])
    either = charts.EITHER
    chart = drawing.chart(charts.waterfall, means, *ends, behaviour, either, example, what)
    st.html(components.heading_html(title))
    if asked != WITHOUT:
        components.sentences(said(found, reading, place), brief=True)
    if reading == SHARE and (opposed := bridges(found, example=place)):
        components.sentences(opposed)
    components.show(
        chart,
        "example-waterfall",
        About(
            title=f"{title} on {example}",
            behaviour=behaviour.name,
            sentences=lambda: [
                *said(found, reading, place),
                *(bridges(found, example=place) if reading == SHARE else ()),
            ],
            estimator=f"shares by {found.estimator}",
            trust=[one.trust for one in means],
            filters={"example": str(row["example_id"])},
        ),
    )
