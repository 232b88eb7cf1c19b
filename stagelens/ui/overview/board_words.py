"""What the switchboard sends to a browser: numbers and words of every known combination."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stagelens import charts
from stagelens.analyses.switches import ALL_ON, Off
from stagelens.charts.style import short, written_out
from stagelens.contracts import ACCURACY, Behaviour, is_score
from stagelens.trust.draws import RECIPE
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, state
from stagelens.ui.reading import loaders, switches
from stagelens.ui.reading.loaders import Effects
from stagelens.ui.reading.switches import Board
from stagelens.wording.numbers import count_text, is_share, phrase, value_text
from stagelens.wording.sentences import (
    Part,
    Sentence,
    is_certain,
    slice_parts,
    would_be_on_average,
)
from stagelens.wording.trust_words import MARKS, trust_explanation, trust_label, trust_word

from . import board_bars

MOST = {"image": 60, "text": 18}
"""Examples on a wall, by what they are."""
_CARD = {"image": 46, "text": 190}
"""The least width of a card, in pixels."""
_SIDE = 64
_TEXT, _ANSWER, _ABOUT = 160, 40, 200
"""Characters of a text on a card, of an answer, and of the description of a stage's data."""

_SPACIOUS = 8
"""Up to so many stages, switches also tell of data and learning rates."""
_OF_THIS_RUN = "All models and numbers of the switchboard are of this run, not of its recipe."
_FINAL = "The final model: every stage happened."

ALL, GROUP = "all", "group"
"""Which examples a press of one of the two buttons asks for."""


@dataclass(frozen=True)
class Focus:
    """Whose examples the switchboard shows.

    Attributes:
        by: The column of the group.
        group: The group; None for all examples.
        other: The group that one click leads to, where all are shown instead; None for none.
        chosen: Whether the group was chosen for the reader, by the strongest headline.
    """

    by: str | None = None
    group: str | None = None
    other: str | None = None
    chosen: bool = False

    def examples(self, noun: str) -> str:
        """What they are, in words."""
        return "".join(part.text for part in slice_parts(noun, self.column, self.group))

    @property
    def column(self) -> str | None:
        """The column, where there is a group."""
        return None if self.group is None else self.by

    @property
    def query(self) -> dict[str, str]:
        """Query parameters that choose the group on another page."""
        return {} if self.group is None else {"group": self.group}


def payload(
    workspace: Workspace,
    effects: Effects,
    behaviour: Behaviour,
    focus: Focus,
    board: Board,
    off: Off,
) -> dict[str, Any]:
    """Everything that the component shows; ``switchboard.js`` reads it."""
    about = _examples(workspace, focus.column, focus.group)
    mean = phrase(behaviour) if behaviour == ACCURACY else f"mean {phrase(behaviour)}"
    answers = sorted(
        {str(a) for one in board.models.values() for a in one.answers if a is not None}
    )
    shown = (*workspace.at.words, workspace.examples.name, effects.estimator, behaviour.name)
    of_shares = is_share(behaviour)
    bars = board_bars.bars(workspace, effects, behaviour, focus.by, focus.group, about)
    models = {
        ",".join(map(str, own)): _model(workspace, board, own, behaviour, answers)
        for own in board.models
    }
    if blamed := board_bars.most_to_blame(bars["rows"]):
        models[""]["said"] = f"{_FINAL} Most to blame: {blamed}. Switch it off."
    return {
        "key": repr((*shown, focus.by, focus.group)),
        "off": list(off),
        "title": _title(focus, about),
        "ways": _ways(workspace, focus, about),
        "stages": _stages(workspace),
        "compact": len(workspace.stages) > _SPACIOUS,
        "about": f"{mean[:1].upper()}{mean[1:]} on {about}",
        "behaviour": phrase(behaviour),
        "format": {
            "scale": 100 if of_shares else 1,
            "digits": 1 if of_shares else 2,
            "unit": " %" if of_shares else "",
        },
        "range": _range(board, behaviour),
        "kind": "words" if workspace.noun == "text" else "cells",
        "card": _CARD.get(workspace.noun, _CARD["text"]),
        "tinted": behaviour != ACCURACY,
        "sampled": _sampled(workspace, board, behaviour),
        "answers": [short(written_out(answer), _ANSWER) for answer in answers],
        "cards": _cards(workspace, focus, board),
        "models": models,
        # The component puts the names in.
        "unknown": "The model without {stages} has not been computed"
        + (": see below what it takes." if workspace.computable else ", and cannot be here."),
        "bars": bars,
    }


