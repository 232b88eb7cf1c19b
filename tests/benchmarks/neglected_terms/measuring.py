"""True errors of first order beside expected ones: measured run by run, and kept."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from stagelens.analyses.contributions.first_order import behaviour_along
from stagelens.analyses.contributions.horizons import stretches
from stagelens.contracts import Example, Refused
from stagelens.demos import comments
from stagelens.derivatives.curvature import Evaluated
from stagelens.derivatives.step_map import State, StepMap
from stagelens.derivatives.trajectory import DerivativeOptions, LinearStage, active_names
from stagelens.derivatives.windows import Places, Window, WindowEnd, follow
from stagelens.effects.computing import attribute
from stagelens.replaying.left_out import replay_without_rows
from stagelens.runs.run import Run, Stage, open_run
from stagelens.runs.training_rows import training_rows
from tests.benchmarks.neglected_terms.fitting import BEHAVIOUR
from tests.benchmarks.scenarios import SCENARIOS, recorded

COMMENTS = "comments"
_EXAMPLES = {"digits": 200, "fashion": 200, COMMENTS: 128}


@dataclass(frozen=True)
class Job:
    """One file of rows: a part of a stage left out, or (``share`` 0) whole stages.

    Attributes:
        scenario: Of the benchmark's, or the demo of comments.
        seed: Of the run.
        stage: Whose examples; empty for whole stages.
        share: Of its examples that are left out.
    """

    scenario: str
    seed: int
    stage: str = ""
    share: float = 0.0

    def file(self, cache: Path) -> Path:
        """Where its rows are kept."""
        kind = f"{self.stage}-{self.share:g}" if self.stage else "stages"
        return cache / f"neglected-{self.scenario}-{self.seed}-{kind}.parquet"

    def run(self, cache: Path) -> Run:
        """The run, recorded where it is missing."""
        if self.scenario != COMMENTS:
            return recorded(SCENARIOS[self.scenario], self.seed, cache)
        path = cache / f"{COMMENTS}-{self.seed}"
        if not (path / "sets" / "test" / "set.json").exists():
            return comments.record(path, self.seed)
        return open_run(path)


def measured(job: Job, cache: Path) -> pd.DataFrame:
    """A job's rows, from its file or measured now."""
    file = job.file(cache)
    if not file.exists():
        run = job.run(cache)
        data = SCENARIOS[job.scenario].data if job.scenario in SCENARIOS else job.scenario
        began = time.process_time()
        if job.stage:
            examples = list(run.evaluation_set("test").examples())
            every = np.linspace(0, len(examples) - 1, _EXAMPLES[data]).astype(int)
            asked = [examples[number] for number in every]
            found = pd.DataFrame(_groups(run, run.stage(job.stage), job.share, asked))
        else:
            found = pd.DataFrame(_stages(run), columns=["estimator", "stage", "expected", "true"])
        draft = file.with_suffix(".draft")
        found.to_parquet(draft, compression="zstd", index=False)
        draft.replace(file)
        print(f"{file.stem}: {time.process_time() - began:.0f} s of processor time", flush=True)
    own = pd.read_parquet(file)
    known = {"scenario": job.scenario, "seed": job.seed}
    return own.assign(**known, **({"stage": job.stage, "share": job.share} if job.stage else {}))


class _Truth:
    """Models without some examples at the ends of stretches, stepped on from their begin."""

    def __init__(self, run: Run, stage: Stage, places: Places, windows: Sequence[Window]) -> None:
        self.run, self.stage, self.places = run, stage, places
        self.own = LinearStage(run, stage, active_names(run, [stage]), DerivativeOptions())
        self.records = stage.read_steps()
        self.states: dict[int, State] = {}
        state = self.own.start
        for step in range(max((w.begin for w in windows), default=0) + 1):
            if any(window.begin == step for window in windows):
                self.states[step] = state
            state = self._after(state, step, ())

    def _after(self, state: State, step: int, left_out: Sequence[int]) -> State:
        record, loss = self.records[step], self.own.loss
        evaluated = loss.gradient(state.values, record)
        if left_out:
            part = loss.part(state.values, record, left_out)
            gradient = {name: g - part[name] for name, g in evaluated.gradient.items()}
            evaluated = Evaluated(gradient, evaluated.statistics, {}, [])
        return StepMap(self.stage, loss, state, record, evaluated).after

    def at(self, window: Window) -> Mapping[str, Tensor]:
        """The parameters and buffers at a window's end."""
        if window.end is None:
            model = replay_without_rows(self.run, self.stage, self.places, "kept").state.model
            return {name: tensor for name, tensor in model.items()}
        state = self.states[window.begin]
        for step in range(window.begin, window.end):
            state = self._after(state, step, list(self.places.get(step, ())))
        return state.values


def _groups(run: Run, stage: Stage, share: float, asked: list[Example]) -> list[dict[str, object]]:
    """A row per stretch and evaluation example: the effect to first order, expected, and true."""
    rows = training_rows(run, stage)
    names = rows.table["example_id"].to_numpy()
    count = max(1, round(share * len(names)))
    # Another draw than that of `stagelens horizon`.
    chosen = np.random.default_rng(1).choice(names, count, replace=False)
    places = rows.places([str(name) for name in chosen])
    windows = stretches(stage.steps, sorted(places))
    later = sum(other.steps for other in run.stages[stage.index + 1 :])
    truth, found = _Truth(run, stage, places, windows), []

    def reached(end: WindowEnd) -> None:
        both = {n: t - end.first_order[n] - end.neglected[n] for n, t in end.values.items()}
        true = {n: t.to(both[n]) for n, t in truth.at(end.window).items() if n in both}
        asking = (run, end.own, BEHAVIOUR, asked)
        now, first = behaviour_along(*asking, end.values, end.first_order)
        then, without = (behaviour_along(*asking, v, None)[0] for v in (both, true))
        whole = end.window.end is None
        for number, example in enumerate(asked):
            found.append(
                {
                    "begin": end.window.begin,
                    "horizon": -1 if end.window.end is None else end.window.end - end.window.begin,
                    "steps": stage.steps + later if whole else stage.steps,
                    "example": example.example_id,
                    "first": np.float32(first[number]),
                    "expected": np.float32(now[number] - then[number]),
                    "true": np.float32(now[number] - without[number]),
                }
            )

    follow(run, stage, places, windows, reached)
    return found


def _stages(run: Run) -> Iterator[dict[str, object]]:
    """A row per stage and reading: the expected error and the true one."""
    truth = attribute(run, "test", "replay").table
    truth = truth[truth["behaviour"] == BEHAVIOUR]
    for name in ("unrolled-jump", "unrolled-scale"):
        try:
            result = attribute(run, "test", name)
        except Refused:
            continue
        table = result.table[result.table["behaviour"] == BEHAVIOUR]
        for stage in run.stages[:-1]:
            trust = result.trust[stage.name]
            own, real = (t[t["stage"] == stage.name]["effect"].to_numpy() for t in (table, truth))
            known = np.isfinite(own) & np.isfinite(real)
            if trust.neglected is None or not known.any():
                continue
            missed = np.linalg.norm(own[known] - real[known])
            true = float(missed / (np.linalg.norm(real[known]) + 1e-30))
            yield {
                "estimator": name, "stage": stage.name, "expected": trust.neglected, "true": true,
            }  # fmt: skip
