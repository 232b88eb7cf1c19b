"""Commands that measure: every stage's effect, and how far an estimate can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stagelens.compute import processes
from stagelens.effects.results import Result, stored_results
from stagelens.estimators.durations import replay_seconds
from stagelens.estimators.registry import (
    default_estimator,
    estimate_seconds,
    find,
    help_text,
    make_estimator,
    proposed,
    saves_time,
)
from stagelens.estimators.stage_trust import REPLAY
from stagelens.runs.run import Run
from stagelens.wording.numbers import measured_time
from stagelens.wording.trust_words import trust_word

from .options import (
    BudgetOption,
    DeviceOption,
    ProcessesOption,
    ProgressFile,
    RunFolder,
    SetOption,
    SplitBatches,
    TaskOption,
    opened_together,
    own_file,
)
from .table_files import check_table_file, write_table
from .terminal import Reporter, print_effects, print_verification, say

commands = typer.Typer()


@commands.command(
    epilog="Examples: stagelens attribute runs/digits --set test   "
    "stagelens attribute runs/digits --estimator task-vector --stage shortcut --out effects.csv"
)
def attribute(
    run: RunFolder,
    estimator: Annotated[
        str | None,
        typer.Option(
            help=f"How the model without a stage is obtained: {help_text()}. By default the best "
            "of those that the recording allows and that cost less than replay."
        ),
    ] = None,
    budget: BudgetOption = None,
    stage: Annotated[
        list[str] | None, typer.Option(help="Only this stage; may be given several times.")
    ] = None,
    set_name: SetOption = None,
    task: TaskOption = None,
    device: DeviceOption = None,
    processes_wanted: ProcessesOption = None,
    split_batches: SplitBatches = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the effect table, with trust, to a .parquet or .csv file."),
    ] = None,
    progress: ProgressFile = None,
) -> None:
    """Compute every stage's effect on every example of an evaluation set."""
    check_table_file(out)
    with Reporter(own_file(progress)).running() as report, processes.joined():
        opened = opened_together(run, task)
        _ = opened.last  # a run without a finished stage is refused as such, not for its sets
        examples = opened.evaluation_set(set_name)
        from stagelens.effects import computing
        from stagelens.trust.verification import keep_agreements, trusted

        settings: dict[str, Any] = {} if budget is None else {"budget": budget}
        settings |= {"split_batches": True} if split_batches else {}
        made = make_estimator(estimator or default_estimator(opened), settings)
        used = made.name, dict(made.settings)
        # Asked before the work, which stores its result.
        stored = used in [(f.estimator, f.settings) for f in stored_results(opened, examples.name)]
        computing.boundaries(opened, examples.name)
        result = computing.attribute(
            opened, examples.name, made.name, stage or None, report, settings
        )
        processes.by_main(lambda: keep_agreements(opened, examples.name))
        result = trusted(opened, result)
    # The predicted time is that of all stages, computed now.
    notes = [] if stored or stage else _times(opened, result)
    for note in (*opened.problems, *notes):
        say(f"Note: {note}", err=True)
    print_effects(result)
    if out is not None and not processes.is_worker():
        # Stored tables get their trust when they are read; a file that leaves the run carries it.
        rows = zip(result.table["stage"], result.table["behaviour"], strict=True)
        words = [trust_word(result.trust[stage], behaviour) for stage, behaviour in rows]
        write_table(out, result.table.assign(trust=words))


def _times(run: Run, result: Result) -> list[str]:
    """How long an estimate took and should have taken, and whether replay is about as quick."""
    settings = result.facts.settings
    predicted = estimate_seconds(run.stages, result.facts.estimator, settings)
    replay = replay_seconds(run.stages)
    if predicted is None or replay is None:
        return []
    took = measured_time(sum(trust.seconds for trust in result.trust.values()))
    notes = [f"computed in {took}; predicted, without other load: {measured_time(predicted)}"]
    # No counterfactual replays the first stage: only stages after the one left out run again.
    replayable = all(stage.replayable for stage in run.stages[1:])
    if (
        find(result.facts.estimator).budgets
        and replayable
        and not saves_time(run.stages, result.facts.estimator, settings)
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
    stage: Annotated[
        list[str] | None, typer.Option(help="Only this stage; may be given several times.")
    ] = None,
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
    orders: Annotated[
        int,
        typer.Option(min=0, help="Other orders of the batches to replay, for the noise floor."),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print rows as JSON.")] = False,
    task: TaskOption = None,
    device: DeviceOption = None,
    processes_wanted: ProcessesOption = None,
    split_batches: SplitBatches = False,
    progress: ProgressFile = None,
) -> None:
    """Compare estimates with replays, and say how far each number can be trusted."""
    from stagelens.trust import verification

    wanted: list[tuple[str, dict[str, Any]]] = []
    for name in estimator or proposed():
        kind = find(name)
        # Budgets are meant for the estimators that have one; the others are verified as they are.
        given = [{"budget": value} for value in budget or ()] if kind.budgets else []
        wanted += [(name, settings) for settings in given or [kind.default_settings()]]
    with Reporter(own_file(progress)).running() as report, processes.joined():
        opened = opened_together(run, task)
        _ = opened.last  # as for attribute
        examples = opened.evaluation_set(set_name)
        rows = verification.verify(
            opened, examples.name, wanted, report, stage or None, orders, split_batches
        )
    if as_json:
        say(rows[list(verification.COLUMNS)].to_json(orient="records", indent=1))
        return
    print_verification(rows)