def _examples(workspace: Workspace, by: str | None, group: str | None) -> str:
    return written_out("".join(part.text for part in slice_parts(workspace.noun, by, group)))


def _title(focus: Focus, about: str) -> str:
    if focus.chosen:
        said = f"Switch a stage off. Shown: {about}, which the first headline is about."
    else:
        said = "Switch a stage off: what would the model do had it not happened?"
    # Effects of the recipe stand below it, and no model that answers here is of another draw.
    return f"{said} {_OF_THIS_RUN}" if state.chosen("chance") == RECIPE else said


def _ways(workspace: Workspace, focus: Focus, about: str) -> list[dict[str, Any]]:
    """The two buttons that lead from a group chosen for the reader to all examples, and back."""
    if not focus.chosen and focus.other is None:
        return []
    own = about if focus.chosen else _examples(workspace, focus.by, focus.other)
    return [
        {"text": own, "to": GROUP, "chosen": focus.chosen},
        {"text": f"all {workspace.noun}s", "to": ALL, "chosen": not focus.chosen},
    ]


def _stages(workspace: Workspace) -> list[dict[str, Any]]:
    stages = workspace.run.stages
    # Where there is no room for them, they need not be read.
    rates = {} if len(stages) > _SPACIOUS else switches.learning_rates(workspace.at)
    shown = []
    for stage in stages:
        highest, course = rates.get(stage.name, (0.0, []))
        shown.append(
            {
                "name": written_out(stage.name),
                "color": charts.stage_color(stage.index),
                "about": short(written_out(stage.facts.description or ""), _ABOUT),
                "spark": course,
                "rate": f"rate {highest:.2g}" if highest else "",
            }
        )
    return shown


def _range(board: Board, behaviour: Behaviour) -> list[float]:
    """The ends of the scale on which the number lies."""
    if is_share(behaviour):
        return [0.0, 1.0]
    every = [(level.mean, level.low, level.high) for level in board.levels.values()]
    ends = [end for own in every for end in own if np.isfinite(end)]
    return [min(ends), max(ends)] if ends else [0.0, 1.0]


def _sampled(workspace: Workspace, board: Board, behaviour: Behaviour) -> str:
    """Which examples of the group are on the wall, and what their marks mean."""
    total = count_text(board.total, workspace.noun)
    if behaviour == ACCURACY:
        order = "by which of the models are right"
        like = ", so the wall is right about as often as they are"
        key = "✓ right, ✗ wrong; a→b: the final model says a."
    else:
        order, like = f"by {phrase(behaviour)}, the worst first", ""
        key = (
            f"Cards say the {phrase(behaviour)}. Blue: better than the final model's median, "
            f"{value_text(board.middle, behaviour)}; orange: worse."
        )
        if not np.isfinite(board.models[ALL_ON].values).all():
            # Said once, below all cards.
            key += f" {_lacking(behaviour).capitalize()}: left out of all means" + (
                ", as where a text has nothing that its answer could be held against."
                if is_score(behaviour)
                else ", as where there is no label."
            )
    if len(board.ids) == board.total:
        return f"All {total}, sorted {order}. {key}"
    return (
        f"{len(board.ids):,} of {total}, evenly spaced in all of them sorted {order}{like}. {key}"
    )


def _cards(workspace: Workspace, focus: Focus, board: Board) -> list[dict[str, Any]]:
    at, name, ids = workspace.at, workspace.examples.name, board.ids
    pictures: list[str | None] = [None] * len(ids)
    texts = [""] * len(ids)
    if workspace.noun == "image":
        pictures = [*loaders.pictures(at, name, ids, _SIDE)]
    else:
        for place, fields in enumerate(loaders.texts(at, name, ids)):
            whole = " · ".join(text for text in fields.values() if text)
            texts[place] = short(written_out(whole), _TEXT)
    # A group that was chosen for the reader is no choice of theirs, which other pages would keep.
    query = {} if focus.chosen else focus.query
    return [
        {
            "id": example,
            "label": None if label is None else short(written_out(label), _ANSWER),
            "picture": picture,
            "text": text,
            "href": components.address("Examples", **query, example=example),
        }
        for example, label, picture, text in zip(ids, board.labels, pictures, texts, strict=True)
    ]


