"""What the command line prints: progress, tables, and errors on one line."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as _Table

from stagelens.analyses.contributions.contribution_table import Stored, left_open, opposite
from stagelens.analyses.contributions.horizon_table import later_text
from stagelens.analyses.saliency.concentration import where_most
from stagelens.analyses.saliency.map_table import Map
from stagelens.analyses.spurious.feature_table import Features
from stagelens.analyses.spurious.ranking import first, strongest
from stagelens.analyses.spurious.sentences import feature_name
from stagelens.compute import remaining, temporaries
from stagelens.compute.bounded import NoAnswer, no_panic
from stagelens.contracts import CARRIED, Behaviour, StageLensError
from stagelens.derivatives.curvature_kinds import by_curvature
from stagelens.effects.results import Result
from stagelens.effects.summary import right_answers
from stagelens.estimators.registry import estimate_name
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.files import cannot_write
from stagelens.wording.cells import for_terminal
from stagelens.wording.folding import listed
from stagelens.wording.numbers import count_text, number, plain_signed
from stagelens.wording.trust_words import (
    FIRST_ORDER,
    samples_sentence,
    trust_explanation,
    trust_label,
    trust_word,
)

if TYPE_CHECKING:
    from stagelens.analyses.removal.saving import Figures

EVERY = 0.2
"""Seconds between two reports to a file."""


_OUT_OF_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)
"""What torch says when memory runs out."""


def say(text: str, err: bool = False) -> None:
    """Print a line, in which names and notes of a run act on no terminal."""
    typer.echo(for_terminal(text), err=err)


class Table(_Table):
    """A table, in whose title and cells names and notes of a run act on no terminal."""

    def __init__(self, title: str) -> None:
        super().__init__(title=for_terminal(title))

    def add_row(self, *cells: Any, **options: Any) -> None:
        """As rich has it."""
        super().add_row(*(for_terminal(str(each)) for each in cells), **options)


class Reporter:
    """Shows progress on the terminal, or writes it to a file that the dashboard reads.

    Args:
        file: Where to write it; None for the terminal.
        phases: Where stderr is no terminal, print a line for every phase instead of a bar.
    """

    def __init__(self, file: Path | None, phases: bool = False) -> None:
        self._file = file
        self._written = 0.0
        self._share = 0.0
        self._text = ""
        self._marks: list[remaining.Mark] = []
        self._began = time.monotonic()
        terminal = sys.stderr.isatty()
        self._phases = phases and file is None and not terminal
        self._phase = ""
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        # A bar needs a terminal that can redraw it; the dashboard reads the file instead.
        hidden = file is not None or not terminal
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden)
        self._bar_task = self._bar.add_task("", total=1.0)

    def __call__(self, share: float, text: str) -> None:
        self._share, self._text = min(max(share, 0.0), 1.0), text
        self._marks = remaining.noted(self._marks, time.monotonic(), self._share)
        if self._phases:
            self._print_phase()
        # Steps of a small model follow each other far more quickly than anybody reads.
        if time.monotonic() - self._written >= EVERY:
            self._bar.update(self._bar_task, completed=self._share, description=text)
            self.write("running")

    def _print_phase(self) -> None:
        # What follows a comma or a colon counts steps or models, and changes with every report.
        phase = self._text.split(",")[0].split(":")[0]
        if phase != self._phase:
            self._phase = phase
            seconds = time.monotonic() - self._began
            say(f"{seconds:6.1f} s  {100 * self._share:3.0f} %  {phase}", err=True)

    def write(self, state: str, error: str | None = None) -> None:
        """Write the progress to the file, if there is one."""
        self._written = time.monotonic()
        if self._file is None:
            return
        done = 1.0 if state == "done" else self._share
        content = {
            **{"done": done, "text": self._text, "state": state, "error": error},
            # From them the dashboard tells how long it still takes, whenever somebody looks.
            "marks": self._marks,
        }
        # Replaced as a whole: the dashboard reads at any time, and never finds half a file.
        temporary = self._file.with_name(temporaries.name(f".{self._file.name}", ".tmp"))
        temporary.write_text(json.dumps(content))
        os.replace(temporary, self._file)

    @contextmanager
    def running(self) -> Iterator[Reporter]:
        """Report success or failure at the end, whatever happens."""
        self.write("running")
        try:
            with self._bar, no_panic():
                yield self
        # Also when interrupted or terminated, or the dashboard would wait for a job that is gone.
        except BaseException as error:
            self.write("failed", one_line(error))
            raise
        self.write("done")


def one_line(error: BaseException) -> str:
    """An error for people, on one line."""
    if isinstance(error, OSError) and not isinstance(error, StageLensError) and error.filename:
        path = Path(os.fsdecode(error.filename))
        # Files and folders are first written under a temporary name, which tells people nothing.
        temporary = path.name.startswith(".") or path.suffix == ".tmp"
        return cannot_write(path.parent if temporary else path, error)
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
        return (
            "memory ran out; what was finished before is kept. Try again when less is running, "
            "with a higher memory limit, or on a machine with more memory"
        )
    if isinstance(error, NoAnswer):
        return f"a library {error}; update the libraries, or report this with the command"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, StageLensError) else f"{type(error).__name__}: {text}"


def _console() -> Console:
    """As wide as the terminal; wide enough for every column where there is none."""
    return Console(width=None if sys.stdout.isatty() else 200)


def print_table(printed: Table) -> None:
    """Print a table as it is: names and texts from data may hold brackets, rich's tags."""
    _console().print(printed, markup=False)


