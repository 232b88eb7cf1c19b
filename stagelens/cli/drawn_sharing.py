"""Shares of the recipe, as ``stagelens draws --shares`` tells them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich.console import Console

from stagelens.analyses.shares.drawn_shares import DrawnShares, drawn_shares_of
from stagelens.analyses.shares.mean_table import mean_table
from stagelens.analyses.shares.pairs import pairs_of
from stagelens.analyses.shares.sentences import pair_sentences, total_sentence
from stagelens.contracts import ACCURACY, ProgressCallback, StageLensError
from stagelens.effects.draws import FEWEST, NAMES, Kind
from stagelens.runs.run import Run
from stagelens.trust.drawn_coalitions import DrawnCoalitions, predicted_cost
from stagelens.trust.draws import cost_text
from stagelens.wording.numbers import signed_text

from .terminal import Table, say

_READINGS = {"share": "share", "without_it": "without it", "alone": "alone"}


def check_options(
    given_earlier: bool, runs: list[str] | None, width: float | None, stages: list[str] | None
) -> None:
    """Refuse options that ``--shares`` has no answer to.

    Raises:
        StageLensError: Says which.
    """
    if given_earlier or runs:
        option = "--draws" if runs else "--given-earlier"
        raise StageLensError(
            f"--shares draws every stage anew, so it does not go with {option}; omit one of them"
        )
    if width is not None:
        raise StageLensError("--shares takes a number of draws, not a --width; give --number")
    if stages:
        raise StageLensError("--shares are those of all stages; omit --stage")


@dataclass(frozen=True)
class DrawsCost:
    """What draws that are not stored yet take.

    Attributes:
        draws: How many there are.
        passes: Stages that are trained for them.
        seconds: Predicted, in one process; None where no pace is known.
    """

    draws: int
    passes: int
    seconds: float | None

    def __str__(self) -> str:
        made = f"{self.draws} draws to make" if self.draws != 1 else "1 draw to make"
        return f"{made}: {cost_text(self.passes, self.seconds)} in one process."


def cost(run: Run, set_names: Sequence[str], number: int, kind: Kind) -> DrawsCost:
    """What the draws of every set of stages cost; refused where they cannot be made."""
    from stagelens.trust import drawing_coalitions as drawing

    left = drawing.unmade(run, set_names, number, kind)
    if not left:
        return DrawsCost(0, 0, 0.0)
    drawing.check(run, kind)  # a refusal comes before any cost is told
    return DrawsCost(len(left), *predicted_cost(run, len(left)))


def measured(
    run: Run, set_names: Sequence[str], number: int, kind: Kind, progress: ProgressCallback
) -> dict[str, DrawnCoalitions]:
    """Tell what the draws cost that are not stored yet, and make them."""
    from stagelens.trust import drawing_coalitions as drawing

    if (told := cost(run, set_names, number, kind)).draws:
        say(str(told), err=True)
    return drawing.measure_coalitions_of_draws(run, set_names, number, progress, kind)


def _each(found: DrawnCoalitions) -> list[DrawnShares]:
    """Accuracy where there are labels, and every behaviour that was measured."""
    names = [ACCURACY.name, *(each.name for each in found.facts[0].behaviours)]
    read = (drawn_shares_of(found, name) for name in names)
    return [one for one in read if one is not None and np.isfinite(one.final).any()]


def rows_of(found: Mapping[str, DrawnCoalitions]) -> list[pd.DataFrame]:
    """A row per set, behaviour and stage: every reading with the interval of the share."""
    blocks = []
    for set_name, draws in found.items():
        for one in _each(draws):
            rows = mean_table(one)
            rows.insert(0, "set", set_name)
            ends = {"base": one.level(0), "final_model": one.level(one.full)}
            blocks.append(rows.assign(drawn=NAMES[draws.kind], draws=draws.count, **ends))
    return blocks


def print_shares(found: Mapping[str, DrawnCoalitions]) -> None:
    """A table of shares for each behaviour, and what they say."""
    for set_name, draws in found.items():
        usual = _each(draws)
        for one in usual[:2]:
            _print(set_name, draws, one)


def _print(set_name: str, draws: DrawnCoalitions, found: DrawnShares) -> None:
    kind = found.behaviour
    table = Table(f"Shares in {kind.name} on {set_name}, {NAMES[draws.kind]}: {draws.words}")
    table.add_column("stage")
    for heading in (*_READINGS.values(), "95 % of share", "sd"):
        table.add_column(heading, justify="right")
    rows, each = mean_table(found), found.in_each_draw("share")
    for party, row in enumerate(rows.to_dict("records")):
        ends = [row["share_low"], row["share_high"]]
        interval = " to ".join(signed_text(end, kind, unit=False) for end in ends)
        few = "too few draws" if draws.count < FEWEST else "draws do not differ"
        sd = each[:, party].std(ddof=1) if draws.count > 1 else np.nan
        table.add_row(
            row["stage"],
            *(signed_text(row[name], kind) for name in _READINGS),
            interval if np.isfinite(ends).all() else few,
            signed_text(sd, kind).lstrip("+") if np.isfinite(sd) else "not known",
        )
    sums = [rows[name].sum() for name in _READINGS]
    table.add_row("together", *(signed_text(each, kind) for each in sums), "", "")
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    say(str(total_sentence(found, "example")))
    for sentence in pair_sentences(pairs_of(found), kind, "example"):
        say(str(sentence))
