"""Replay comes first: as many stages exact as a time limit allows, the others estimated.

The free task vector previews every stage. Then the later stages are replayed without one stage
after the other: first the one whose numbers may be furthest off, by what is known of them and by
how large they seem. A stage is replayed only if that is predicted to fit into what is left of the
limit, from steps timed on this machine just before. What does not fit is estimated by coarse
replay, and said with its price.

Every stage is stored when it is done, so work that is interrupted continues from there. Importing
this module does not import torch; :func:`settle` does work that needs it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from stagelens.compute import processes
from stagelens.contracts import Progress, ProgressCallback, Refused, no_progress
from stagelens.effects.results import Result
from stagelens.estimators.coarse_replay import EXACT, CoarseReplay
from stagelens.estimators.counterfactual_cache import is_cached
from stagelens.estimators.durations import coarse_seconds, paces, without_seconds
from stagelens.estimators.registry import free_estimator, make_estimator
from stagelens.estimators.sharing_out import processes_for
from stagelens.estimators.stage_trust import REPLAY
from stagelens.runs.run import Run, Stage
from stagelens.wording.trust_words import holds

from .estimates import best_result, best_trust
from .replay_plan import (
    STORING,
    TIMED,
    Candidate,
    Left,
    doubt,
    estimated,
    left_out,
    open_stages,
    planned,
    price,
    replayable,
)

LIMIT = 600.0
"""Seconds that the command line and ``stagelens.attribute`` may take, unless they are given."""


@dataclass(frozen=True)
class Settled:
    """What came of settling.

    Attributes:
        result: All stages, each by the estimate that says most of it.
        left: Stages that could be replayed, and were not: these would take longer than is left.
    """

    result: Result
    left: list[Left]


def attribute(
    run: Run,
    set_name: str,
    estimator: str | None = None,
    stages: Sequence[str] | None = None,
    progress: ProgressCallback = no_progress,
    settings: Mapping[str, Any] | None = None,
    limit: float = LIMIT,
) -> Result:
    """Stage effects on an evaluation set: by replay within a time limit, or by an estimator.

    Args:
        run: The run.
        set_name: One of its evaluation sets.
        estimator: How all counterfactuals are obtained; None for replay of what fits into the
            limit and ``coarse-replay`` of the rest. Each row, and what is known of each stage, says
            which estimator it is by.
        stages: Names of stages; None for all.
        progress: Called as the work proceeds.
        settings: Of the estimator, for instance ``{"budget": 0.25}``; None for its defaults.
        limit: Seconds; has no meaning where an estimator is named.

    Raises:
        Refused: The estimator refuses every stage.
        RunError: There is no such stage or set.
    """
    from stagelens.effects import computing  # torch

    if estimator is not None:
        return computing.attribute(run, set_name, estimator, stages, progress, settings)
    unknown = set(settings or {}) - {"budget", "split_batches", "ensemble", "shard"}
    if unknown:
        raise Refused(
            f"the setting {min(unknown)} belongs to an estimator; name it: attribute(run, set, "
            '"coarse-replay", settings=...)'
        )
    return settle(run, set_name, limit, stages, progress, **(settings or {})).result


def settle(
    run: Run,
    set_name: str,
    limit: float = LIMIT,
    stages: Sequence[str] | None = None,
    progress: ProgressCallback = no_progress,
    budget: float | None = None,
    split_batches: bool = False,
    estimate: bool = True,
    ensemble: bool | None = None,
    shard: bool = False,
) -> Settled:
    """As many stages exact as the limit allows, the others estimated; stored stage by stage.

    Args:
        run: The run.
        set_name: One of its evaluation sets.
        limit: Seconds for all replays. What is under way when it ends is finished, and what does
            not fit is then estimated, which takes as long again at most.
        stages: Names of stages; None for all.
        progress: Called as the work proceeds.
        budget: Of coarse replay, for what does not fit; None for the largest that fits.
        split_batches: See :class:`~stagelens.estimators.replay.Replay`.
        estimate: Whether what does not fit is estimated by coarse replay.
        ensemble: See :class:`~stagelens.estimators.replay.Replay`. None for what does not fit one
            by one, where an ensemble should be quicker.
        shard: See :class:`~stagelens.estimators.replay.Replay`.

    Raises:
        Refused: Training diverged, or a loss that was given is not the recorded one.
        RunError: There is no such stage or set.
    """
    settings = {"split_batches": split_batches, "ensemble": ensemble, "shard": shard}
    return _Settling(run, set_name, limit, stages, progress, settings).work(budget, estimate)


class _Settling:
    """One call of :func:`settle`: what it works on, and what it has learned so far."""

    def __init__(
        self,
        run: Run,
        set_name: str,
        limit: float,
        stages: Sequence[str] | None,
        progress: ProgressCallback,
        settings: Mapping[str, Any],
    ) -> None:
        self.began = time.monotonic()
        self.run, self.set_name, self.limit = run, set_name, limit
        _ = run.last  # refuses a run without a finished stage, by name
        self.names = [run.stage(name).name for name in stages or [s.name for s in run.stages]]
        self.settings = settings
        self.examples = run.measurable_set(set_name)
        self.overall = Progress(progress)
        self.refused: set[str] = set()
        # Seconds that replays took and should have taken, to correct the other predictions.
        self.took = self.expected = 0.0

    @property
    def left(self) -> float:
        """Seconds left of the limit."""
        return self.limit - (time.monotonic() - self.began)

    @property
    def factor(self) -> float:
        """How much longer replays take than was predicted."""
        return min(max(self.took / self.expected, 0.2), 5.0) if self.expected else 1.0

    def work(self, budget: float | None, estimate: bool) -> Settled:
        from stagelens.effects.computing import attribute as attributed  # torch
        from stagelens.estimators import pace
        from stagelens.estimators.replay_check import check_given

        # Refused here: of replays that are refused, settling falls back to estimates.
        if processes.by_main(lambda: any(replayable(self.run, one) for one in self._open())):
            check_given(self.run)
        free = free_estimator().name
        preview = attributed(
            self.run, self.set_name, free, None, self.overall.part(0.0, 0.05, "Preview: ")
        )
        exact = [name for name, known in preview.trust.items() if known.trust == "exact"]
        sizes = _sizes(preview)
        report = self.overall.part(0.05, TIMED)

        def time_steps() -> list[str]:
            open_ = [stage for stage in self._open() if replayable(self.run, stage)]
            later = self.run.stages[open_[0].index + 1 :] if open_ else []
            if later:
                pace.measure_paces(self.run, self.examples, later, report)
            return [stage.name for stage in later]

        # The main process decides throughout: what others see and measure may differ.
        timed = processes.by_main(time_steps)
        done = TIMED
        while wave := processes.by_main(lambda: self._next(sizes)):
            share = wave.share * (0.9 - done)
            report = self.overall.part(done, done + share)
            self._replay(wave, exact, report)
            done += share
        if processes.by_main(lambda: self.expected):
            later = [self.run.stage(name) for name in timed]
            processes.by_main(lambda: pace.scale_timings(self.run, later, self.factor))
        if estimate:
            self._estimate(budget, sizes, self.overall.part(done, 1.0))
        left = [each for each in left_out(self.run, self.set_name) if each.stage in self.names]
        left = [each for each in left if each.stage not in self.refused]
        return Settled(best_result(self.run, self.set_name, self.names), left)

    def _open(self) -> list[Stage]:
        return [
            stage
            for stage in open_stages(self.run, self.set_name)
            if stage.name in self.names and stage.name not in self.refused
        ]

    def _next(self, sizes: Mapping[str, float]) -> _Wave:
        """What is replayed next: one stage for each process of the job, or all of an ensemble."""
        known, trust = paces(self.run), best_trust(self.run, self.set_name)
        candidates = []
        for stage in self._open():
            if not replayable(self.run, stage):
                continue
            seconds, checks = price(self.run, known, stage, self.examples.count)
            candidates.append(
                Candidate(
                    stage.name,
                    sizes.get(stage.name, float("inf")),
                    doubt(trust.get(stage.name)),
                    None if seconds is None else self.factor * seconds,
                    {name: self.factor * each for name, each in checks.items()},
                )
            )
        stages = [self.run.stage(each.stage) for each in candidates]
        count, ensemble = self._processes(stages), bool(self.settings["ensemble"])
        found = planned(candidates, count * self.left, self.left)
        if len(found) < len(candidates) and self._quicker_together(stages):
            # Two passes for all: calls take somewhat longer than for one network.
            found, ensemble = planned(candidates, len(stages) * self.left, self.left / 2), True
        if ensemble:
            count = len(found)
        total = sum(each.price() or 0.0 for each in found)
        wave = found[:count]
        share = sum(each.price() or 0.0 for each in wave) / total if total else 1.0
        return _Wave([each.stage for each in wave], share, ensemble)

    def _quicker_together(self, stages: Sequence[Stage]) -> bool:
        """Whether stages that do not fit one by one should be replayed as an ensemble."""
        from stagelens.estimators.replay_together import fitting, on_small_gpu

        if self.settings["ensemble"] is not None or processes.count() > 1:
            return False
        return on_small_gpu(self.run, stages) and len(fitting(self.run, stages)) == len(stages)

    def _processes(self, stages: Sequence[Stage]) -> int:
        """How many whole counterfactuals are replayed at a time."""
        if self.settings["split_batches"] or self.settings["shard"]:
            return 1  # what sharing saves is not known beforehand
        if processes.count() > 1:
            return processes.count()
        return processes_for(self.run, make_estimator(REPLAY), stages)

    def _replay(self, wave: _Wave, exact: Sequence[str], report: ProgressCallback) -> None:
        from stagelens.effects.computing import attribute as attributed

        stages = paces(self.run).stages
        fresh = {
            name: without_seconds(stages, self.run.stage(name).index)
            for name in wave.stages
            if not is_cached(self.run, self.run.stage(name), REPLAY)
        }
        # What is exact anyway joins the table at no cost.
        names = [s.name for s in self.run.stages if s.name in wave.stages or s.name in exact]
        try:
            settings = {**self.settings, "ensemble": wave.ensemble}
            result = attributed(self.run, self.set_name, REPLAY, names, report, settings)
        except Refused:
            self.refused |= set(wave.stages)
            return
        # One that deviates by more than the effect stays open, but trying again would not help.
        self.refused |= {name for name in wave.stages if result.trust[name].trust == "refused"}
        for name, expected in fresh.items():
            known = result.trust[name]
            # An ensemble's time says nothing of replays one by one.
            if expected and known.trust != "refused" and not known.ensemble:
                self.took += result.trust[name].seconds
                self.expected += expected

    def _estimate(
        self, budget: float | None, sizes: Mapping[str, float], progress: Progress
    ) -> None:
        """Coarse replay of what is left, unless some is stored already."""
        from stagelens.effects.computing import attribute as attributed

        if not CoarseReplay.possible(self.run):
            return

        def decided() -> tuple[list[str], float | None]:
            there = estimated(self.run, self.set_name)
            open_ = open_stages(self.run, self.set_name)
            left = [s for s in open_ if s.name in self.names and s.name not in there]
            return [s.name for s in left], self._budget(left, budget, progress) if left else None

        names, chosen = processes.by_main(decided)
        if chosen is None:
            return
        report = progress.part(0.1, 0.6)
        try:
            attributed(
                self.run, self.set_name, CoarseReplay.name, names, report, {"budget": chosen}
            )
        except Refused:
            return  # the preview stays
        report = progress.part(0.6, 1.0)
        while found := processes.by_main(lambda: self._partly(names, sizes)):
            names.remove(found)
            settings = {"budget": CoarseReplay.default_budget, EXACT: 1}
            with suppress(Refused):
                attributed(self.run, self.set_name, CoarseReplay.name, [found], report, settings)

    def _partly(self, names: Sequence[str], sizes: Mapping[str, float]) -> str | None:
        """The most feared stage of which there is time to replay the first later stage exactly.

        That shows how far off cheap replay is in this very run. None where there is no such stage.
        """
        stages, trust = paces(self.run).stages, best_trust(self.run, self.set_name)
        budget, found = CoarseReplay.default_budget, []
        for name in names:
            index, known = self.run.stage(name).index, trust.get(name)
            first, rest = stages[index + 1].seconds, coarse_seconds(stages, budget, [index])
            # Where only one stage follows, this would be a replay of all that follows.
            if index + 2 >= len(stages) or first is None or rest is None:
                continue
            if known is not None and holds(known):
                continue
            if first + rest <= self.left:
                found.append((sizes.get(name, 0.0) * doubt(known), name))
        return max(found)[1] if found else None

    def _budget(
        self, stages: Sequence[Stage], given: float | None, progress: ProgressCallback
    ) -> float | None:
        """The largest budget that fits into what is left, else the default; None if none does."""
        from stagelens.estimators import pace

        first = min(stage.index for stage in stages)
        indices = [stage.index for stage in stages]
        offered = sorted(CoarseReplay.budgets.values(), reverse=True)
        usual = CoarseReplay.default_budget if given is None else given
        for budget in offered if given is None else [given]:
            rough = coarse_seconds(paces(self.run).stages, budget, indices)
            if rough is not None and rough > 3 * max(self.left, 0.0) and budget != usual:
                continue  # too far off to be worth timing
            if self.left > 0:
                pace.measure_coarse(self.run, self.run.stages[first + 1 :], budget, progress)
            seconds = coarse_seconds(paces(self.run).stages, budget, indices)
            if seconds is None or seconds + self._measuring(len(stages)) <= self.left:
                return budget
        seconds = coarse_seconds(paces(self.run).stages, usual, indices)
        return usual if seconds is None or seconds <= self.limit else None

    def _measuring(self, stages: int) -> float:
        """Seconds for measuring and storing coarse replays: four models each."""
        models = 4 * self.examples.count * (paces(self.run).example or 0.0)
        return stages * (STORING + models)


@dataclass(frozen=True)
class _Wave:
    """Stages to replay now.

    Attributes:
        stages: Their names.
        share: Of what is still to be replayed, in time.
        ensemble: Whether all of them at once.
    """

    stages: list[str]
    share: float
    ensemble: bool

    def __bool__(self) -> bool:
        return bool(self.stages)


def _sizes(preview: Result) -> dict[str, float]:
    """Stage to the root mean square of its effects on the first behaviour."""
    table = preview.table[preview.table["behaviour"] == preview.facts.behaviours[0].name]
    found = {}
    for stage, rows in table.groupby("stage", sort=False):
        # Examples without a label have no effect.
        effects = rows["effect"].to_numpy(dtype=float)
        effects = effects[np.isfinite(effects)]
        found[str(stage)] = float(np.sqrt(np.mean(effects**2))) if len(effects) else float("inf")
    return found