def print_effects(result: Result) -> None:
    """The mean effect of every stage on every behaviour, and what is known about it."""
    count = result.table["example_id"].nunique()
    printed = Table(title=f"Mean stage effect on {result.facts.set_name} ({count:,} examples)")
    printed.add_column("stage")
    for name, behaviour in result.behaviours.items():
        printed.add_column(f"{name} ({behaviour.better} is better)", justify="right")
    if accuracies := _accuracies(result):
        printed.add_column("accuracy", justify="right")
    printed.add_column("trust")
    means = result.table.groupby(["stage", "behaviour"], sort=False)["effect"].mean()
    explained: dict[tuple[str, str], list[str]] = {}
    for stage, trust in result.trust.items():
        values = [means.get((stage, name), float("nan")) for name in result.behaviours]
        # A refused stage has NaN, which differs from itself.
        cells = ["-" if value != value else f"{value:+.3f}" for value in values]
        cells += [accuracies.get(stage, "-")] if accuracies else []
        printed.add_row(stage, *cells, trust_word(trust))
        explained.setdefault((trust_word(trust), trust_explanation(trust)), []).append(stage)
    # Names and texts from data may hold brackets, which rich would read as tags.
    _console().print(printed, markup=False)
    for (word, explanation), stages in explained.items():  # many stages have the same
        say(f"{listed(stages)}: {word}. {explanation}")


def _accuracies(result: Result) -> dict[str, str]:
    """Stage to the share of right answers with it and without it; empty without labels."""
    table = result.table[result.table["behaviour"] == result.table["behaviour"].iloc[0]]
    if not {"label", "prediction", "prediction_without"} <= set(table):
        return {}
    found = {}
    for stage, own in table.groupby("stage", sort=False, observed=True):
        rows = own.reset_index(drop=True)
        ends = [
            100 * right_answers(rows[name], rows["label"]).mean()
            for name in ("prediction", "prediction_without")
        ]
        if ends[0] == ends[0]:  # a refused stage has no answers without it
            without = "not known" if ends[1] != ends[1] else f"{ends[1]:.1f} %"
            found[str(stage)] = f"{ends[0]:.1f} %, without it {without}"
    return found


def print_features(found: Features, trust: Mapping[str, StageTrust], top: int) -> None:
    """The strongest features of every stage, and what is known of the effects they go with."""
    behaviour = found.facts.behaviour.name
    for stage in found.facts.stages:
        counts = f"{stage.passed:,} of {stage.tested:,} tests pass"
        printed = Table(title=f"What goes with the effect of {stage.stage} ({counts})")
        for name in ("feature", "label", "examples", f"{behaviour} with", "without", "at least"):
            printed.add_column(
                name, justify="right" if name not in ("feature", "label") else "left"
            )
        for row in first(strongest(found, stage.stage), top).to_dict("records"):
            figures = [f"{row[name]:+.3f}" for name in ("mean_with", "mean_without")]
            cells = [str(row["label"] or "any"), f"{row['support']:,}", *figures]
            printed.add_row(feature_name(row), *cells, f"{row['evidence']:.3f}")
        _console().print(printed, markup=False)
        _say_trust(trust[stage.stage], behaviour)
    looked_at = {stage.stage for stage in found.facts.stages}
    for other in (known for name, known in trust.items() if name not in looked_at):
        _say_trust(other, behaviour)


