"""Commands that measure: every stage's effect, and how far an estimate can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import typer

from stagelens.compute import processes
from stagelens.effects.results import Result
from stagelens.estimators.coarse_replay import EXACT, CoarseReplay
from stagelens.estimators.durations import paces, replay_seconds, replays_seconds
from stagelens.estimators.protocol import Estimator
from stagelens.estimators.registry import (
    estimate_seconds,
    find,
    help_text,
    make_estimator,
    proposed,
    saves_time,
)
from stagelens.estimators.sharing_out import processes_for
from stagelens.estimators.stage_trust import REPLAY
from stagelens.runs.run import Run
from stagelens.trust import settling
from stagelens.trust.estimates import known_trust
from stagelens.trust.replay_plan import Left, replay_command
from stagelens.trust.trust_columns import with_trust
from stagelens.wording.numbers import measured_time

from .estimator_options import OnlyStagesOption
from .given_data import DatasetOption
from .options import (
    BudgetOption,
    DeviceOption,
    EnsembleOption,
    ExactStagesOption,
    LeafOption,
    ObjectiveOption,
    OptimizerOption,
    ProcessesOption,
    ProgressFile,
    RunFolder,
    SetOption,
    ShardOption,
    SplitBatches,
    TaskOption,
    TimeOption,
    chosen_settings,
    opened_together,
    own_file,
    sharing,
)
from .table_files import check_table_file, write_table
from .terminal import Reporter, print_effects, print_verification, say

commands = typer.Typer()


@commands.command(
    epilog="Examples: stagelens attribute runs/digits --set test --time 30m   "
    "stagelens attribute runs/digits --estimator task-vector --stage shortcut --out effects.csv"
)
def attribute(
    run: RunFolder,
    estimator: Annotated[
        str | None,
        typer.Option(
            help=f"How the model without a stage is obtained: {help_text()}. By default by replay, "
            "as far as this fits into --time, and the rest by coarse-replay."
        ),
    ] = None,
    time: TimeOption = None,
    budget: BudgetOption = None,
    exact_stages: ExactStagesOption = None,
    stage: OnlyStagesOption = None,
    set_name: SetOption = None,
    leaf: LeafOption = None,
    task: TaskOption = None,
    objective: ObjectiveOption = None,
    dataset: DatasetOption = None,
    optimizer: OptimizerOption = None,
    device: DeviceOption = None,
    processes_wanted: ProcessesOption = None,
    split_batches: SplitBatches = False,
    shard: ShardOption = None,
    ensemble: EnsembleOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the effect table, with trust, to a .parquet or .csv file."),
    ] = None,
    progress: ProgressFile = None,
) -> None:
    """Compute every stage's effect on every example of an evaluation set."""
    if time is not None and estimator not in (None, REPLAY):
        raise typer.BadParameter(
            f"a time limit belongs to replay; {estimator} has none: omit --time or --estimator",
            param_hint="--time",
        )
    if exact_stages is not None and estimator is None:
        raise typer.BadParameter(
            "exact stages belong to coarse-replay; add --estimator coarse-replay",
            param_hint="--exact-stages",
        )
    check_table_file(out)
    with Reporter(own_file(progress)).running() as report, processes.joined():
        opened = opened_together(run, task)
        _ = opened.last  # a run without a finished stage is refused as such, not for its sets
        examples = opened.evaluation_set(set_name)
        from stagelens.effects import computing
        from stagelens.trust.verification import keep_agreements, trusted

        settings = chosen_settings(budget, exact_stages)
        replaying = estimator in (None, REPLAY, CoarseReplay.name)
        settings |= sharing(opened, split_batches, shard if replaying or shard else False)
        settings |= {"ensemble": ensemble} if ensemble is not None else {}
        computing.boundaries(opened, examples.name)
        if estimator is None or time is not None:
            if estimator is not None:
                make_estimator(estimator, settings)  # refuses what replay does not take
                settings["estimate"] = False
            settled = settling.settle(
                *(opened, examples.name, time or settling.LIMIT, stage or None, report), **settings
            )
            result, notes = settled.result, _prices(settled.left, run, examples.name, leaf or "")
        else:
            made = make_estimator(estimator, settings)
            there = known_trust(opened, examples.name, made.name, made.settings)
            clock = None if there or stage else _Clock.started(opened, made)
            result = computing.attribute(
                opened, examples.name, made.name, stage or None, report, settings
            )
            # The predicted time is that of all stages, computed now.
            notes = [] if clock is None else _times(opened, result, clock)
        processes.by_main(lambda: keep_agreements(opened, examples.name))
        if estimator is not None and time is None:
            result = trusted(opened, result)
    for note in (*opened.problems, *notes):
        say(f"Note: {note}", err=True)
    print_effects(result)
    if out is not None and not processes.is_worker():
        # Stored tables get their trust when they are read; a file that leaves the run carries it.
        write_table(out, with_trust(result.table, result.trust))


