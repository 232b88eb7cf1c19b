"""Arguments that several commands take, and how they open a run."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from stagelens.compute import helpers, processes, temporaries
from stagelens.contracts import StageLensError, TaskError, optimizer_rule
from stagelens.contracts.optimizer_registry import GIVEN
from stagelens.derivatives.curvature_kinds import Curvature
from stagelens.estimators.coarse_replay import EXACT
from stagelens.runs.files import read_only
from stagelens.runs.remote import Origin, is_remote
from stagelens.runs.run import Run, open_run
from stagelens.runs.sets.columns import SetColumns

from .ending import at_end, set_until_end
from .given_data import given_datasets
from .terminal import say

RunFolder = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="The run folder, or its address, for instance s3://bucket/run."
    ),
]
SetOption = Annotated[
    str | None, typer.Option("--set", help="Evaluation set; by default the only one, or test.")
]
BudgetOption = Annotated[
    float | None,
    typer.Option(
        "--budget", help="What coarse-replay may spend, as a share of replay's cost [0.25]."
    ),
]
ExactStagesOption = Annotated[
    int | None,
    typer.Option(
        "--exact-stages",
        min=0,
        help="How many of the first later stages coarse-replay replays exactly, beyond its budget, "
        "before it goes on cheaply [0].",
    ),
]
_TIME = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?")


def parse_time(text: str) -> float:
    """Seconds of a time as people write it: ``30m``, ``90s``, ``1h30m``, or plain seconds.

    Raises:
        typer.BadParameter: It is none, or no time at all.
    """
    found = _TIME.fullmatch(text.strip().lower())
    hours, minutes, seconds = (float(part or 0) for part in found.groups()) if found else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if not total:
        raise typer.BadParameter(f"{text!r} is no time; give one like 90s, 30m, 2h or 1h30m")
    return total


TimeOption = Annotated[
    float | None,
    typer.Option(
        "--time",
        parser=parse_time,
        metavar="TIME",
        help="How long replays may take together: 90s, 30m, 2h, or seconds; what does not fit is "
        "estimated [10m].",
    ),
]


CurvatureOption = Annotated[
    Curvature,
    typer.Option(
        help="What stands for second derivatives of the loss along the path; the optimiser's own "
        "dynamics are exact with each. Measured: docs/training-data.md.",
    ),
]


def groups_of(given: Sequence[str] | None) -> dict[str, str]:
    """Column to value of ``--group COLUMN=VALUE``, which may be given several times.

    Raises:
        StageLensError: One lacks its "=", or two name the same column.
    """
    groups = dict(each.split("=", 1) for each in given or [] if "=" in each)
    if len(groups) != len(given or []):
        raise StageLensError("--group takes COLUMN=VALUE, each column once; for instance label=4")
    return groups


TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="MODULE:CLASS",
        help="The run's task, where it is not installed. It is made from the recorded config.",
    ),
]
_OBJECTIVES = "STAGELENS_OBJECTIVES"
"""Stage to objective, as ``stage=module:function``, separated by commas."""


def _use_objectives(given: list[str] | None) -> list[str] | None:
    if given:
        set_until_end(_OBJECTIVES, ",".join(given))
    return given


_LEAF = "STAGELENS_LEAF"
"""The leaf that ``--leaf`` names."""


def _use_leaf(name: str | None) -> str | None:
    if name is not None:
        set_until_end(_LEAF, name)
    return name


LeafOption = Annotated[
    str | None,
    typer.Option(
        "--leaf",
        metavar="STAGE",
        callback=_use_leaf,
        help="Whose model's history is meant, where stages branch off; by default the only leaf.",
    ),
]


def _use_optimizers(given: list[str] | None) -> list[str] | None:
    if given:
        set_until_end(GIVEN, ",".join(given))
        for one in given:  # at once, so that a mistake is told before any work
            optimizer_rule(one.partition("=")[0])
    return given


def _objectives() -> dict[str, Any]:
    """Stage to the objective that the user gave for it.

    Raises:
        TaskError: One cannot be imported, or is none.
    """
    found = {}
    for one in filter(None, os.environ.get(_OBJECTIVES, "").split(",")):
        stage, _, target = one.partition("=")
        if not target:
            raise TaskError(f"--objective {one}: give it as STAGE=package.module:function")
        from stagelens.tasks.objectives import load_objective

        found[stage] = load_objective(target)
    return found


ObjectiveOption = Annotated[
    list[str] | None,
    typer.Option(
        "--objective",
        metavar="STAGE=MODULE:FUNCTION",
        callback=_use_objectives,
        help="What a stage minimised, where that is a loss of your own; may be given several "
        "times.",
    ),
]
OptimizerOption = Annotated[
    list[str] | None,
    typer.Option(
        "--optimizer",
        metavar="NAME=MODULE:CLASS",
        callback=_use_optimizers,
        help="An optimiser of your own that a stage was recorded with, by the name that it was "
        "registered by; may be given several times.",
    ),
]
_COLUMNS = {
    "label": 'Column of the labels; "" for a set without labels.',
    "id": "Column of stable ids; by default row numbers or names.",
    "text": "Column of the texts.",
    "other": "Column of texts to compare these with, for sentence embeddings.",
    "completion": "Column of completions, for a language or reward model.",
    "prompt": "Column of their prompts [prompt, where there is one].",
    "rejected": "Column of rejected completions or texts [rejected, where there is one].",
    "image": "Column of the images, or of their paths.",
}
"""Role of a column to the help text of its option."""


def with_columns(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option per role in place of its parameter ``columns``, a SetColumns."""
    # Evaluated, because annotations are strings here and typer reads what is in Annotated.
    signature = inspect.signature(command, eval_str=True)
    options = {f"{role}_column": (words, role) for role, words in _COLUMNS.items()}
    options["split"] = ("Split of a saved dataset.", "split")

    @functools.wraps(command)
    def run(**given: Any) -> None:
        asked = {role: given.pop(name) for name, (_, role) in options.items()}
        command(**given, columns=SetColumns(**asked, flags=True))

    parameters = []
    for parameter in signature.parameters.values():
        if parameter.name != "columns":
            parameters.append(parameter)
            continue
        for name, (words, role) in options.items():
            kind = Annotated[str | None, typer.Option(help=words)]
            default = getattr(SetColumns, role)
            parameters.append(
                inspect.Parameter(name, parameter.kind, default=default, annotation=kind)
            )
    # typer takes parameters from the signature, and their types from the annotations.
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _use_device(name: str | None) -> str | None:
    if name is not None:
        # Where work is placed, only the environment is asked.
        os.environ["STAGELENS_DEVICE"] = name
    return name


DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        callback=_use_device,
        help="auto, cpu, cuda or cuda:N [STAGELENS_DEVICE, or auto: a GPU where there is one; "
        "a stage that was recorded on the CPU is replayed there].",
    ),
]


def _use_processes(count: int | None) -> int | None:
    if count is not None:
        # What shares work out looks there, and so does whoever starts this command.
        set_until_end(helpers.ASKED, str(count))
    return count


ProcessesOption = Annotated[
    int | None,
    typer.Option(
        "--processes",
        min=1,
        callback=_use_processes,
        help="How many processes share whole counterfactuals and models; 1 for this one alone "
        "[STAGELENS_PROCESSES, or as many as cores and memory allow, where that is faster].",
    ),
]
SplitBatches = Annotated[
    bool,
    typer.Option(
        "--split-batches",
        help="Processes share every batch of a replay, instead of whole counterfactuals.",
    ),
]
ShardOption = Annotated[
    bool | None,
    typer.Option(
        "--shard/--no-shard",
        help="Processes that a launcher started hold parts of the model in a replay (torch's "
        "fully_shard), and replay each counterfactual together [where a stage was trained so].",
    ),
]
EnsembleOption = Annotated[
    bool | None,
    typer.Option(
        "--ensemble/--no-ensemble",
        help="Replay all counterfactuals as one ensemble of networks: quicker on a GPU, but never "
        "exact; the deviation is measured [only within --time, for small networks on a GPU that do "
        "not fit one by one].",
    ),
]
ProgressFile = Annotated[Path | None, typer.Option("--progress", hidden=True)]


