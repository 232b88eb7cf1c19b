"""What a gate found in words: its verdict, and its numbers as cells of tables."""

from __future__ import annotations

import pandas as pd

from stagelens.contracts import ACCURACY, Behaviour
from stagelens.wording.folding import listed
from stagelens.wording.numbers import amount_text, signed_text, value_text

from .report import STATUS, GateReport, SliceFinding

SLICES = ("behaviour", "slice", "examples", "old", "new", "drop", "95 %", "verdict")
STAGES = ("slice", "stage", "how", "drop", "95 %, all stages", "trust", "did it")
"""Columns of both tables."""
STAGES_ARE = (
    "With the old run's stage in place of the new one (exchange) the new model would be better by "
    "the drop. These are of the recorded models; of several stages they need not add up."
)


def behaviour_of(row: SliceFinding) -> Behaviour:
    """The behaviour that a finding is about."""
    if row.behaviour == ACCURACY.name:
        return ACCURACY
    return Behaviour(row.behaviour, row.better, row.unit)


def counted(found: GateReport) -> str:
    """What is judged, over how many slices."""
    counts = [f"{sum(s.verdict == v for s in found.slices)} {v}" for v in STATUS]
    what = "what the change of recipe did" if found.estimand == "recipes" else "these two models"
    same = "both models are the same; " if found.same_model else ""
    return (
        f"{same}of {len(found.slices)} slices {', '.join(counts)} ({what}; "
        f"at {100 * found.level:g} % for all slices together)."
    )


def trained(found: GateReport) -> str:
    """What the drops are means over; empty where they are of two models."""
    if found.estimand != "recipes":
        return ""
    both = (("old", found.old), ("new", found.new))
    told = [f"{name} {side.trainings} ({side.source})" for name, side in both]
    return f"Drops are means over trainings of each recipe: {', '.join(told)}."


def notes(found: GateReport) -> list[str]:
    """What else there is to say, each a sentence."""
    return [note if note.endswith((".", "!", "?")) else f"{note}." for note in found.notes]


def slice_rows(found: GateReport) -> pd.DataFrame:
    """A row of texts for each slice, with the columns :data:`SLICES`."""
    rows = [
        (
            *(row.behaviour, _where(row), f"{row.examples:,}"),
            *(_value(row.old, row), _value(row.new, row)),
            *(_drop(row.drop, row), _ends(row.low, row.high, row), row.verdict),
        )
        for row in found.slices
    ]
    return pd.DataFrame(rows, columns=list(SLICES))


def stage_rows(found: GateReport) -> pd.DataFrame:
    """A row of texts for each stage of each slice that regressed, with :data:`STAGES`."""
    of = {(s.behaviour, s.by, s.group): s for s in found.slices}
    rows = []
    for row in found.stages:
        one = of[row.behaviour, row.by, row.group]
        numbers = (_drop(row.drop, one), _ends(row.low, row.high, one))
        did = "yes" if row.did_it else ""
        rows.append((one.words, row.stage, row.how, *numbers, row.trust, did))
    return pd.DataFrame(rows, columns=list(STAGES))


def stage_reasons(found: GateReport) -> list[str]:
    """Why stages are no exchange, and what is not exact; each once, with the stages it is of."""
    of: dict[str, dict[str, None]] = {}
    for row in found.stages:
        of.setdefault(row.reason, {})[row.stage] = None
    return [f"{listed(list(stages))}: {reason}" for reason, stages in of.items()]


def verdict_sentence(row: SliceFinding) -> str:
    """How much one slice got worse, and by how much it may: a sentence."""
    if row.drop is None:
        return f"{row.words}: {row.reason}"
    kind = behaviour_of(row)
    words = ("got better", "got worse") if row.better == "lower" else ("rose", "dropped")
    word = words[row.drop > 0]
    amount = f" by {amount_text(abs(row.drop), kind)}" if row.drop else ""
    known = row.low is not None and row.high is not None
    ends = f" (95 %: {_ends(row.low, row.high, row)})" if known else ""
    return f"{row.words} {word}{amount}{ends}; {amount_text(row.max_drop, kind)} are allowed."


def _where(row: SliceFinding) -> str:
    return "all" if row.by is None else f"{row.by} = {row.group}"


def _value(value: float | None, row: SliceFinding) -> str:
    return "-" if value is None else value_text(value, behaviour_of(row))


def _drop(value: float | None, row: SliceFinding) -> str:
    return "-" if value is None else signed_text(value, behaviour_of(row))


def _ends(low: float | None, high: float | None, row: SliceFinding) -> str:
    if low is None or high is None:
        return "not known"
    return f"{_drop(low, row)} to {_drop(high, row)}"
