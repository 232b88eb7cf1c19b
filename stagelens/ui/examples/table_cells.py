"""What stands in the table of examples: its cells, their tints, and how wide its columns are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, nan
from typing import Any

import pandas as pd
import streamlit as st

from stagelens.analyses.shares.share_table import SEEN_AFTER, SHARE, WITHOUT
from stagelens.charts import marked
from stagelens.charts.style import short
from stagelens.contracts import Behaviour, is_score
from stagelens.effects.summary import right_answers
from stagelens.estimators.stage_trust import StageTrust
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import inputs
from stagelens.ui.reading import loaders
from stagelens.ui.reading import shares as reading_shares
from stagelens.ui.reading.browse import (
    Chosen,
    answer_column,
    effect_column,
    noise_column,
    number_column,
)
from stagelens.ui.reading.example_errors import example_errors
from stagelens.ui.reading.loaders import Effects
from stagelens.wording.numbers import amount_text, axis_unit, phrase
from stagelens.wording.trust_words import MARKS, signs_known, trust_word

from . import shares
from .model_answers import score_text

_THUMBNAIL = 40
_CELL = 300
"""Characters of a text that a cell of the table holds."""
_TEXT_WIDTH, _ALL_WIDTH = 300, 740
"""Pixels that the texts of an example share in the table; with all stages beside them."""
_FITTING = 5
"""Stages that have room beside texts without scrolling."""
_SCORE = "score of the answer"
_ASKED = "answer without"
"""The column of answers without the stage that is chosen in the bar."""
_HELP = {
    WITHOUT: "Stage effect: final model minus the counterfactual without the stage",
    SHARE: "The stage's share of what training as a whole did",
    SEEN_AFTER: "Seen after the stage: the boundary after it minus the one before",
}


def cells_of(
    workspace: Workspace,
    effects: Effects,
    chosen: Chosen,
    shown: pd.DataFrame,
    stages: Sequence[str],
) -> pd.DataFrame:
    """The words of a page of the table.

    Args:
        workspace: What is open.
        effects: Whose numbers.
        chosen: The examples that are listed.
        shown: Those on the page.
        stages: Which have columns.
    """
    behaviour, reading = chosen.behaviour, chosen.filters.credit
    ids = shown["example_id"].tolist()
    cells: dict[str, object] = {}
    name = workspace.examples.name
    if workspace.noun == "image":
        cells["input"] = loaders.pictures(workspace.at, name, ids, _THUMBNAIL)
    else:
        texts = loaders.texts(workspace.at, name, ids)
        for field in fields_of(workspace, behaviour):
            cells[input_column(field)] = [short(text[field] or "", _CELL) for text in texts]
    if workspace.noun == "image":
        cells["id"] = ids
    if workspace.labelled:
        cells["label"] = shown["label"].tolist()
    scored = is_score(behaviour)
    if scored:
        cells[_SCORE] = [score_text(float(value)) for value in shown["final"]]
    cells["answer"] = [
        _answer(f"{mark} {answer}" if mark or not scored else answer)
        for mark, answer in zip(_marks(shown["right"]), shown["prediction"], strict=True)
    ]
    asked = chosen.filters.stage
    if asked is not None and _shows_answers(chosen, stages):
        told = zip(*answers_without(shown, asked), strict=True)
        absent = "no answer" if scored else "no model"
        cells[_ASKED] = [_answer(f"{mark} {answer}".strip()) or absent for answer, mark in told]
    trusts, errors = trust_of(workspace, effects, chosen), _errors(workspace, effects, chosen)
    for stage in stages:
        error, known = errors.get(stage, nan), signs_known(trusts.get(stage), behaviour.name)
        # Training noise is known of effects only.
        within = shown[noise_column(stage)].fillna(False) & by_effects(chosen)
        cells[effect_column(stage)] = [
            _effect_cell(number, behaviour, noisy, known and not abs(number) <= error)
            for number, noisy in zip(shown[number_column(reading, stage)], within, strict=True)
        ]
    if workspace.noun == "text":  # words say more than ids do
        cells["id"] = ids
    return pd.DataFrame(cells)


def fields_of(workspace: Workspace, behaviour: Behaviour) -> Sequence[str]:
    """The texts of an example that have a column: of a score the prompt, which was answered."""
    inputs_of = workspace.examples.inputs
    return inputs_of[:1] if is_score(behaviour) else inputs_of


def answer_title(workspace: Workspace, behaviour: Behaviour) -> str:
    """What the final model's answers are called: of a language model, whole ones have scores."""
    return "next token" if workspace.continues_text and not is_score(behaviour) else "answer"


def _answer(answer: object) -> str:
    """An answer as a cell holds it."""
    return "no answer" if answer is None or answer != answer else short(str(answer), _CELL)


def tints_of(
    chosen: Chosen, shown: pd.DataFrame, stages: Sequence[str]
) -> Mapping[str, list[float]]:
    """Column to the gains that its cells are tinted by; 1 is the largest of the set."""
    reading, largest = chosen.filters.credit, chosen.every.largest
    if not by_effects(chosen):
        largest = chosen.every.largest_in(reading, stages)
    return {
        effect_column(stage): (
            chosen.behaviour.sign * shown[number_column(reading, stage)] / (largest or 1.0)
        ).tolist()
        for stage in stages
    }


