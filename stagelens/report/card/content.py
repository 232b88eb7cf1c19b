"""What stands on a card, read from the run; nothing here draws, and nothing imports torch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, nan
from urllib.parse import quote, urlencode

import numpy as np
import pandas as pd

from stagelens.analyses.saliency.map_table import BASELINES, NOT_ATTRIBUTED, load_maps, map_facts
from stagelens.charts.effect_bars import marked
from stagelens.contracts import Behaviour, SetError
from stagelens.effects.summary import of_behaviour, rms_effects
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.run import Run
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.tasks import traits
from stagelens.trust.estimates import best_result, stored_estimates
from stagelens.wording.intervals import example_error
from stagelens.wording.numbers import axis_unit, phrase, value_text
from stagelens.wording.sentences import Sentence, example_sentence
from stagelens.wording.trust_words import MARKS, is_trustworthy, signs_known, trust_word

MOST_BARS = 5
"""Stages on a card: those with the largest effects."""
_LOCAL = "http://localhost:8501"
"""Where ``stagelens app`` serves the dashboard if nothing else is asked."""
_SIDE = 420
"""Pixels on the longer side of an image."""


@dataclass(frozen=True)
class Bar:
    """A stage's effect.

    Attributes:
        stage: Its name.
        gain: The effect on credit scale: positive is credit.
        text: The amount, after its mark.
        signed: Whether it is known to be credit or blame.
        faint: Whether it is not to be relied on.
    """

    stage: str
    gain: float
    text: str
    signed: bool = True
    faint: bool = False


@dataclass(frozen=True)
class Said:
    """What a model says.

    Attributes:
        answer: Or the value of the behaviour, where an answer is a whole text's next token.
        right: Whether it is the label; None where that is not known.
    """

    answer: str
    right: bool | None = None


@dataclass(frozen=True)
class Card:
    """One example with the stage that its answer comes from.

    Attributes:
        run: Name of the run.
        digest: Of the recorded training.
        set_name: The evaluation set.
        example_id: The example.
        label: Its label; None without one.
        stage: The stage that the card is about.
        place: Of that stage in the run, for its colour.
        opening: What stands before both: ``says``, or the behaviour where these are values of it.
        final: What the final model says.
        without: What the model without the stage says.
        sentence: The stage's effect in words.
        bars: Of the stages with the largest effects, in training order.
        more: How many more stages there are.
        axis: What the bars measure.
        seal: What is known of the numbers, with its mark.
        image: PNG bytes; None for a text.
        lit: (H, W) or (T,) where the stage's effect sits, on credit scale; None where no map is
            stored.
        tokens: (T,) pieces that ``lit`` is about, of a text.
        texts: Fields of a text, by name.
        link: The address of the exact view.
    """

    run: str
    digest: str
    set_name: str
    example_id: str
    label: str | None
    stage: str
    place: int
    opening: str
    final: Said
    without: Said
    sentence: Sentence
    bars: tuple[Bar, ...]
    more: int
    axis: str
    seal: str
    image: bytes | None
    lit: np.ndarray | None
    tokens: tuple[str, ...] | None
    texts: Mapping[str, str]
    link: str

    @property
    def title(self) -> str:
        """The card in one line."""
        if self.final.answer == self.without.answer:
            return f"{self.opening} {self.final.answer}, with or without {self.stage}"
        return f"{self.opening} {self.final.answer}; without {self.stage}: {self.without.answer}"


def link_to(
    name: str,
    set_name: str,
    example_id: str,
    behaviour: str | None,
    address: str = "",
    run: str = "",
    leaf: str = "",
) -> str:
    """The address of an example's view, under the dashboard's own; without one, how it is opened.

    Args:
        name: How the dashboard calls the run: the name of its folder.
        set_name: The evaluation set.
        example_id: The example.
        behaviour: What is measured there; None for the first.
        address: Where the dashboard is served.
        run: What ``stagelens app`` opens where no address is known; by default ``name``.
        leaf: Whose history, where the run has several leaves.
    """
    query = {"run": name, "set": set_name, "example": example_id}
    query |= {"leaf": leaf} if leaf else {}
    query |= {} if behaviour is None else {"measure": behaviour}
    view = f"Examples?{urlencode(query, quote_via=quote)}"
    if address:
        return f"{address.rstrip('/')}/{view}"
    return f"stagelens app {shlex.quote(run or name)} opens {_LOCAL}/{view}"


def stored_card(
    run: Run,
    set_name: str,
    example_id: str,
    behaviour: str | None = None,
    stage: str | None = None,
    link: str = "",
) -> Card:
    """The card of an example by the best stored effects.

    Args:
        run: The run.
        set_name: One of its sets, on which effects are stored.
        example_id: One of the set's examples.
        behaviour: Its name; None for the first that was measured.
        stage: The stage that the card is about; None for the one that :func:`leading` finds.
        link: See :attr:`Card.link`.

    Raises:
        RunError: No effects are stored, or there is no such stage.
        SetError: There is no such example or behaviour.
    """
    examples = run.evaluation_set(set_name)
    examples.by_id([example_id])  # an id that is not there is an error, by name
    result = best_result(run, set_name)
    kinds = {each.name: each.behaviour() for each in result.facts.behaviours}
    if behaviour is not None and behaviour not in kinds:
        raise SetError(f"there is no behaviour {behaviour!r} here; use {', '.join(kinds)}")
    kind = kinds[behaviour] if behaviour is not None else next(iter(kinds.values()))
    rows = of_behaviour(result.table, kind.name)
    sizes = rms_effects(rows)
    errors = {
        name: example_error(result.trust.get(name), size, kind.name) for name, size in sizes.items()
    }
    own = rows[rows["example_id"].astype(str) == example_id]
    known = {name: error for name, error in errors.items() if error is not None}
    return make_card(run, examples, own, kind, result.trust, known, stage, link)


def make_card(
    run: Run,
    examples: EvaluationSet,
    rows: pd.DataFrame,
    behaviour: Behaviour,
    trust: Mapping[str, StageTrust],
    errors: Mapping[str, float] | None = None,
    stage: str | None = None,
    link: str = "",
) -> Card:
    """The card of one example.

    Args:
        run: The run.
        examples: The set.
        rows: Of an effect table: one example, one behaviour, a row per stage.
        behaviour: Which one.
        trust: Stage to what is known of its counterfactual.
        errors: Stage to the error of its effect on one example, where known.
        stage: As :func:`stored_card` takes it.
        link: The same.

    Raises:
        SetError: None of the stages has an effect on this example.
    """
    names = [each.name for each in run.stages]
    by_stage = {str(row["stage"]): row for row in rows.to_dict("records")}
    by_stage = {name: by_stage[name] for name in names if name in by_stage}
    if stage is not None:
        run.stage(stage)
    chosen = stage or leading(by_stage, behaviour, trust)
    if chosen is None or chosen not in by_stage:
        told = f" of {stage}" if stage is not None else ""
        raise SetError(f"no effect{told} on this example is known; measure it first")
    row, known = by_stage[chosen], trust.get(chosen)
    if not isfinite(float(row["effect"])):
        why = f": {known.reason}" if known is not None and known.trust == "refused" else ""
        raise SetError(f"there is no number for {chosen} on this example{why}")
    example_id = str(row["example_id"])
    label = None if pd.isna(row["label"]) else str(row["label"])
    own_traits = traits(run.file.task.name)
    continues = own_traits is not None and own_traits.continues_text
    answers = None if continues else (str(row["prediction"]), str(row["prediction_without"]))
    within = row.get("within_noise")
    sentence = example_sentence(
        chosen,
        behaviour,
        float(row["effect"]),
        known,
        answers,
        label,
        within_noise=bool(within) if pd.notna(within) else False,
        error=(errors or {}).get(chosen, nan),
        final=float(row["final"]),
    )
    values = [value_text(float(row[side]), behaviour) for side in ("final", "without")]
    said = [_said(each, label) for each in answers] if answers else [Said(v) for v in values]
    image, texts = None, {}
    if examples.kind == "image":
        image = examples.image_png(example_id, _SIDE, framed=True)
    else:
        (example,) = examples.by_id([example_id])
        texts = {name: str(text) for name, text in example.input.items() if text is not None}
    lit, tokens = _lit(run, examples, example_id, chosen, behaviour, known)
    shown = [list(by_stage)[place] for place in _shown(by_stage)]
    unit = axis_unit(behaviour)
    word = None if known is None else trust_word(known, behaviour.name)
    return Card(
        run=run.title,
        digest=run.digest,
        set_name=examples.name,
        example_id=example_id,
        label=label,
        stage=chosen,
        place=names.index(chosen),
        opening="says" if answers else phrase(behaviour),
        final=said[0],
        without=said[1],
        sentence=sentence,
        bars=tuple(_bar(name, by_stage[name], behaviour, trust.get(name)) for name in shown),
        more=len(by_stage) - len(shown),
        axis=f"{phrase(behaviour)}{f', in {unit}' if unit else ''}",
        seal="" if word is None or known is None else f"{MARKS[word]} {word}, by {known.estimator}",
        image=image,
        lit=lit,
        tokens=tokens,
        texts=texts,
        link=link
        or link_to(run.path.name, examples.name, example_id, behaviour.name, leaf=run.leaf),
    )


def leading(
    rows: Mapping[str, Mapping[str, object]],
    behaviour: Behaviour,
    trust: Mapping[str, StageTrust],
) -> str | None:
    """The stage that a card is about: most to blame for a wrong answer, or of the largest effect.

    Of stages that may be shown as credit or blame, first those without which the answer would be
    right, then those without which it would be another, then all.

    Args:
        rows: Stage to its row of an effect table.
        behaviour: Of these rows.
        trust: Stage to what is known of its counterfactual.
    """
    sized = {
        name: row
        for name, row in rows.items()
        if isfinite(float(row["effect"]))  # type: ignore[arg-type]
    }
    certain = {n: r for n, r in sized.items() if signs_known(trust.get(n), behaviour.name)}
    candidates = certain or sized
    other = {n: r for n, r in candidates.items() if r["prediction"] != r["prediction_without"]}
    mended = {n: r for n, r in other.items() if r["prediction_without"] == r["label"]}
    best = mended or other or candidates
    size = {name: abs(float(row["effect"])) for name, row in best.items()}  # type: ignore[arg-type]
    return max(size, key=lambda name: size[name], default=None)


def _said(answer: str, label: str | None) -> Said:
    return Said(answer, None if label is None else answer == label)


def _shown(rows: Mapping[str, Mapping[str, object]]) -> list[int]:
    """Places of the stages that are shown, in training order."""
    sizes = [abs(float(row["effect"])) for row in rows.values()]  # type: ignore[arg-type]
    order = sorted(range(len(sizes)), key=lambda at: -sizes[at] if isfinite(sizes[at]) else 0.0)
    return sorted(order[:MOST_BARS])


def _bar(
    name: str, row: Mapping[str, object], behaviour: Behaviour, trust: StageTrust | None
) -> Bar:
    gain = behaviour.sign * float(row["effect"])  # type: ignore[arg-type]
    if not isfinite(gain):
        refused = trust is not None and trust.trust == "refused"
        return Bar(name, 0.0, "refused" if refused else "no number")
    signed = signs_known(trust, behaviour.name)
    faint = trust is not None and not is_trustworthy(trust, behaviour.name)
    return Bar(name, gain, marked(gain, behaviour, unit=False, signed=signed), signed, faint)


def _lit(
    run: Run,
    examples: EvaluationSet,
    example_id: str,
    stage: str,
    behaviour: Behaviour,
    trust: StageTrust | None,
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Where the stage's effect sits, on credit scale, with a text's tokens, if that is stored."""
    if trust is None or not signs_known(trust, behaviour.name):
        return None, None
    for facts in stored_estimates(run, examples.name).values():
        if facts.estimator != trust.estimator:
            continue
        kinds = [each.behaviour() for each in facts.behaviours if each.name not in NOT_ATTRIBUTED]
        # Of another behaviour than the card's where that one has none.
        for kind in sorted(kinds, key=lambda each: each.name != behaviour.name):
            for baseline in BASELINES[examples.kind]:
                key = map_facts(
                    *(run, examples.name, facts.estimator, facts.settings, stage, kind.name),
                    baseline,
                )
                found = load_maps(run, key, [example_id]).get(example_id)
                if found is not None and found.holds and found.stage.any():
                    return _within(kind.sign * found.stage, found.tokens)
    return None, None


_FRAME = re.compile(r"\s*(\[\w+\]|<[^<>]+>)\s*")
"""Tokens that frame a text, such as ``[CLS]`` and ``</s>``."""


def _within(
    lit: np.ndarray, tokens: tuple[str, ...] | None
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """The map without the tokens that frame a text, which carry nothing."""
    if tokens is None:
        return lit, None
    kept = [
        place for place, token in enumerate(tokens) if lit[place] or not _FRAME.fullmatch(token)
    ]
    shown = [tokens[place] for place in kept]
    # The space before the first one came after a token of the frame.
    return lit[kept], (*(token.lstrip() for token in shown[:1]), *shown[1:])
