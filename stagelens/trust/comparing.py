"""Two measurements of one stage's effect on the same examples, compared with each other.

Two estimators, two behaviours, or two runs of one task on one set. Both are compared as *gains*
(positive is credit, whatever the behaviour's own direction), so that agreement means the same for
all of them. Neither side is the truth: for estimates against replay see ``verification``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stagelens.contracts import Behaviour, RunError
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.run import Run
from stagelens.wording.sentences import Part, Sentence
from stagelens.wording.trust_words import decimal, percent

from .fidelity import bootstrap, fidelity

FEW = 20
"""With fewer examples, neither r nor slope means anything."""


@dataclass(frozen=True)
class Side:
    """One of the two measurements.

    Attributes:
        name: What distinguishes it from the other: an estimate, a behaviour, or a run.
        behaviour: Of the effects.
        table: ``example_id`` and ``effect``, ``final - without``, of one stage.
        trust: What is known of the stage's counterfactual.
    """

    name: str
    behaviour: Behaviour
    table: pd.DataFrame
    trust: StageTrust


@dataclass(frozen=True)
class Comparison:
    """How two sides agree.

    Attributes:
        first: On the horizontal axis.
        second: On the vertical one.
        points: ``example_id``, ``first``, ``second`` (gains), ``apart``: the largest disagreement
            first. ``apart`` is second minus first, or where the behaviours differ second minus
            ``slope`` times first.
        figures: ``r``, ``rho``, ``slope`` (second on first, through the origin),
            ``sign_agreement``, and ``relative_error``: size of the difference over the size of the
            second's gains, NaN where the behaviours differ.
        intervals: 95 % intervals of the same, over examples.
        one_unit: Whether both are of one behaviour, so that their sizes can be compared.
    """

    first: Side
    second: Side
    points: pd.DataFrame
    figures: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    one_unit: bool


def compare_effects(first: Side, second: Side) -> Comparison:
    """Compare two sides, on the examples that both have a number for."""
    gains = [
        side.table.set_index("example_id")["effect"].mul(side.behaviour.sign).dropna()
        for side in (first, second)
    ]
    points = pd.concat(gains, axis=1, keys=["first", "second"], join="inner")
    own, other = (points[name].to_numpy(float) for name in ("first", "second"))
    one_unit = first.behaviour.name == second.behaviour.name
    figures, intervals = fidelity(own, other), bootstrap(own, other)
    if not one_unit:
        # The difference of two units has no size.
        figures["relative_error"] = np.nan
        intervals["relative_error"] = (np.nan, np.nan)
    points["apart"] = other - own * (1.0 if one_unit else figures["slope"])
    # Stable, so that equal disagreements stay in the order of the set.
    order = np.argsort(-np.abs(points["apart"].to_numpy()), kind="stable")
    return Comparison(first, second, points.iloc[order].reset_index(), figures, intervals, one_unit)


def comparable_set(run: Run, set_name: str, other: Run) -> str:
    """The name that the same set has in another run of the same task.

    Raises:
        RunError: The other run has another task, or lacks this set; says what to do.
    """
    one, two = run.file.task, other.file.task
    if one.name != two.name:
        raise RunError(
            f"run {other.name} is of task {two.name}, and {run.name} of {one.name}; effects can "
            "only be compared between runs of one task"
        )
    # Margins and probabilities among other classes measure something else.
    if one.config.get("classes") != two.config.get("classes"):
        raise RunError(
            f"runs {run.name} and {other.name} have different classes; effects can only be "
            "compared between runs of one task"
        )
    digest = run.evaluation_set(set_name).digest
    # Several sets may hold these examples: the one of the same name comes first.
    names = sorted(other.set_names, key=lambda name: (name != set_name, name))
    for name in names:
        if other.evaluation_set(name).digest == digest:
            return name
    has = f"its set {set_name} holds other examples" if set_name in names else "it has no such set"
    raise RunError(
        f"run {other.name} was not measured on set {set_name}: {has}; add the same set to it, with "
        "stagelens add-set"
    )


def comparison_sentence(found: Comparison, stage: str) -> Sentence:
    """How two sides agree, as a sentence that a person can read aloud."""
    r, n = found.figures["r"], len(found.points)
    names = (
        Part("On "),
        Part(stage, "stage"),
        Part(", "),
        Part(found.first.name, "group"),
        Part(" and "),
        Part(found.second.name, "group"),
    )
    if n < FEW or not np.isfinite(r):
        why = f"only {n} examples have both" if n < FEW else "one of them is the same everywhere"
        return Sentence((*names, Part(f" cannot be compared: {why}.")))
    low, high = found.intervals["r"]
    verdict = (
        "order the examples alike"
        if low >= 0.9
        else "agree in part"
        if low > 0
        else "disagree"
        if high < 0
        else "have no certain relation"
    )
    parts = [
        *names,
        Part(f" {verdict}: r "),
        Part(decimal(r), "amount"),
        Part(f" (95 % interval {decimal(low)} to {decimal(high)})"),
    ]
    if found.one_unit:
        size = percent(found.figures["relative_error"])
        parts.append(Part(f"; they differ by {size} of the size of {found.second.name}"))
    signs = percent(1 - found.figures["sign_agreement"])
    parts.append(Part(f"; {signs} of {n:,} examples have credit by one and blame by the other."))
    return Sentence(tuple(parts))
