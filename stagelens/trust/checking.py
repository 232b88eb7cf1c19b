"""What holds of a run: its files, its recording, and its stored numbers; ``stagelens check``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from stagelens.contracts import (
    Progress,
    ProgressCallback,
    StageLensError,
    TaskError,
    no_progress,
)
from stagelens.effects.results import load_result, stored_results
from stagelens.estimators.registry import estimate_name
from stagelens.estimators.reproduction import STEPS, StepCheck, keep_step_check
from stagelens.runs import fact_tables
from stagelens.runs.files import is_sealed, read_only
from stagelens.runs.run import Run, Stage
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.wording.numbers import count_text

EXAMPLES = 16
"""Examples of each stored table whose effects are computed again."""


@dataclass(frozen=True)
class Checked:
    """One thing that was looked at.

    Attributes:
        what: What it is, such as ``stage pretrain: files``.
        holds: Whether it is as it should be; None where that cannot be told.
        said: What was found, in a sentence.
    """

    what: str
    holds: bool | None
    said: str


def check_run(
    run: Run, full: bool = False, progress: ProgressCallback = no_progress
) -> Iterator[Checked]:
    """Verify every digest of a run, and compute a sample of what it says again.

    What came of running steps again is kept with the run, so that estimates through a stage that
    does not reproduce are not relied on.

    Args:
        run: The run, opened, so that its descriptions fit together.
        full: Whether to replay every step of every stage, instead of a few after each recorded
            state.
        progress: Called for every stage and table.
    """
    yield from _descriptions(run)
    # Before steps are run again, which writes what they gave in place of what is stored.
    stored = list(_results(run))
    overall = Progress(progress)
    work = len(run.stages) + 1
    for number, stage in enumerate(run.stages):
        report = overall.piece(number, work)
        report(0.0, f"Files of stage {stage.name}")
        yield from _files(run, stage)
        yield _steps(run, stage, full, report)
    for name in run.set_names:
        yield _set(run, name)
    yield from stored
    overall.piece(len(run.stages), work)(0.0, "Stored numbers")
    yield from _numbers(run)


def _files(run: Run, stage: Stage) -> Iterator[Checked]:
    what, named = f"stage {stage.name}: files", list(stage.facts.files())
    wrong = []
    for reference in named:
        try:
            run.files.verified(reference)
        except StageLensError as error:
            wrong.append(Checked(what, False, str(error)))
    yield from wrong or [Checked(what, True, f"{count_text(len(named), 'file')} as recorded")]


def _set(run: Run, name: str) -> Checked:
    what = f"set {name}"
    try:
        EvaluationSet.open(run.path, name).verify()
        if is_sealed(run.path / "sets" / name / "set.json") is None:
            return Checked(what, None, "its description has no checksum; see run.json")
        run.measurable_set(name)
    except TaskError as error:
        return Checked(what, None, str(error))
    except StageLensError as error:
        return Checked(what, False, str(error))
    return Checked(what, True, "as it was added")


def _descriptions(run: Run) -> Iterator[Checked]:
    if is_sealed(run.path / "run.json") is None:
        yield Checked(
            "run.json",
            None,
            "it has no checksum, as an earlier version wrote it; bring the run to the present "
            f"layout with: stagelens upgrade {run.path}",
        )
    else:
        yield Checked("run.json", True, "as it was written")
    for stage in run.unfinished:
        yield Checked(f"stage {stage.name}", None, "its recording was not finished")


def _steps(run: Run, stage: Stage, full: bool, progress: ProgressCallback) -> Checked:
    from stagelens.estimators.replay_check import check_replay  # here, because it imports torch
    from stagelens.replaying.reproduction import sample_steps

    what = f"stage {stage.name}: steps"
    if not stage.steps:
        return Checked(what, None, "no steps were recorded")
    if stage.facts.problem is not None:
        return Checked(what, False, f"told while it was recorded: {stage.facts.problem}")
    try:
        if full:
            found = check_replay(run, stage, progress)
            if found.bitwise:
                return Checked(what, True, f"all {stage.steps:,} replay bit for bit")
            since = (
                "" if found.misfit is None else f"; the first that does not fit is {found.misfit}"
            )
            here = "here, as it was recorded," if found.as_recorded else "on this machine"
            said = (
                f"replayed {here} they end {found.relative:.1e} of the stage's change away{since}"
            )
            return Checked(what, False if found.as_recorded or found.problem else None, said)
        progress(0.5, f"Steps of stage {stage.name}")
        sampled = sample_steps(run.task, stage, STEPS, everywhere=True)
    except StageLensError as error:
        return Checked(what, None, str(error))
    except Exception as error:  # the task's own code may raise anything
        return Checked(what, None, f"they cannot be run again ({type(error).__name__}: {error})")
    check = StepCheck(run_digest="", stage=stage.name, **asdict(sampled))
    # A run with a damaged table of steps has no digest that a check could be kept under.
    with suppress(StageLensError):
        check = check.model_copy(update={"run_digest": run.digest})
        if not read_only():
            keep_step_check(run, check)
    if check.problem:
        return Checked(what, False, check.problem)
    if not check.steps:
        return Checked(what, None, "none can be run again here: their batches were not kept")
    return Checked(what, True, f"{check.steps} of {stage.steps:,} run again, with the same losses")


def _results(run: Run) -> Iterator[Checked]:
    """Stored tables and descriptions; what is damaged is computed again when it is asked for."""
    found: dict[bool | None, list[Path]] = {True: [], False: [], None: []}
    for folder in ("results", "findings", "slices", "scores"):
        for path in sorted((run.path / folder).rglob("*")):
            if path.suffix == ".parquet":
                found[_table_holds(path)].append(path)
            elif path.suffix == ".json":
                found[is_sealed(path)].append(path)
    for path in found[False]:
        said = "it was changed after it was written; delete it, and have it computed again"
        yield Checked(str(path.relative_to(run.path)), False, said)
    if found[None]:
        said = (
            f"{count_text(len(found[None]), 'file')} of an earlier version, without checksums: "
            "delete them to have their numbers computed again"
        )
        yield Checked("results", None, said)
    if found[True]:
        yield Checked("results", True, f"{count_text(len(found[True]), 'file')} as written")


def _table_holds(path: Path) -> bool | None:
    if not fact_tables.is_intact(path):
        return False
    return None if fact_tables.checksum(path) is None else True


def _numbers(run: Run) -> Iterator[Checked]:
    from stagelens.effects.recomputing import recomputed  # here, because it imports torch

    for name in run.set_names:
        try:
            stored = stored_results(run, name)
        except StageLensError as error:  # already found damaged above
            yield Checked(f"effects on set {name}", None, str(error))
            continue
        for facts in stored:
            what = f"effects by {estimate_name(facts.estimator, facts.settings)} on set {name}"
            result = load_result(run, name, "effects", facts.estimator, facts.settings)
            try:
                if result is None:
                    yield Checked(what, False, "the table cannot be read")
                    continue
                compared, wrong = recomputed(run, result, EXAMPLES)
            except StageLensError as error:
                yield Checked(what, None, str(error))
                continue
            if wrong:
                yield Checked(what, False, "; ".join(wrong))
            elif not compared:
                yield Checked(what, None, "the models behind it are no longer there")
            else:
                yield Checked(what, True, f"{compared:,} numbers computed again, all the same")