def _say_trust(trust: StageTrust, behaviour: str | None = None) -> None:
    """The word for a stage's effects, and what is known of them in sentences."""
    word, said = trust_word(trust, behaviour), trust_explanation(trust, behaviour)
    say(f"Trust in the effect of {trust.stage}: {word}. {said}")


def print_contributions(
    found: Stored,
    top: int,
    effects: Mapping[str, tuple[float, StageTrust]],
    verdicts: Mapping[str, tuple[bool, str]],
) -> None:
    """What the steps of every stage add up to, and which training examples contributed most.

    Args:
        found: The answer.
        top: How many training examples of each stage are printed.
        effects: Stage to its effect on the same examples, with what is known of it.
        verdicts: Stage to whether first order says anything of it, and what is said of that; stages
            that were not checked are absent.
    """
    behaviour = found.facts.behaviour
    of = count_text(found.facts.count)
    when = "" if found.facts.horizon is None else f" {later_text(found.facts.horizon)}"
    printed = Table(
        title=f"Contributions to the {behaviour.name} of {of}{when}, to first order"
        + by_curvature(found.facts.curvature)
    )
    compared = ("stage effect", "not explained to first order") if effects else ()
    for name in ("stage", "steps", "together", CARRIED, *compared, "trust"):
        printed.add_column(name, justify="left" if name in ("stage", "trust") else "right")
    unexplained: dict[str, str] = {}
    for stage, steps in found.facts.steps.items():
        carried = found.part("carried", stage)["value"]
        own = plain_signed(carried.iloc[0]) if len(carried) else "-"
        total, cells, known = found.linearised(stage), ["-"] * len(compared), effects.get(stage)
        if known is not None and np.isfinite(known[0]):
            word = trust_word(known[1], behaviour.name)
            cells = [f"{plain_signed(known[0])} ({word})", plain_signed(known[0] - total)]
            if said := left_open(stage, known[0], total):
                unexplained[stage] = said
        printed.add_row(stage, f"{steps:,}", plain_signed(total), own, *cells, FIRST_ORDER)
    _console().print(printed, markup=False)
    for said in unexplained.values():
        say(said)
    if found.facts.on_samples:
        say(samples_sentence(found.facts.on_samples))
    for stage in found.facts.steps:
        rows = found.part("example", stage)
        if rows.empty:
            say(f"{stage}: steps only; {found.facts.steps_only[stage]}")
            continue
        smooth, said = verdicts.get(stage, (True, ""))
        if said:
            say(f"{stage}: {said}")
        effect = effects.get(stage, (np.nan, None))[0]
        if not smooth or opposite(effect, found.linearised(stage)):  # which was said above
            continue
        rows = rows.loc[rows["value"].abs().sort_values(ascending=False).index].head(top)
        hint = "; amounts say little, see above" if stage in unexplained else ""
        printed = Table(f"Training examples of {stage}, the largest contributions first{hint}")
        names = ("contribution", "example", "uses", "label", "final model", "before")
        for name in names:
            printed.add_column(name, justify="right")
        for row in rows.to_dict("records"):
            told = [row[name] for name in ("label", "answer", "before")]
            cells = [f"{row['step']}-{row['position']}", f"{row['uses']:,}"]
            told = ["-" if pd.isna(each) else str(each) for each in told]
            printed.add_row(plain_signed(row["value"]), *cells, *told)
        _console().print(printed, markup=False)


