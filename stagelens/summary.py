"""From effect tables to the numbers and sentences that people read. Pure pandas.

Sign convention, everywhere: ``effect = final - without``. The *gain* of a stage is ``sign *
effect``, with the behaviour's own sign (+1 where higher is better, -1 where lower is), so a
positive gain is credit and a negative one is blame, for every behaviour. Per stage, credit and
blame are the means of the positive and of the negative parts of the gain over all examples, so
``credit + blame`` is the mean gain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from .contracts import BASE, Behaviour

if TYPE_CHECKING:
    from .results import StageTrust

ACCURACY = Behaviour(
    "accuracy",
    "higher",
    "points",
    "1 where the model's answer is the label, 0 where it is not; its mean is the share of right "
    "answers. Examples without a label are left out and counted.",
)
"""Derived from answers and labels; measured per example like every other behaviour."""

SUMMARY_COLUMNS = (
    "stage",
    "group",
    "n",
    "missing",
    "final",
    "without",
    "effect",
    "gain",
    "credit",
    "blame",
    "credit_share",
    "blame_share",
    "error",
    "noise_share",
)
"""Columns of :func:`stage_summary`; ``group`` is null in rows over all examples."""

_SHARES = ("accuracy", "probability")
_PHRASES = {"probability": "probability of the label"}


# --------------------------------------------------------------------------- numbers as text


def is_share(behaviour: Behaviour) -> bool:
    """Whether values lie in 0..1 and are printed as percentages, differences as points."""
    return behaviour.name in _SHARES


def phrase(behaviour: Behaviour) -> str:
    """The behaviour's name as it stands in a sentence, without an article."""
    return _PHRASES.get(behaviour.name, behaviour.name)


def axis_unit(behaviour: Behaviour) -> str:
    """What differences are measured in, for axis titles; empty where the behaviour has none."""
    return "points" if is_share(behaviour) else behaviour.unit


def number(value: float) -> str:
    """Two or three significant digits, with a true minus sign; "n/a" where there is none."""
    if not np.isfinite(value):
        return "n/a"
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 3
    text = f"{value:.{digits}f}" if size >= 0.0005 else "0"
    return text.replace("-", "−")


def value_text(value: float, behaviour: Behaviour) -> str:
    """A measured value: ``87.5 %`` for shares, else the number."""
    if not np.isfinite(value):
        return "n/a"
    return f"{100 * value:.1f} %" if is_share(behaviour) else number(value)


def amount_text(difference: float, behaviour: Behaviour, unit: bool = True) -> str:
    """The size of a difference, without its sign: ``41 points``, ``0.41``."""
    if not np.isfinite(difference):
        return "n/a"
    size = abs(difference)
    if not is_share(behaviour):
        return number(size)
    points = 100 * size
    text = f"{points:.0f}" if points >= 9.95 else f"{points:.1f}"
    if not unit:
        return text
    return f"{text} point" if text == "1" else f"{text} points"


def signed_text(difference: float, behaviour: Behaviour, unit: bool = True) -> str:
    """A difference with its sign; nothing that rounds to zero gets one."""
    text = amount_text(difference, behaviour, unit)
    if not np.isfinite(difference) or not any(c in "123456789" for c in text):
        return text
    return ("+" if difference > 0 else "−") + text