def _prices(left: Sequence[Left], run: str, set_name: str, leaf: str) -> list[str]:
    """What did not fit into the limit, with how long it takes and the command."""
    commands = [replay_command(run, set_name, one.stage, leaf) for one in left]
    return [f"{o.stage}: {o.said}: {c}" for o, c in zip(left, commands, strict=True)]


@dataclass(frozen=True)
class _Clock:
    """When an estimate was begun, and how long helpers should need that share it.

    Attributes:
        began: By the monotonic clock.
        processes: How many share the counterfactuals.
        predicted: Seconds until all are done; None where that is not known.
    """

    began: float
    processes: int
    predicted: float | None

    @classmethod
    def started(cls, run: Run, estimator: Estimator) -> _Clock:
        count = processes_for(run, estimator, run.stages[:-1])
        # The last stage is never left out by replaying.
        without = range(len(run.stages) - 1)
        predicted = replays_seconds(paces(run).stages, without, count)
        return cls(monotonic(), count, predicted)


def _times(run: Run, result: Result, clock: _Clock) -> list[str]:
    """How long an estimate took and should have taken, and whether replay is about as quick."""
    settings, known = result.facts.settings, paces(run)
    predicted = estimate_seconds(known.stages, result.facts.estimator, settings)
    replay = replay_seconds(known.stages)
    if predicted is None or replay is None:
        return []
    took = measured_time(sum(trust.seconds for trust in result.trust.values()))
    source = f"from {known.source}"
    # What each counterfactual took adds up only where one process computed all of them.
    if clock.processes > 1 and clock.predicted is not None:
        took = f"{measured_time(monotonic() - clock.began)} by {clock.processes} processes"
        predicted = clock.predicted
    notes = [f"computed in {took}; predicted, {source}: {measured_time(predicted)}"]
    # No counterfactual replays the first stage: only stages after the one left out run again.
    replayable = all(stage.replayable for stage in run.stages[1:])
    if (
        find(result.facts.estimator).budgets
        and replayable
        and not saves_time(known.stages, result.facts.estimator, settings)
    ):
        notes.append(
            f"replay should take hardly longer on this run ({measured_time(replay)} predicted); "
            f"--estimator {REPLAY} gives exact numbers"
        )
    return notes


@commands.command(
    epilog="Examples: stagelens verify runs/digits --set test   "
    "stagelens verify runs/digits --estimator coarse-replay --budget 0.125 --orders 3 --json"
)
def verify(
    run: RunFolder,
    stage: OnlyStagesOption = None,
    set_name: SetOption = None,
    estimator: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Estimator to verify; may be given several times [{', '.join(proposed())}]."
        ),
    ] = None,
    budget: Annotated[
        list[float] | None,
        typer.Option(help="Budget of coarse-replay; may be given several times [0.25]."),
    ] = None,
    exact_stages: ExactStagesOption = None,
    orders: Annotated[
        int,
        typer.Option(min=0, help="Other orders of the batches to replay, for the noise floor."),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print rows as JSON.")] = False,
    leaf: LeafOption = None,
    task: TaskOption = None,
    objective: ObjectiveOption = None,
    dataset: DatasetOption = None,
    optimizer: OptimizerOption = None,
    device: DeviceOption = None,
    processes_wanted: ProcessesOption = None,
    split_batches: SplitBatches = False,
    shard: ShardOption = None,
    ensemble: EnsembleOption = None,
    progress: ProgressFile = None,
) -> None:
    """Compare estimates with replays, and say how far each number can be trusted."""
    from stagelens.trust import verification

    wanted: list[tuple[str, dict[str, Any]]] = []
    for name in estimator or proposed():
        kind = find(name)
        # Budgets are meant for the estimators that have one; the others are verified as they are.
        given = [{"budget": value} for value in budget or ()] if kind.budgets else []
        exact = {EXACT: exact_stages} if kind.budgets and exact_stages else {}
        wanted += [(name, settings | exact) for settings in given or [kind.default_settings()]]
    with Reporter(own_file(progress)).running() as report, processes.joined():
        opened = opened_together(run, task)
        _ = opened.last  # as for attribute
        examples = opened.evaluation_set(set_name)
        shared = "shard" in sharing(opened, split_batches, shard)
        if shared:
            known = (REPLAY, CoarseReplay.name)
            wanted = [(n, own | {"shard": True} if n in known else own) for n, own in wanted]
        rows = verification.verify(
            *(opened, examples.name, wanted, report),
            *(stage or None, orders, split_batches, ensemble),
            shard=shared,
        )
    if as_json:
        say(rows[list(verification.COLUMNS)].to_json(orient="records", indent=1))
        return
    print_verification(rows)