def print_saliency(
    maps: Sequence[Map], stage: str, behaviour: Behaviour, baseline: str, trust: StageTrust
) -> None:
    """What the maps of a stage's effect sum to, and where most of it sits."""
    printed = Table(title=f"Where the effect of {stage} on the {behaviour.name} sits")
    for name in ("example", "effect", "in the input", f"on the baseline ({baseline})", "steps", ""):
        printed.add_column(name, justify="right" if name not in ("example", "") else "left")
    for one in maps:
        total = f"{one.total:+.3f}" if one.holds else "-"
        figures = f"{one.effect:+.3f}", total, f"{one.baseline_effect:+.3f}", f"{one.steps}"
        note = "" if one.holds else f"sums are {one.error:.0%} apart"
        printed.add_row(one.example_id, *figures, note)
    _console().print(printed, markup=False)
    held = [one for one in maps if one.holds]
    sentence = where_most(held, stage, behaviour, trust)
    if sentence is not None:
        say(str(sentence))
    _say_trust(trust, behaviour.name)


def print_verification(rows: pd.DataFrame) -> None:
    """A verification table, and why stages were refused."""
    printed = Table(title=f"Estimates against replay on {rows['set'].iloc[0]}")
    for name in ("stage", "behaviour", "estimator", "budget"):
        printed.add_column(name)
    figures = ("r", "rho", "slope", "relative_error", "sign_agreement", "cost", "wall_cost")
    for name in (*figures, "expected_error", "noise_floor_r"):
        heading = "error up to" if name == "expected_error" else name.replace("_", " ")
        printed.add_column(heading, justify="right")
    printed.add_column("trust")
    for row in rows.to_dict("records"):
        values = [row[name] for name in (*figures, "expected_error", "noise_floor_r")]
        cells = ["-" if v is None or v != v else f"{v:.2f}" for v in values]
        names = row["stage"], row["behaviour"], _estimate(row)
        printed.add_row(*names, _budget(row), *cells, row["trust"])
    _console().print(printed, markup=False)
    refused = rows[rows["trust"] == "refused"]
    alike: dict[tuple[str, str], list[str]] = {}
    for row in refused.drop_duplicates(["stage", "estimator", "settings"]).to_dict("records"):
        estimate = f"{_estimate(row)} {_budget(row)}".strip()
        alike.setdefault((estimate, row["reason"]), []).append(row["stage"])
    for (estimate, reason), stages in alike.items():
        say(f"Refused: {listed(stages)} by {estimate}: {reason}")


def _estimate(row: Mapping[str, Any]) -> str:
    """The estimator and its settings but the budget, which has a column of its own."""
    settings = json.loads(row["settings"])
    settings.pop("budget", None)
    return estimate_name(row["estimator"], settings)


def _budget(row: Mapping[str, Any]) -> str:
    budget = row["budget"]
    return "" if budget is None or budget != budget else f"{budget:g}"


def print_removal(
    figures: Figures, trusts: Sequence[StageTrust], strengths: Mapping[str, float], name: str
) -> None:
    """What an edit changes, overall and by group, and what the edit rests on.

    Args:
        figures: Of the final and the edited model.
        trusts: Of the stages that are taken out.
        strengths: Stage to how much of it is taken out.
        name: Of the evaluation set.
    """
    printed = Table(title=f"Before and after on the report part of {name}")
    for heading in ("model", "examples", "n", "accuracy", "95 % interval"):
        printed.add_column(heading, justify="left" if heading in ("model", "examples") else "right")
    for row in figures.accuracies:
        low, high = (f"{row[f'accuracy_{end}']:.1%}" for end in ("low", "high"))
        share, count = f"{row['accuracy']:.1%}", f"{row['n']:,}"
        group = "all" if pd.isna(row["group"]) else str(row["group"])
        printed.add_row(row["model"], group, count, share, f"{low} to {high}")
    if printed.row_count:
        _console().print(printed, markup=False)
    means = Table(title=f"Mean of every behaviour on the report part of {name}")
    for heading in ("behaviour", "n", "before", "after", "change", "95 % interval"):
        means.add_column(heading, justify="left" if heading == "behaviour" else "right")
    for one in figures.changes:
        values = (number(value) for value in (one.before, one.after, one.change))
        ends = f"{number(one.low)} to {number(one.high)}"
        means.add_row(one.behaviour.name, f"{one.n:,}", *values, ends)
    _console().print(means, markup=False)
    for trust in trusts:
        taken = f"{trust.stage}, {strengths[trust.stage]:.0%}"
        say(f"{taken}: {trust_label(trust)}: {trust_explanation(trust)}")