def count_text(n: int, noun: str = "example") -> str:
    """``1 image``, ``1,200 images``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


# --------------------------------------------------------------------------------- sentences


@dataclass(frozen=True)
class Part:
    """A piece of a sentence; ``kind`` tells the page what to emphasise. Never markup."""

    text: str
    kind: Literal["plain", "stage", "group", "amount"] = "plain"


@dataclass(frozen=True)
class Sentence:
    """A sentence with what is known of its number.

    Attributes:
        parts: Its words. Stage and group names come from data: escape them before showing.
        trust: What is known of the counterfactual behind it; None for plain descriptions.
    """

    parts: tuple[Part, ...]
    trust: StageTrust | None = None

    def __str__(self) -> str:
        return "".join(part.text for part in self.parts)


def slice_parts(noun: str, column: str | None = None, value: object = None) -> tuple[Part, ...]:
    """Which examples a number is about: ``all images``, ``stamped images``, ...

    Args:
        noun: What an example is called, in the singular: ``image``, ``text`` or ``example``.
        column: Metadata column of the group; None for all examples.
        value: The group.
    """
    if column is None:
        return (Part(f"all {noun}s"),)
    if column == "group":
        return (Part(str(value), "group"), Part(f" {noun}s"))
    if column == "label":
        return (Part(f"{noun}s labelled "), Part(str(value), "group"))
    return (Part(f"{noun}s with {column} "), Part(str(value), "group"))


def mean_sentence(
    row: Mapping[str, object],
    behaviour: Behaviour,
    noun: str,
    column: str | None,
    trust: StageTrust | None = None,
) -> Sentence:
    """One row of :func:`stage_summary` as a sentence a person can read aloud.

    Args:
        row: With ``stage``, ``group``, ``effect``.
        behaviour: What was measured.
        noun: What an example is called.
        column: The column that ``group`` is a value of; ignored where ``group`` is null.
        trust: What is known of the stage's counterfactual.
    """
    group = row["group"]
    effect = float(row["effect"])  # type: ignore[arg-type]
    about = slice_parts(noun, None if pd.isna(group) else column, group)
    subject = "accuracy" if behaviour.name == "accuracy" else f"the mean {phrase(behaviour)}"
    return Sentence(
        (
            Part("Without "),
            Part(str(row["stage"]), "stage"),
            Part(f", {subject} on "),
            *about,
            *_would_be(effect, behaviour),
            Part("."),
        ),
        trust,
    )


def example_sentence(
    stage: str,
    behaviour: Behaviour,
    effect: float,
    trust: StageTrust | None = None,
    answers: tuple[str, str] | None = None,
    label: str | None = None,
) -> Sentence:
    """One stage's effect on one example: "Without *shortcut*, the loss would be 0.41 higher.".

    Args:
        stage: The stage that is left out.
        behaviour: What was measured.
        effect: ``final - without``; NaN where the stage was refused.
        trust: What is known of the counterfactual.
        answers: Of the final model and of the counterfactual; said where they differ.
        label: Tells whether the counterfactual's answer is right.
    """
    opening = (Part("Without "), Part(stage, "stage"))
    if trust is not None and trust.trust == "refused":
        return Sentence((*opening, Part(f": not known. {trust.reason}")), trust)
    changed: tuple[Part, ...] = ()
    if answers is not None and answers[0] != answers[1]:
        verdict = "" if label is None else " (right)" if answers[1] == label else " (wrong)"
        changed = (
            Part(", and the answer "),
            Part(f"{answers[1]}{verdict}", "amount"),
            Part(f" instead of {answers[0]}"),
        )
    subject = Part(f", the {phrase(behaviour)}")
    return Sentence((*opening, subject, *_would_be(effect, behaviour), *changed, Part(".")), trust)


def _would_be(effect: float, behaviour: Behaviour) -> tuple[Part, ...]:
    text = amount_text(effect, behaviour)
    if not np.isfinite(effect):
        return (Part(" is not known"),)
    if not any(c in "123456789" for c in text):
        same = "the same" if effect == 0 else "practically the same"
        return (Part(" would be "), Part(same, "amount"))
    direction = "lower" if effect > 0 else "higher"
    return (Part(" would be "), Part(f"{text} {direction}", "amount"))


# ----------------------------------------------------------------------------------- tables


def with_accuracy(table: pd.DataFrame) -> pd.DataFrame:
    """An effect table with rows for the derived behaviour ``accuracy`` added.

    Args:
        table: An effect table. Answers stand in every row, so one behaviour's rows give them.

    Returns:
        The same columns. ``final`` and ``without`` of the new rows are 1 where the answer is the
        label, 0 where it is not, and NaN where the example has no label or the stage was refused.
    """
    if table.empty or "label" not in table or table["label"].isna().all():
        return table
    rows = table[table["behaviour"] == table["behaviour"].iloc[0]].copy()
    rows["behaviour"] = ACCURACY.name
    rows["final"] = _right(rows["prediction"], rows["label"])
    rows["without"] = _right(rows["prediction_without"], rows["label"])
    rows["effect"] = rows["final"] - rows["without"]
    rows["within_noise"] = None
    rows["within_noise"] = rows["within_noise"].astype(table["within_noise"].dtype)
    return pd.concat([table, rows], ignore_index=True)


def boundaries_with_accuracy(table: pd.DataFrame, examples: pd.DataFrame) -> pd.DataFrame:
    """A boundary table with the derived behaviour ``accuracy`` and the set's own columns.

    Args:
        table: A boundary table.
        examples: One row per example, with ``example_id`` and further columns.
    """
    own = [c for c in examples.columns if c != "example_id" and c not in table.columns]
    table = table.merge(examples[["example_id", *own]], on="example_id", how="left")
    if table.empty or "label" not in table or table["label"].isna().all():
        return table
    rows = table[table["behaviour"] == table["behaviour"].iloc[0]].copy()
    rows["behaviour"] = ACCURACY.name
    rows["value"] = _right(rows["prediction"], rows["label"])
    return pd.concat([table, rows], ignore_index=True)


def _right(answers: pd.Series, labels: pd.Series) -> pd.Series:
    known = answers.notna() & labels.notna()
    right = (answers.astype(object) == labels.astype(object)).astype(float)
    return right.where(known, np.nan)


def stage_summary(
    table: pd.DataFrame,
    behaviour: Behaviour,
    stages: Sequence[str],
    by: str | None = None,
) -> pd.DataFrame:
    """Means per stage, over all examples or per group.

    Args:
        table: An effect table, with :func:`with_accuracy` applied where accuracy is asked for.
        behaviour: Which of its behaviours.
        stages: Stage names in training order; rows come in this order.
        by: Column to group by; None for all examples.

    Returns:
        :data:`SUMMARY_COLUMNS`. ``n`` examples were measured, ``missing`` had no value (no label,
        or a refused stage). ``error`` is the standard error of the mean effect over examples,
        ``noise_share`` the share of examples whose effect is within training noise (NaN: not
        known). A refused stage keeps its row, with NaN.
    """
    rows = table[table["behaviour"] == behaviour.name]
    rows = rows.assign(_gain=behaviour.sign * rows["effect"])
    keys = ["stage"] if by is None else ["stage", by]
    result = []
    for key, part in rows.groupby(keys, sort=True, dropna=True, observed=True):
        stage, group = (key[0], None) if by is None else key
        result.append({"stage": stage, "group": group, **_means(part)})
    summary = pd.DataFrame(result, columns=list(SUMMARY_COLUMNS))
    order = {name: position for position, name in enumerate(stages)}
    summary = summary[summary["stage"].isin(order)]
    return summary.sort_values(
        "stage", key=lambda column: column.map(order), kind="stable"
    ).reset_index(drop=True)


def _means(part: pd.DataFrame) -> dict[str, float]:
    gain = part["_gain"].dropna()
    effect = part["effect"].dropna()
    n = len(effect)
    noise = part["within_noise"].dropna()
    return {
        "n": n,
        "missing": len(part) - n,
        "final": float(part["final"].mean()),
        "without": float(part["without"].mean()),
        "effect": float(effect.mean()) if n else np.nan,
        "gain": float(gain.mean()) if n else np.nan,
        "credit": float(gain.clip(lower=0).mean()) if n else np.nan,
        "blame": float(gain.clip(upper=0).mean()) if n else np.nan,
        "credit_share": float((gain > 0).mean()) if n else np.nan,
        "blame_share": float((gain < 0).mean()) if n else np.nan,
        "error": float(effect.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan,
        "noise_share": float(noise.astype(bool).mean()) if len(noise) else np.nan,
    }


def boundary_summary(
    table: pd.DataFrame,
    behaviour: Behaviour,
    stages: Sequence[str],
    by: str | None = None,
) -> pd.DataFrame:
    """Mean of a behaviour after each boundary.

    Returns:
        ``boundary`` (``base`` first, then stages in training order), ``group`` (null where
        ``by`` is None), ``n`` and ``value``.
    """
    rows = table[table["behaviour"] == behaviour.name]
    keys = ["boundary"] if by is None else ["boundary", by]
    means = (
        rows.groupby(keys, sort=True, dropna=True, observed=True)["value"]
        .agg(n="count", value="mean")
        .reset_index()
    )
    means = means.rename(columns={by: "group"}) if by is not None else means.assign(group=None)
    order = {name: position for position, name in enumerate((BASE, *stages))}
    means = means[means["boundary"].isin(order)]
    means = means.sort_values("boundary", key=lambda c: c.map(order), kind="stable")
    return means[["boundary", "group", "n", "value"]].reset_index(drop=True)


def group_columns(table: pd.DataFrame, columns: Iterable[str], limit: int = 12) -> list[str]:
    """Columns that can stand as groups, ``group`` first: two to ``limit`` different values."""
    usable = [
        name for name in columns if name in table and 2 <= table[name].nunique(dropna=True) <= limit
    ]
    return sorted(usable, key=lambda name: (name != "group", name == "label"))


# -------------------------------------------------------------------------------- headlines


def headlines(
    table: pd.DataFrame,
    behaviour: Behaviour,
    stages: Sequence[str],
    trust: Mapping[str, StageTrust],
    noun: str = "example",
    by: str | None = None,
    limit: int = 3,
    groups_only: bool = False,
) -> list[Sentence]:
    """The strongest mean effects as sentences, each of another stage or of opposite sign.

    Only what stands out is said: a mean effect must exceed two standard errors over the examples,
    and an effect that is within training noise for most of them is no finding. Refused stages
    give none. The strongest blame comes first, because that is what people act on; the others
    follow by size.

    Args:
        table: An effect table, with :func:`with_accuracy` applied where accuracy is asked for.
        behaviour: Which of its behaviours.
        stages: Stage names in training order.
        trust: What is known of each stage's counterfactual.
        noun: What an example is called.
        by: Metadata column whose groups are looked at beside all examples.
        limit: How many sentences at most.
        groups_only: Say nothing about all examples, because ``table`` is a part of them.
    """
    frames = [] if groups_only else [stage_summary(table, behaviour, stages)]
    if by is not None:
        frames.append(stage_summary(table, behaviour, stages, by))
    rows = [row for frame in frames for row in frame.to_dict("records") if _stands_out(row)]
    rows.sort(key=lambda row: -abs(row["effect"]))
    blamed = [row for row in rows if row["gain"] < 0][:1]
    chosen: list[dict[str, object]] = []
    for row in blamed + rows:
        seen = {(str(c["stage"]), float(c["gain"]) > 0) for c in chosen}  # type: ignore[arg-type]
        if (str(row["stage"]), row["gain"] > 0) not in seen and len(chosen) < limit:
            chosen.append(row)
    return [mean_sentence(row, behaviour, noun, by, trust.get(str(row["stage"]))) for row in chosen]


def _stands_out(row: Mapping[str, float]) -> bool:
    if not np.isfinite(row["effect"]) or row["n"] < 5 or row["effect"] == 0:
        return False
    if row["noise_share"] > 0.5:
        return False
    return bool(abs(row["effect"]) > 2 * row["error"])
