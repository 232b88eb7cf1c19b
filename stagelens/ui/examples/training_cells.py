"""The table of a stage's training examples: what its cells say, and what its columns mean."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from math import isfinite

import pandas as pd
import streamlit as st

from stagelens.analyses.training_data.groups import CONTRIBUTION
from stagelens.analyses.training_data.marks import NEAR, SAME
from stagelens.analyses.training_data.reading import texts_in
from stagelens.charts.style import short
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.reading import training_loaders
from stagelens.ui.reading.training_loaders import Loaded
from stagelens.wording.numbers import phrase, value_text
from stagelens.wording.signs import gain, marked

from .contributions import Asked

_LONGEST = 220
"""Characters of a text that a cell holds."""
_PNG = b"\x89PNG"


def shown(
    workspace: Workspace, asked: Asked, loaded: Loaded, rows: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, list[float]]]:
    """The words of a page of the table, and how strongly contributions are tinted.

    Args:
        workspace: What is open.
        asked: Whose behaviour, and which stage.
        loaded: Its training examples.
        rows: Those of the page.
    """
    data, behaviour = loaded.data, asked.behaviour
    ids = rows["example_id"].tolist()
    contents = training_loaders.contents(
        workspace.at, workspace.at.path, asked.stage, loaded.stamp, tuple(ids)
    )
    out: dict[str, object] = {}
    tints: dict[str, list[float]] = {}
    if data.facts.kind == "image":
        out["input"] = [_link(contents[name]) for name in ids]
    else:  # what comes first is pinned, and pale: texts are to be read
        out["id"] = ids
    if data.facts.kind == "text":
        out |= _texts([texts_in(contents[name]) for name in ids])
    if data.labelled:
        out["label"] = rows["label"].fillna("none").tolist()
    if CONTRIBUTION in rows:
        gains = gain(rows[CONTRIBUTION], behaviour).to_numpy(float)
        out[CONTRIBUTION] = [
            marked(one, behaviour, unit=False) if isfinite(one) else "no number" for one in gains
        ]
        largest = float(abs(gains[0])) if len(gains) and isfinite(gains[0]) else 0.0
        largest = max([largest, *(abs(one) for one in gains if isfinite(one))], default=0.0)
        tints[CONTRIBUTION] = [one / (largest or 1.0) if isfinite(one) else 0.0 for one in gains]
    if data.answers is not None:
        for name in ("answer", "without"):
            if rows[name].notna().any():
                out[name] = [
                    _answer(answer, label, data.answers.judged)
                    for answer, label in zip(rows[name], rows["label"], strict=True)
                ]
        moments = [f"value_{number}" for number in range(len(data.answers.moments))]
        out["own loss"] = rows[moments].to_numpy(float).tolist()
        if rows["value_without"].notna().any():
            kind = data.answers.behaviour.behaviour()
            out["loss without"] = [value_text(value, kind) for value in rows["value_without"]]
    out["uses"] = rows["uses"].tolist()
    for name in (SAME, NEAR):
        if name in rows and rows[name].notna().any():
            out[name] = rows[name].fillna("").tolist()
    for name in data.columns:
        out[name] = rows[name].astype("string").fillna("").tolist()
    out.setdefault("id", ids)
    return pd.DataFrame(out), tints


def _texts(rows: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """A column for each text that examples have, as of a pair of completions; of one, "text"."""
    fields = list(dict.fromkeys(field for row in rows for field in row))
    names = ["text"] if len(fields) == 1 else fields
    return {
        name: [short(row.get(field, ""), _LONGEST) for row in rows]
        for name, field in zip(names, fields, strict=True)
    }


def _answer(answer: object, label: object, judged: bool) -> str:
    if pd.isna(answer):
        return ""
    if not judged or pd.isna(label):
        return str(answer)
    return f"{'=' if answer == label else '≠'} {answer}"


def _link(shown: bytes | None) -> str | None:
    if shown is None or not shown.startswith(_PNG):
        return None
    return f"data:image/png;base64,{base64.b64encode(shown).decode()}"


def columns(workspace: Workspace, asked: Asked, loaded: Loaded, unit: str) -> dict[str, object]:
    """How Streamlit shows the columns: titles, widths and what each means.

    Args:
        workspace: What is open.
        asked: Whose behaviour, and which stage.
        loaded: Its training examples.
        unit: Of contributions; empty where there is none.
    """
    config = st.column_config
    answers = loaded.data.answers
    moments = () if answers is None else answers.moments
    over = ", ".join(f"{stage} {step:,}" if step else f"before {stage}" for stage, step in moments)
    tokens = workspace.continues_text  # of an answer of many words, the first alone is known
    final, lacking = ("next token", "next token ") if tokens else ("final answer", "")
    return {
        "input": config.ImageColumn("image", width=50, pinned=True),
        "text": config.TextColumn("text", width=320),
        "prompt": config.TextColumn("prompt", width=200),
        CONTRIBUTION: config.TextColumn(
            CONTRIBUTION,
            width=110,
            help=f"To the {phrase(asked.behaviour)}{f', in {unit}' if unit else ''}, over all "
            "uses, to first order: ▲ helped, ▼ hurt.",
        ),
        "answer": config.TextColumn(final, help="≠: not the label it was trained on."),
        "without": config.TextColumn(
            f"{lacking}without {short(asked.stage, 20)}",
            help="What the model without the stage answers, which never saw this label in it.",
        ),
        "own loss": config.LineChartColumn(
            "own loss over time",
            width=130,
            help=f"Of this example by itself, measured after these steps: {over}.",
        ),
        "loss without": config.TextColumn(
            "loss without", help="Its own loss under the model without the stage."
        ),
        "uses": config.NumberColumn("uses", width=55, help="How often the stage used it."),
        SAME: config.TextColumn(SAME, help="Where else the same input occurs."),
        NEAR: config.TextColumn(
            NEAR,
            help=f"Where nearly the same {_likeness(loaded)}.",
        ),
        "id": config.TextColumn("id", help="Step and place of its first use, from 0."),
    }


def _likeness(loaded: Loaded) -> str:
    image, facts = loaded.data.facts.kind == "image", loaded.data.duplicate_facts
    what = "image occurs: correlation of pixels" if image else "text occurs: Jaccard index"
    return (
        what if facts is None or facts.threshold is None else f"{what} from {facts.threshold:g} on"
    )
