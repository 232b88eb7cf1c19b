"""Scores as the command line prints them: means by stage, and at every boundary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stagelens.contracts import Behaviour
from stagelens.effects.results import Result, load_result
from stagelens.effects.stored_scores import OWN
from stagelens.runs.run import Run
from stagelens.wording.signs import gain
from stagelens.wording.trust_words import trust_word

from .terminal import Table, print_table, say


@dataclass(frozen=True)
class Scored:
    """What a scorer says: its effect table, the means of that, and scores at every boundary."""

    result: Result
    means: pd.DataFrame
    there: dict[str, np.ndarray]


def scored_means(run: Run, result: Result) -> Scored:
    """An effect table of scores with its means."""
    from stagelens.effects.scores import mean_scores  # loads torch

    facts = result.facts
    own = {name: value for name, value in facts.settings.items() if name in OWN}
    found = load_result(run, facts.set_name, "score-boundaries", "", own)
    rows = found.table.groupby("boundary", sort=False) if found is not None else ()
    there = {str(boundary): one["value"].to_numpy() for boundary, one in rows}
    return Scored(result, mean_scores(run, result), there)


def print_score(scored: Scored) -> None:
    """Print mean effects by stage, and means at boundaries."""
    (kind,) = scored.result.behaviours.values()
    printed = Table(
        title=f"{kind.name} ({kind.better} is better), means over prompts; effects above 0 are "
        "credit, below 0 blame"
    )
    for heading in ("stage", "final model", "without it", "effect (95 %)", "prompts", "trust"):
        printed.add_column(heading, justify="left" if heading in ("stage", "trust") else "right")
    for row, trust in zip(scored.means.itertuples(), scored.result.trust.values(), strict=True):
        effect, low, high = _credit(kind, row)
        ends = f" ({low:+.3f} to {high:+.3f})" if np.isfinite(low) else ""
        cells = [_shown(row.final), _shown(row.without), f"{effect:+.3f}{ends}"]
        if not row.n:
            cells = ["-", "-", "-"]
        printed.add_row(row.stage, *cells, f"{row.n:,}", trust_word(trust))
    print_table(printed)
    means = [f"{boundary} {_shown(_mean(values))}" for boundary, values in scored.there.items()]
    if means:
        say(f"Mean {kind.name} at each boundary: {', '.join(means)}.")


def _credit(kind: Behaviour, row: Any) -> tuple[float, float, float]:
    """An effect and its interval on the credit scale."""
    ends = sorted((gain(row.low, kind), gain(row.high, kind)))
    return gain(row.effect, kind), ends[0], ends[1]


def in_json(scored: Scored) -> dict[str, Any]:
    """The same as plain JSON."""
    (kind,) = scored.result.facts.behaviours
    stages = [
        {name: number(value) for name, value in row.items()} | {"trust": trust_word(trust)}
        for row, trust in zip(
            scored.means.to_dict("records"), scored.result.trust.values(), strict=True
        )
    ]
    facts: dict[str, Any] = {"behaviour": kind.name, "better": kind.better}
    facts["settings"] = scored.result.facts.settings
    there = {name: number(_mean(values)) for name, values in scored.there.items()}
    return {**facts, "boundaries": there, "stages": stages}


def number(value: Any) -> Any:
    """A value as JSON has it, which knows no NaN."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _shown(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "-"