def chosen_settings(budget: float | None, exact_stages: int | None) -> dict[str, Any]:
    """Settings of an estimator, of those that the user gave."""
    given = {"budget": budget, EXACT: exact_stages}
    return {name: value for name, value in given.items() if value is not None}


def sharing(run: Run, split_batches: bool, shard: bool | None) -> dict[str, Any]:
    """Settings of replay that say what the processes of a launcher share; those that are on."""
    if shard is None:
        layouts = [each.facts.parallel for each in run.stages]
        recorded = any(one is not None and one.kind == "fsdp2" for one in layouts)
        shard = recorded and not split_batches and processes.count() > 1
    wanted = {"split_batches": split_batches, "shard": shard}
    return {name: True for name, on in wanted.items() if on}


def opened_with(path: str, task: str | None, leaf: str | None = None) -> Run:
    """The run, with the task that the user names; by default the installed one.

    What the command computes for a remote run is uploaded when it ends.

    Args:
        path: The run folder.
        task: The task's class, if any.
        leaf: Whose history it is; None for the one that ``--leaf`` names, or the only one.
    """
    leaf = leaf or os.environ.get(_LEAF)
    run = open_run(path, leaf=leaf)
    # All processes work on one copy, which the main one uploads.
    if is_remote(path) and not processes.is_worker():
        at_end.callback(_upload, run.path)
    if not read_only() and not processes.is_worker():
        temporaries.sweep_below(run.path)
    objectives, datasets = _objectives(), given_datasets()
    # run.path is the local copy of a remote run, which need not be fetched again.
    if task is None:
        given = objectives or datasets
        return open_run(run.path, None, objectives, leaf, datasets) if given else run
    from stagelens.tasks import load_task_class, make_task

    found = load_task_class(task)
    made = make_task(found, run.file.task.config, run.task_assets())
    opened = open_run(run.path, made, objectives, leaf, datasets)
    try:
        _check_task(opened, task)
    except StageLensError:
        opened.given.forget()  # pages go on showing what others stored
        raise
    return opened


def _upload(copy: Path) -> None:
    origin = Origin(copy)
    try:
        origin.upload()
    # The results are computed and kept here, so the command has not failed.
    except StageLensError as error:
        say(f"Note: results are kept only in {copy}: {error}", err=True)


def opened_together(path: str, task: str | None) -> Run:
    """:func:`opened_with` in every process that shares the command's work."""
    opened: list[Run] = []
    processes.together(lambda: opened.append(opened_with(path, task)))
    processes.check_shared(opened[0].path)
    if processes.count() == 1:
        # Until the command ends: verify and the default estimator share out work more than once.
        at_end.enter_context(helpers.allowed(opened[0].path, _helping(opened[0], task)))
    elif helpers.asked() is not None:
        raise StageLensError(
            f"a launcher started {processes.count()} processes, which share the work already; omit "
            "--processes, and STAGELENS_PROCESSES"
        )
    return opened[0]


def _helping(run: Run, task: str | None) -> list[str]:
    """The command of a helper process."""
    chosen = [] if task is None else ["--task", task]
    return helpers.command(run.path, *chosen)


def own_file(progress: Path | None) -> Path | None:
    """Where this process writes its progress: only the main one does."""
    return None if processes.is_worker() else progress


def _check_task(run: Run, given: str) -> None:
    """Refuse a class that is not the run's, even if stored results could answer without it."""
    if run.task.name != run.file.task.name:
        raise TaskError(
            f"--task {given} is the task {run.task.name!r}, but the run was recorded with "
            f"{run.file.task.name!r}; give the class that it was recorded with"
        )
    if run.stages:
        # A class of the right name may still build another model.
        from stagelens.runs.states import load_into

        load_into(run.task.build_empty(run.last.facts.build_config), run.last.end().model)