def _shows_answers(chosen: Chosen, stages: Sequence[str]) -> bool:
    """Whether answers without a stage have a column."""
    return chosen.filters.stage in stages and by_effects(chosen)


def answers_without(shown: pd.DataFrame, stage: str) -> tuple[list[str], list[str]]:
    """What the model without a stage answers, and the marks of right and wrong.

    Both are empty where a refused stage leaves no model to ask.
    """
    answers = shown[answer_column(stage)]
    marks = _marks(right_answers(answers, shown["label"]))
    return ["" if pd.isna(each) else str(each) for each in answers], marks


def by_effects(chosen: Chosen) -> bool:
    """Whether stage effects are shown, and no shares."""
    return chosen.filters.credit == WITHOUT


def trust_of(workspace: Workspace, effects: Effects, chosen: Chosen) -> Mapping[str, StageTrust]:
    """What is known of the numbers in the table."""
    found = shares.shares_of(workspace, chosen)
    return effects.trust if found is None else found.trust_in(chosen.filters.credit)


def _errors(workspace: Workspace, effects: Effects, chosen: Chosen) -> Mapping[str, float]:
    found = shares.shares_of(workspace, chosen)
    if found is None:
        name = workspace.examples.name
        return example_errors(workspace.at, name, effects, chosen.behaviour)
    return reading_shares.errors(found, chosen.filters.credit)


def input_column(field: str) -> str:
    """The column of a text field, named so that no column of effects is called the same."""
    return f"input {field}"


def _marks(right: pd.Series) -> list[str]:
    return ["✓" if value == 1 else "✗" if value == 0 else "" for value in right]


def _effect_cell(effect: float, behaviour: Behaviour, within_noise: bool, signed: bool) -> str:
    if not isfinite(effect):
        return "no number"
    if within_noise:
        # Without a direction, which means nothing within training noise.
        return f"≈ {amount_text(effect, behaviour, unit=False)}"
    return marked(behaviour.sign * effect, behaviour, unit=False, signed=signed)


def columns_of(
    workspace: Workspace, effects: Effects, chosen: Chosen, stages: Sequence[str]
) -> dict[str, Any]:
    """Title, width and help of every column."""
    behaviour, trusts = chosen.behaviour, trust_of(workspace, effects, chosen)
    config = st.column_config
    texts = max(_TEXT_WIDTH, _ALL_WIDTH - 120 * len(stages))
    fields = fields_of(workspace, behaviour)
    # What goes on from a prompt is mostly shorter than that.
    weights = {field: 2 if field == "prompt" else 1 for field in fields}
    # Answers of many words stand beside the prompt.
    wide = max(texts // (3 if _shows_answers(chosen, stages) else 2), 150)
    scored = is_score(behaviour)
    columns: dict[str, Any] = {
        "input": config.ImageColumn("image", width=50, pinned=True),
        **{
            input_column(field): config.TextColumn(
                field if field in inputs.TITLES else inputs.title(field),
                width=wide + 70
                if scored
                else max(texts * weights[field] // sum(weights.values()), _width(field)),
                help=inputs.title(field),
                pinned=len(stages) > _FITTING,  # what is pinned is pale, and texts are to be read
            )
            for field in fields
            if workspace.noun == "text"
        },
        "id": config.TextColumn("id", width=100, pinned=workspace.noun == "image"),
        "label": config.TextColumn("label", width=_width("label", *chosen.every.labels)),
        _SCORE: config.TextColumn(
            "score", width=_width("score"), help=f"{behaviour.better.capitalize()} is better."
        ),
        "answer": config.TextColumn(
            answer_title(workspace, behaviour),
            width=wide
            if scored
            else _width("answer", *(f"✓ {name}" for name in chosen.every.labels)),
            help="Of the final model."
            if scored
            else "The most probable one after the prompt, or after the text, by the final model."
            if workspace.continues_text
            else "Of the final model; ✓ right, ✗ wrong.",
        ),
    }
    asked = chosen.filters.stage
    if asked in stages:
        columns[_ASKED] = config.TextColumn(
            f"without {asked}",
            width=wide if scored else _width(f"without {asked}"),
            help=f"The {answer_title(workspace, behaviour)} of the model without the stage that is "
            f"chosen above{'.' if workspace.continues_text else '; ✓ right, ✗ wrong.'}",
        )
    unit = axis_unit(behaviour)
    for stage in stages:
        known = trusts.get(stage)
        title = stage if known is None else f"{MARKS[trust_word(known, behaviour.name)]} {stage}"
        columns[effect_column(stage)] = config.TextColumn(
            title,
            width=_width(title, "▼ 0.00000"),
            help=f"{_HELP[chosen.filters.credit]} ({phrase(behaviour)}"
            f"{f', in {unit}' if unit else ''}).",
        )
    return columns


def _width(*texts: str) -> int:
    """Pixels of a column that cuts none of these; a very long one is cut all the same."""
    return min(26 + 8 * max(len(text) for text in texts), 260)
