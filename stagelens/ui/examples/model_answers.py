"""What every model answers to a prompt: differences by word, and what each scorer says."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import pandas as pd
import streamlit as st

from stagelens.charts.style import MUTED, see_through, short, written_out
from stagelens.contracts import BASE, SCORE, Behaviour
from stagelens.effects.stored_scores import ANSWERS, GIVEN, StoredScore
from stagelens.estimators.stage_trust import StageTrust
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components
from stagelens.ui.reading import loaders, scored
from stagelens.wording.differences import word_changes
from stagelens.wording.folding import MOST, strongest
from stagelens.wording.numbers import number
from stagelens.wording.trust_words import MARKS, TrustWord, signs_known, trust_word

_LONGEST = 6_000
"""Characters of an answer that are shown."""
STYLE = (
    "<style>.sl-answers{display:grid;gap:.6rem;margin-bottom:.6rem;"
    "grid-template-columns:repeat(auto-fill,minmax(min(15rem,100%),1fr))}"
    f".sl-answers article{{border:1px solid {MUTED};border-radius:.5rem;padding:.45rem .7rem;"
    "overflow:hidden;overflow-wrap:anywhere}"
    ".sl-answers article.sl-other{border:2px solid currentColor}"
    ".sl-answers h4{font-size:.8rem;font-weight:400;opacity:.85;margin:0;padding:0}"
    ".sl-answers p{white-space:pre-wrap;margin:.2rem 0 .4rem;line-height:1.45;"
    "max-height:16rem;overflow-y:auto}"
    f".sl-answers ins{{background:{see_through(MUTED, 0.3)};text-decoration:underline;"
    "text-underline-offset:.2em}"
    ".sl-answers ul{list-style:none;margin:0;padding:0;font-size:.8rem}"
    ".sl-answers li{margin:0;padding:0}</style>"
)


@dataclass(frozen=True)
class Told:
    """One scorer about an example.

    Attributes:
        name: For people.
        behaviour: The score.
        final: Of the final model's answer.
        effects: Stage to its effect; NaN where it is not known.
        without: Stage to the score without it.
        trust: Stage to what is known of its effects.
        after: Boundary to the score there.
    """

    name: str
    behaviour: Behaviour
    final: float
    effects: Mapping[str, float]
    without: Mapping[str, float]
    trust: Mapping[str, StageTrust]
    after: Mapping[str, float]


def alike(workspace: Workspace, behaviour: Behaviour) -> dict[str, StoredScore]:
    """The scores of the answers that a page shows: the chosen one's, else those of the first."""
    found = scored.scores(workspace.at, workspace.examples.name)
    of = found.get(behaviour.name) or next(iter(found.values()), None)
    return {} if of is None else {name: one for name, one in found.items() if _how(one) == _how(of)}


def _how(score: StoredScore) -> object:
    settings = score.any.settings
    return settings.get(ANSWERS), settings.get(GIVEN)


def answers_tab(workspace: Workspace, behaviour: Behaviour, example_id: str) -> None:
    """The answers of the final model, without every stage and after every boundary.

    Args:
        workspace: What is open.
        behaviour: The chosen one: a score, or any where the answers of the first score are shown.
        example_id: Whose answers.
    """
    scores = alike(workspace, behaviour)
    chosen = behaviour.name if behaviour.name in scores else next(iter(scores))
    rows = _rows(workspace, chosen, example_id)
    told = [_told(workspace, name, example_id) for name in scores]
    first = rows.iloc[0]
    final = first["prediction"]
    stages = _stages(workspace, told)
    samples = scores[chosen].samples
    said = "Answers as they are; the words that the final model's answer does not have there are "
    said += "underlined."
    if samples > 1:
        said += f" The first of {samples} samples; scores are their means."
    components.text_block(said, muted=True)
    whole = [_card("final model", None, final, [_score(one, one.final) for one in told])]
    without = rows.set_index("stage")
    cards = []
    for stage in stages:
        answer = without["prediction_without"].get(stage)
        lines = [_with_effect(one, stage) for one in told]
        cards.append(_card(f"without {stage}", final, answer, lines))
    left = len(workspace.stages) - len(stages)
    parts = [STYLE, _cards(whole), components.heading_html("Without a stage"), _cards(cards)]
    if left > 0:
        parts.append(components.text_html(f"{left:,} more stages have smaller effects.", True))
    if path := _path(workspace, chosen, example_id, told, final):
        parts += [components.heading_html("After each boundary"), _cards(path)]
    st.html("".join(parts))


def _rows(workspace: Workspace, name: str, example_id: str) -> pd.DataFrame:
    """The rows of a score about one example, one per stage."""
    at, set_name = workspace.at, workspace.examples.name
    estimate = _estimate(workspace, name)
    found = loaders.effects(at, set_name, estimate)
    assert found is not None, "scores are listed only where they are stored"
    columns = ("example_id", "final", "without", "effect", "prediction", "prediction_without")
    parts = [part[part["example_id"] == example_id] for part in found.parts(name, columns)]
    return pd.concat(parts, ignore_index=True)


def _estimate(workspace: Workspace, name: str) -> str:
    """The estimate that a score is shown by: the page's, or the best that there is."""
    if workspace.effects is not None:
        return workspace.effects.estimator
    return scored.scores(workspace.at, workspace.examples.name)[name].best