def _model(
    workspace: Workspace, board: Board, off: Off, behaviour: Behaviour, answers: list[str]
) -> dict[str, Any]:
    """One combination: its number, what is known of it, and what it does with the wall."""
    one, level = board.models[off], board.levels[off]
    trust, word = one.trust, trust_word(one.trust, behaviour.name)
    if one.refused or not np.isfinite(level.mean):
        return {
            **{"known": False, "value": None, "low": None, "high": None, "text": "no number"},
            **{"interval": "", "seal": f"{MARKS[word]} {word}", "why": trust.reason},
            "said": f"{_without(workspace, off)}: not known. {trust.reason}",
        }
    known, count = np.isfinite(level.low), count_text(level.n, workspace.noun)
    low, high = (value_text(end, behaviour) for end in (level.low, level.high))
    by = f", by {one.estimator}" if one.estimator else ", as recorded"
    place = {answer: number for number, answer in enumerate(answers)}
    return {
        "known": True,
        "value": level.mean,
        "low": level.low if known else None,
        "high": level.high if known else None,
        "text": value_text(level.mean, behaviour),
        "interval": f"95 %: {low.removesuffix(' %')} to {high} · {count}" if known else count,
        "seal": f"{MARKS[word]} {trust_label(trust, behaviour.name)}{by}",
        "why": trust_explanation(trust, behaviour.name),
        "said": _said(workspace, board, off, behaviour),
        "answers": [-1 if answer is None else place[str(answer)] for answer in one.answers],
        **_of_cards(one.values, board, behaviour),
    }


def _of_cards(values: np.ndarray, board: Board, behaviour: Behaviour) -> dict[str, Any]:
    if behaviour == ACCURACY:  # 2: neither right nor wrong
        return {"right": [int(value) if np.isfinite(value) else 2 for value in values]}
    better = behaviour.sign * (values - board.middle) / (board.spread or 1.0)
    return {
        "values": [
            value_text(value, behaviour) if np.isfinite(value) else _lacking(behaviour)
            for value in values
        ],
        "tints": [round(float(np.clip(tint, -1, 1)), 2) for tint in np.nan_to_num(better)],
    }


def _lacking(behaviour: Behaviour) -> str:
    """What a card says in the place of a value."""
    return "no score" if is_score(behaviour) else "no number"


def _without(workspace: Workspace, off: Off) -> str:
    return f"Without {' and '.join(written_out(workspace.stages[place]) for place in off)}"


def _said(workspace: Workspace, board: Board, off: Off, behaviour: Behaviour) -> str:
    """What a combination does, in a sentence; as strongly as its trust allows."""
    if off == ALL_ON:
        return _FINAL
    own, trust = board.turned[off], board.models[off].trust
    mean: Mapping[str, float] = {
        "effect": own.effect,
        "error": own.error,
        "freedom": own.freedom,
        "rms": own.rms,
        "final": board.levels[ALL_ON].mean,
        "n": own.n,
    }
    subject = phrase(behaviour) if behaviour == ACCURACY else f"the mean {phrase(behaviour)}"
    turned = ""
    if is_certain(trust, behaviour):
        turned = (
            f": {count_text(own.better, 'wrong answer')} would be right, "
            f"{count_text(own.worse, 'right one')} wrong"
            if behaviour == ACCURACY
            else f": better for {own.better:,}, worse for {own.worse:,}; "
            f"{count_text(own.answers, 'answer')} would change"
        )
    parts = (
        Part(f"{_without(workspace, off)}, {subject}"),
        *would_be_on_average(mean, behaviour, trust),
        Part(f"{turned}."),
    )
    return str(Sentence(parts, trust, behaviour.name))
