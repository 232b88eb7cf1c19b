"""Findings made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from stagelens import charts
from stagelens.contracts import Behaviour
from stagelens.effects.summary import stage_summary
from stagelens.estimators.stage_trust import Agreement, StageTrust
from stagelens.report.figures import kept
from stagelens.report.finding import Finding, FindingView, Seen
from stagelens.report.store import new_id
from stagelens.wording.sentences import mean_sentence
from tests.support.effect_tables import effect_table

LOSS = Behaviour("loss", "lower", "nats")


def trust_of(stage: str, r: float = 0.97) -> StageTrust:
    known = Agreement(behaviour="loss", r=r, slope=0.9, relative_error=0.2)
    return StageTrust(
        stage=stage,
        estimator="coarse-replay",
        trust="verified",
        reason="Checked against a replay.",
        agreements=(known,),
    )


def seen(stages: tuple[str, ...] = ("one", "two"), **changes: Any) -> Seen:
    """Bars of credit and blame, as a page would pin them."""
    table = effect_table({name: [0.5, -0.25, float(i)] for i, name in enumerate(stages)})
    means = stage_summary(table, LOSS, stages)
    trust = {name: trust_of(name) for name in stages}
    chart = charts.credit_and_blame(means, LOSS, trust, charts.EITHER)
    figure, rows = kept(chart)
    said = [
        mean_sentence(row, LOSS, "image", None, trust[str(row["stage"])])
        for row in means.to_dict("records")
    ]
    given = {
        "id": new_id(),
        "kind": "chart",
        "title": "Credit and blame",
        "said": chart.alt,
        "sentences": tuple(said),
        "run_name": "mine",
        "run_digest": "d" * 64,
        "set_name": "test",
        "set_digest": "e" * 64,
        "noun": "image",
        "behaviour": "loss",
        "estimator": "coarse-replay 1/4",
        "trust": tuple(trust.values()),
        "filters": {"group": "stamped"},
        "view": FindingView(page="", title="Overview", query={"set": "test"}),
        "figure": figure,
        "rows": rows,
    }
    return Seen(**{**given, **changes})


def finding(stages: tuple[str, ...] = ("one", "two"), **changes: Any) -> Finding:
    return Finding(seen=seen(stages, **changes))


def scatter(points: int) -> Seen:
    """Estimate against replay, one mark per example, drawn by WebGL where there are many."""
    rng = np.random.default_rng(points)
    table = pd.DataFrame(
        {
            "example_id": [f"example-{i:06d}" for i in range(points)],
            "estimate": rng.normal(size=points),
            "replay": rng.normal(size=points),
            "within_noise": pd.array([False] * points, dtype="boolean"),
        }
    )
    figure = go.Figure()
    for name, of in (("credit", table["replay"] < 0), ("blame", table["replay"] >= 0)):
        part = table[of]
        figure.add_trace(
            go.Scattergl(
                x=part["estimate"],
                y=part["replay"],
                mode="markers",
                name=name,
                customdata=[f"<b>{one}</b><br>estimate and replay" for one in part["example_id"]],
            )
        )
    chart = charts.Chart(figure, f"Estimate against replay, {points:,} examples.", table)
    figure, rows = kept(chart)
    return seen(title="Estimate against replay", said=chart.alt, figure=figure, rows=rows)