def _told(workspace: Workspace, name: str, example_id: str) -> Told:
    at, set_name = workspace.at, workspace.examples.name
    rows = _rows(workspace, name, example_id)
    found = loaders.effects(at, set_name, _estimate(workspace, name))
    assert found is not None
    there = scored.at_boundaries(at, set_name, name)
    after: dict[str, float] = {}
    if there is not None:
        own = there[there["example_id"] == example_id]
        after = dict(zip(own["boundary"], own["value"].astype(float), strict=True))
    by_stage = rows.set_index("stage")
    return Told(
        name.removeprefix(SCORE),
        found.behaviours[name],
        float(rows["final"].iloc[0]),
        by_stage["effect"].astype(float).to_dict(),
        by_stage["without"].astype(float).to_dict(),
        found.trust_of(name),
        after,
    )


def _stages(workspace: Workspace, told: Sequence[Told]) -> list[str]:
    """The stages that have a card: the chosen one first, then of many those with most effect."""
    stages, asked = workspace.stages, workspace.bar.stage
    sizes = []
    for stage in stages:
        known = [abs(one.effects.get(stage, 0.0)) for one in told]
        sizes.append(max((size for size in known if isfinite(size)), default=0.0))
    kept = [stages[place] for place in strongest(sizes, MOST)]
    return kept if asked is None else [asked, *(stage for stage in kept if stage != asked)]


def _path(
    workspace: Workspace, name: str, example_id: str, told: Sequence[Told], final: object
) -> list[str]:
    """A card for every boundary, of many stages for the last ones; none where not stored."""
    there = scored.at_boundaries(workspace.at, workspace.examples.name, name)
    if there is None:
        return []
    own = there[there["example_id"] == example_id].set_index("boundary")["prediction"]
    known = [each for each in (BASE, *workspace.stages) if each in own.index]
    cards = []
    for boundary in known[-MOST - 1 :]:
        lines = [_score(one, one.after[boundary]) for one in told if boundary in one.after]
        title = "base, before any stage" if boundary == BASE else f"after {boundary}"
        cards.append(_card(title, final, own[boundary], lines))
    return cards


# --------------------------------------------------------------------------------------- markup


def _cards(cards: Sequence[str]) -> str:
    return f"<div class='sl-answers'>{''.join(cards)}</div>"


def _card(title: str, final: object, answer: object, lines: Sequence[str]) -> str:
    """One model's answer.

    Args:
        title: Which model.
        final: The final model's answer, which it is compared with; None for that itself.
        answer: Its own; none where it is not known.
        lines: What scorers say of it, as markup.
    """
    text = None if answer is None or answer != answer else str(answer)
    differs = text is not None and final is not None and text != str(final)
    body = answer_html(text, str(final) if differs else None)
    note = "<li>another answer</li>" if differs else ""
    scores = "".join(f"<li>{line}</li>" for line in lines)
    return (
        f"<article{' class=sl-other' if differs else ''}><h4>{components.shown(title)}</h4>"
        f"<p dir='auto'>{body}</p><ul>{note}{scores}</ul></article>"
    )


def reply_card(reply: Mapping[str, Any], final: str | None) -> str:
    """What a model answers to a prompt of somebody's own, while it speaks too.

    Args:
        reply: As ``stagelens ask`` writes it.
        final: The final model's answer; None while that speaks.
    """
    kind, _, stage = str(reply["model"]).partition(":")
    title = f"without {stage}" if kind == "without" else "final model"
    if not reply["done"]:
        body = _shown(short(str(reply["answer"]), _LONGEST))
        return f"<article><h4>{components.shown(title)}</h4><p dir='auto'>{body} …</p></article>"
    word: TrustWord | None = reply["trust"] if reply["trust"] in MARKS else None
    lines = [] if word is None else [f"{MARKS[word]} {word}"]
    if reply["answer"] is None:
        lines.append(components.shown(str(reply["reason"])))
    else:
        lines += ["goes on after the most tokens"] * (not reply["ended"])
        lines += ["read without the beginning of the prompt"] * bool(reply["cut"])
    return _card(title, final if stage else None, reply["answer"], lines)


def answer_html(text: str | None, final: str | None) -> str:
    """An answer as markup: as it is, with the words marked that another one does not have there.

    Args:
        text: The answer; None where it is not known.
        final: The other one; None where nothing is to be marked.
    """
    if text is None:
        return "<i>no answer is kept</i>"
    if not text:
        return "<i>nothing: it ends at once</i>"
    text = short(text, _LONGEST)
    parts = [("same", text)] if final is None else word_changes(short(final, _LONGEST), text)
    tags = {"same": "bdi", "added": "ins"}
    return "".join(
        f"<{tags[kind]}>{_shown(part)}</{tags[kind]}>" for kind, part in parts if kind in tags
    )


def _shown(text: str) -> str:
    """Escaped line by line, whatever is in it."""
    return "\n".join(html.escape(written_out(line), quote=True) for line in text.split("\n"))


def score_text(value: float) -> str:
    """A score of one answer as scorers give it: most give 0 or 1."""
    return f"{value:.0f}" if value == round(value) else number(value)


def _score(one: Told, value: float) -> str:
    known = score_text(value) if isfinite(value) else "no score"
    return f"{components.shown(one.name)}: <b>{known}</b>"


def _with_effect(one: Told, stage: str) -> str:
    """The score without a stage, and the stage's effect on it."""
    effect, trust = one.effects.get(stage, float("nan")), one.trust.get(stage)
    said = _score(one, one.without.get(stage, float("nan")))
    if trust is None or not isfinite(effect):
        return said
    signed = signs_known(trust, one.behaviour.name)
    better = one.behaviour.sign * effect > 0
    way = "" if not effect else "± " if not signed else "▲ " if better else "▼ "
    mark = MARKS[trust_word(trust, one.behaviour.name)]
    return f"{said}, effect {way}{score_text(abs(effect))} {mark}"
