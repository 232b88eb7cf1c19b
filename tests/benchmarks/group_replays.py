"""Trainings replayed without groups of training examples, kept in a file beside the run."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from stagelens.contracts import Example
from stagelens.measuring.models import BATCH_SIZE, measure
from stagelens.replaying.draw_plan import Draw
from stagelens.replaying.draws import Passes, drawn_with
from stagelens.replaying.left_out import Divisor, RowsOfStage, replay_without_rows
from stagelens.replaying.training_loss import Passed
from stagelens.runs.run import Run, Stage
from stagelens.runs.states import TrainingState, Weights
from stagelens.runs.training_rows import TrainingRows, training_rows
from tests.benchmarks.scenarios import SCENARIOS

BEHAVIOUR = "margin"
OTHER_ORDER = 1
"""The number of the draw that stands for another order of batches."""


def parser_of_runs(about: str) -> argparse.ArgumentParser:
    """Which recorded runs are measured, for every benchmark of groups."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--cache", type=Path, default=Path("benchmark-runs"), help="recorded runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument(
        "--scenarios",
        nargs="+",
        choices=SCENARIOS,
        default=["digits-adamw-5e-4", "digits-sgd-0.01"],
    )
    return parser


class LeftOut(Protocol):
    """Training examples of a stage that are left out together.

    Attributes:
        stage: Whose.
        order: 0: batches as recorded; else the number of a draw.
        divisor: What the losses of the rest are divided by.
    """

    @property
    def stage(self) -> str: ...
    @property
    def order(self) -> int: ...
    @property
    def divisor(self) -> Divisor: ...
    @property
    def name(self) -> str:
        """What tells it from other groups of the stage."""

    def members(self, seed: int, stages: Sequence[str], count: int) -> frozenset[int]:
        """Numbers of its examples in the stage's table, whatever the order and the divisor."""


@dataclass(frozen=True)
class Group:
    """Examples of a stage that are drawn at random, see :class:`LeftOut`.

    Attributes:
        fraction: Of the stage's examples.
        number: Which of the groups of this size.
    """

    stage: str
    fraction: float
    number: int
    order: int
    divisor: Divisor

    @property
    def name(self) -> str:
        """Its size and number."""
        return f"{self.fraction:g} {self.number}"

    def members(self, seed: int, stages: Sequence[str], count: int) -> frozenset[int]:
        """See :class:`LeftOut`."""
        place = stages.index(self.stage)
        random = np.random.default_rng([seed, place, round(100 * self.fraction), self.number])
        return frozenset(int(n) for n in random.permutation(count)[: round(self.fraction * count)])


class Replays:
    """Replayed behaviours of the questions, kept in a file; the final model's are group None.

    Args:
        run: The run.
        seed: Of the groups.
        questions: Evaluation examples.
        path: One JSON object per line: what was replayed, values, seconds of processor time.
        every: Of the measured questions, effects are told of every so manieth.
    """

    def __init__(
        self, run: Run, seed: int, questions: Sequence[Example], path: Path, every: int = 1
    ) -> None:
        self.every = every
        self.run, self.seed, self.path = run, seed, path
        self.batches = [
            list(questions[k : k + BATCH_SIZE]) for k in range(0, len(questions), BATCH_SIZE)
        ]
        self.model = run.task.build_model(run.last.facts.build_config)
        self.names = [stage.name for stage in run.stages]
        self.rows: dict[str, TrainingRows] = {}
        self.prepared: dict[tuple[str, Divisor], RowsOfStage] = {}
        self.known: dict[str, dict[str, object]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self.known[row["key"]] = row

    def members(self, group: LeftOut) -> frozenset[int]:
        """Numbers of its examples in the stage's table."""
        return group.members(self.seed, self.names, len(self.table(group.stage)))

    def table(self, stage: str) -> TrainingRows:
        """The stage's training examples."""
        if stage not in self.rows:
            self.rows[stage] = training_rows(self.run, self.run.stage(stage))
        return self.rows[stage]

    def values(self, key: str, weights: Callable[[], Weights]) -> np.ndarray:
        """(K,) of one model, from the file or by ``weights()``, whose time is noted."""
        if key not in self.known:
            began = time.process_time()
            (one,) = measure(self.run.task, self.model, [weights()], self.batches, 1)
            row = {
                "key": key,
                "values": [float(x) for x in one.values[BEHAVIOUR]],
                "seconds": round(time.process_time() - began, 3),
            }
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            self.known[key] = row
        return np.array(self.known[key]["values"])

    def effect(self, group: LeftOut) -> np.ndarray:
        """(K,) final minus without, both in the group's order of batches."""
        stage = self.run.stage(group.stage)
        whole = self.values("all", lambda: self.run.last.end().model)
        if group.order:
            key = f"all {group.stage} order {group.order}"
            whole = self.values(key, lambda: self._drawn(stage, group, {}))
        key = f"{group.stage} {group.name} order {group.order} {group.divisor}"
        return (whole - self.values(key, lambda: self._without(stage, group)))[:: self.every]

    def rows_of_uses(self, stage: str) -> np.ndarray:
        """(U,) the number of the example of every use, by step and position."""
        table = self.table(stage).table
        places = [
            (step, position, number)
            for number, (steps, positions) in enumerate(
                zip(table["steps"], table["positions"], strict=True)
            )
            for step, position in zip(steps, positions, strict=True)
        ]
        return np.array([number for _, _, number in sorted(places)])

    def seconds(self, divisor: Divisor) -> float:
        """Of processor time, all replays in the recorded order."""
        return sum(
            float(row["seconds"])  # type: ignore[arg-type]
            for key, row in self.known.items()
            if key.endswith(f"order 0 {divisor}")
        )

    def _places(self, group: LeftOut) -> dict[int, set[int]]:
        table = self.table(group.stage)
        ids = table.table["example_id"]
        return table.places([str(ids[number]) for number in sorted(self.members(group))])

    def _prepared(self, stage: Stage, divisor: Divisor) -> RowsOfStage:
        key = (stage.name, divisor)
        if key not in self.prepared:
            self.prepared[key] = RowsOfStage(self.run.task, stage, divisor)
        return self.prepared[key]

    def _without(self, stage: Stage, group: LeftOut) -> Weights:
        places = self._places(group)
        if group.order:
            return self._drawn(stage, group, places)
        rows = self._prepared(stage, group.divisor)
        return replay_without_rows(self.run, stage, places, group.divisor, rows=rows).state.model

    def _drawn(self, stage: Stage, group: Group, places: dict[int, set[int]]) -> Weights:
        rows = self._prepared(stage, group.divisor)

        def train(order: Sequence[int], passes: Passes, passed: Passed) -> TrainingState:
            return rows.replay(places, passed=passed, order=order, passes=passes).state

        return drawn_with(self.run, Draw(group.order), stage, train)
