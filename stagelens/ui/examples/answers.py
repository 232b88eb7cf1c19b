"""What every model answers to one example, side by side."""

from __future__ import annotations

from math import isfinite

import pandas as pd

from stagelens.charts.style import MUTED
from stagelens.contracts import Behaviour
from stagelens.estimators.stage_trust import StageTrust
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components
from stagelens.ui.reading.browse import answer_column, confidence_column, effect_column
from stagelens.ui.reading.loaders import Effects
from stagelens.wording.folding import strongest
from stagelens.wording.numbers import certainty_text
from stagelens.wording.trust_words import MARKS, trust_word


def answers_html(
    workspace: Workspace, effects: Effects, behaviour: Behaviour, row: pd.Series
) -> str:
    """The answers of the final model and of every counterfactual side by side, as markup.

    Args:
        workspace: What is open.
        effects: Contain the example's answers.
        behaviour: Whose trust is printed.
        row: The example, from ``browse.example_frame``.
    """
    begins = components.heading_html("Answers")
    if workspace.continues_text:
        begins += components.text_html(
            "The most probable next token after the prompt, or after the text.", muted=True
        )
    label = row["label"]
    name = behaviour.name
    cards = [_card("final model", row["prediction"], row["confidence"], label, None, name)]
    for stage in shown_stages(workspace, row):
        known = effects.trust.get(stage)
        if known is not None:
            answer, sure = row[answer_column(stage)], float(row[confidence_column(stage)])
            changed = bool(answer != row["prediction"])
            cards.append(_card(stage, answer, sure, label, known, name, changed))
    return (
        f"{begins}<div style='display:grid;gap:.6em;"
        f"grid-template-columns:repeat(auto-fit,minmax(6.6em,1fr))'>{''.join(cards)}</div>"
    )


def _card(
    name: str,
    answer: object,
    confidence: float,
    label: object,
    trust: StageTrust | None,
    behaviour: str,
    changed: bool = False,
) -> str:
    refused = trust is not None and trust.trust == "refused"
    shown = "?" if refused else value_shown(answer)
    verdict = ""
    if not refused and value_shown(label) != "none":
        verdict = "✓ right" if answer == label else "✗ wrong"
    # Of the answer above it; its number does not part from the sign behind it.
    sure = f"its {certainty_text(confidence)}" if isfinite(confidence) else ""
    sure = sure.replace(" %", "\u00a0%").replace("> ", ">\u00a0").replace("< ", "<\u00a0")
    word = None if trust is None else trust_word(trust, behaviour)
    mark = "" if word is None else f"{MARKS[word]} {word}"
    head = (
        # Without trust it is the final model's card, which is measured and not estimated.
        f"without <i>{components.shown(name)}</i>" if trust is not None else components.shown(name)
    )
    edge = "2px solid currentColor" if changed and not refused else f"1px solid {MUTED}"
    lines = "".join(
        f"<div>{components.shown(text)}</div>" for text in (verdict, sure, mark) if text
    )
    # How sure it is, as a length too; the words say the same.
    if sure and not refused:
        lines += (
            f"<div aria-hidden='true' style='height:.3em;margin-top:.3em;background:{MUTED}44'>"
            f"<div style='height:100%;width:{100 * min(max(confidence, 0), 1):.0f}%;"
            "background:currentColor'></div></div>"
        )
    return (
        f"<div style='border:{edge};border-radius:.5em;padding:.5em .7em;overflow:hidden'>"
        f"<div style='font-size:.8em;opacity:.8;overflow-wrap:anywhere'>{head}</div>"
        "<div style='font-size:1.6em;font-weight:600;line-height:1.3;overflow-wrap:anywhere'>"
        f"{components.shown(shown)}</div><div style='font-size:.8em;opacity:.8'>{lines}</div></div>"
    )


def shown_stages(workspace: Workspace, row: pd.Series) -> list[str]:
    """The stages that are shown of an example: of many, those with the largest effects on it."""
    stages = workspace.stages
    return [stages[place] for place in strongest(row[effect_column(stage)] for stage in stages)]


def value_shown(value: object) -> str:
    """A value of an example's row; "none" where there is none."""
    # pd.NA comes first, because comparing it gives no truth value; only NaN differs from itself.
    return "none" if value is None or value is pd.NA or value != value else str(value)
