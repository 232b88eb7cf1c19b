"""The command line: the same functions that the dashboard's jobs run."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .contracts import StageLensError, TaskError
from .durations import coarse_saves_time, estimate_seconds, measured, replay_seconds
from .results import Result, stored_results
from .runs.files import atomic_path, check_writable
from .runs.run import Run, open_run
from .terminal import (
    Reporter,
    one_line,
    print_effects,
    print_features,
    print_removal,
    print_verification,
)

app = typer.Typer(
    name="stagelens",
    help="Which stage of a model's training is to credit or to blame, how much, and what would "
    "the model do without it?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")]
TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="MODULE:CLASS",
        help="The run's task, where it is not installed. It is made from the recorded config.",
    ),
]
ProgressFile = Annotated[Path | None, typer.Option("--progress", hidden=True)]
DEMOS = ("digits", "comments")


def _open(path: Path, task: str | None) -> Run:
    if task is None:
        return open_run(path)
    from .tasks import load_task_class, make_task

    found = load_task_class(task)
    run = open_run(path)
    opened = open_run(path, make_task(found, run.file.task.config, run.task_assets()))
    _check_task(opened, task)
    return opened


def _check_task(run: Run, given: str) -> None:
    """Refuse a class that is not the run's, also where stored results would answer without it."""
    if run.task.name != run.file.task.name:
        raise TaskError(
            f"--task {given} is the task {run.task.name!r}, but the run was recorded with "
            f"{run.file.task.name!r}; give the class that it was recorded with"
        )
    if run.stages:
        from .runs.states import load_into

        load_into(run.task.build_model(run.last.facts.build_config), run.last.end().model)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of every command; ``--debug`` is read in :func:`main`."""


@app.command(epilog="Example: stagelens demo digits --out runs/digits")
def demo(
    name: Annotated[str, typer.Argument(metavar="digits|comments", help="Which demo.")],
    out: Annotated[Path, typer.Option("--out", help="A folder that holds nothing yet.")],
    seed: Annotated[int, typer.Option(help="Makes the demo the same again.")] = 0,
    progress: ProgressFile = None,
) -> None:
    """Make a built-in demo: train it in stages, record it, and compute its effects.

    digits: a small CNN on the handwritten digits that scikit-learn ships, with a planted shortcut
    in its second stage and planted wrong labels in its third.

    comments: a small BERT from scratch on synthetic comments, made by templates; in its third stage
    mentions of an identity go with the label toxic (planted).
    """
    if name not in DEMOS:
        raise StageLensError(f"there is no demo {name!r}; use: {', '.join(DEMOS)}")
    with Reporter(progress, phases=True).running() as report:
        from .demos.building import build

        record = importlib.import_module(f".demos.{name}", __package__).record
        run = build(out, record, seed, report)
    typer.echo(f"{out}: {len(run.stages)} stages, sets {', '.join(run.set_names)}")
    typer.echo(f"Look at it with: stagelens attribute {out} --set test, or in the dashboard")


@app.command(
    epilog="Examples: stagelens attribute runs/digits --set test   "
    "stagelens attribute runs/digits --estimator task-vector --stage shortcut --out effects.csv"
)
def attribute(
    run: RunFolder,
    estimator: Annotated[
        str | None,
        typer.Option(
            help="task-vector (free), coarse-replay (within --budget), unrolled-jump, "
            "unrolled-scale, or replay (exact); by default coarse-replay where steps are "
            "recorded, else task-vector."
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="What coarse-replay may spend, as a share of replay's cost [0.25]."),
    ] = None,
    stage: Annotated[
        list[str] | None, typer.Option(help="Only this stage; may be given several times.")
    ] = None,
    set_name: Annotated[
        str | None, typer.Option("--set", help="Evaluation set; by default the only one, or test.")
    ] = None,
    task: TaskOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the effect table, with trust, to a .parquet or .csv file."),
    ] = None,
    progress: ProgressFile = None,
) -> None:
    """Compute every stage's effect on every example of an evaluation set."""
    if out is not None:
        if out.suffix not in (".parquet", ".csv"):
            raise StageLensError(f"{out}: name the file .parquet or .csv")
        check_writable(out)
    with Reporter(progress).running() as report:
        opened = _open(run, task)
        _ = opened.last  # a run without a finished stage is refused for that, not for its sets
        examples = opened.evaluation_set(set_name)
        from . import effects
        from .estimators.ladder import default_estimator, make_estimator
        from .verification import trusted

        settings = None if budget is None else {"budget": budget}
        made = make_estimator(estimator or default_estimator(opened), settings)
        used = made.name, dict(made.settings)
        stored = used in [(f.estimator, f.settings) for f in stored_results(opened, examples.name)]
        effects.boundaries(opened, examples.name)
        result = effects.attribute(
            opened, examples.name, made.name, stage or None, report, settings
        )
        result = trusted(opened, result)
    notes = [] if stored or stage else _times(opened, result)
    for note in (*opened.problems, *notes):
        typer.echo(f"Note: {note}", err=True)
    print_effects(result)
    if out is not None:
        table = result.table.assign(
            trust=result.table["stage"].map({n: t.trust for n, t in result.trust.items()})
        )
        with atomic_path(out) as temporary:
            write = table.to_csv if out.suffix == ".csv" else table.to_parquet
            write(temporary, index=False)
        typer.echo(f"{out}: {len(table):,} rows")


def _times(run: Run, result: Result) -> list[str]:
    """What an estimate took and should have taken, and whether replay would have been as quick."""
    settings = result.facts.settings
    predicted = estimate_seconds(run.stages, result.facts.estimator, settings)
    replay = replay_seconds(run.stages)
    if predicted is None or replay is None:
        return []
    took = measured(sum(trust.seconds for trust in result.trust.values()))
    notes = [f"computed in {took}; predicted, without other load: {measured(predicted)}"]
    replayable = all(stage.replayable for stage in run.stages[1:])
    budget = settings.get("budget")
    if budget is not None and replayable and not coarse_saves_time(run.stages, budget):
        notes.append(
            f"replay should take hardly longer on this run ({measured(replay)} predicted); "
            "--estimator replay gives exact numbers"
        )
    return notes


@app.command(epilog="Example: stagelens features runs/digits --set test --top 5")
def features(
    run: RunFolder,
    set_name: Annotated[
        str | None, typer.Option("--set", help="Evaluation set; by default the only one, or test.")
    ] = None,
    estimator: Annotated[
        str | None,
        typer.Option(help="Whose stage effects; by default as for attribute."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="What coarse-replay may spend, as a share of replay's cost [0.25]."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many features to print per stage.")] = 5,
    task: TaskOption = None,
    progress: ProgressFile = None,
) -> None:
    """Find features that go with a stage's effect, without being told what to look for."""
    with Reporter(progress).running() as report:
        opened = _open(run, task)
        examples = opened.evaluation_set(set_name)
        from .estimators.ladder import default_estimator
        from .spurious.features import find_features

        settings = None if budget is None else {"budget": budget}
        chosen = estimator or default_estimator(opened)
        found = find_features(opened, examples.name, chosen, settings, report)
    print_features(found, top)


@app.command(
    epilog="Examples: stagelens verify runs/digits --set test   "
    "stagelens verify runs/digits --estimator coarse-replay --budget 0.125 --orders 3 --json"
)
def verify(
    run: RunFolder,
    stage: Annotated[
        list[str] | None, typer.Option(help="Only this stage; may be given several times.")
    ] = None,
    set_name: Annotated[
        str | None, typer.Option("--set", help="Evaluation set; by default the only one, or test.")
    ] = None,
    estimator: Annotated[
        list[str] | None,
        typer.Option(help="Estimator to verify; may be given several times [all but unrolled]."),
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
    progress: ProgressFile = None,
) -> None:
    """Hold estimates against replays, and say how far each number can be trusted."""
    from . import verification

    names = estimator or ["task-vector", "coarse-replay"]
    wanted: list[tuple[str, dict[str, Any]]] = []
    for name in names:
        budgets = (budget or [0.25]) if name == "coarse-replay" else []
        wanted += [(name, {"budget": value}) for value in budgets] or [(name, {})]
    with Reporter(progress).running() as report:
        opened = _open(run, task)
        _ = opened.last
        examples = opened.evaluation_set(set_name)
        rows = verification.verify(opened, examples.name, wanted, report, stage or None, orders)
    if as_json:
        typer.echo(rows[list(verification.COLUMNS)].to_json(orient="records", indent=1))
        return
    print_verification(rows)


@app.command(
    name="add-set",
    epilog="Examples: stagelens add-set runs/digits photos/ --name photos   "
    "stagelens add-set runs/digits test.npz --name test --label-column y   "
    "stagelens add-set runs/chat pairs.jsonl --name pairs --completion-column chosen",
)
def add_set(
    run: RunFolder,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="An image folder (metadata.csv, or a folder per class), a folder that "
            "datasets saved, or a .npz, .parquet, .csv, .tsv or .jsonl file.",
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="The set's name in this run.")],
    label_column: Annotated[
        str, typer.Option(help='Column of the labels; "" for a set without labels.')
    ] = "label",
    id_column: Annotated[
        str | None, typer.Option(help="Column of stable ids; by default row numbers or names.")
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of the texts.")] = None,
    completion_column: Annotated[
        str | None, typer.Option(help="Column of completions, for a language model.")
    ] = None,
    prompt_column: Annotated[
        str | None, typer.Option(help="Column of their prompts [prompt, where there is one].")
    ] = None,
    rejected_column: Annotated[
        str | None,
        typer.Option(help="Column of rejected completions [rejected, where there is one]."),
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Column of the images, or of their paths.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of a saved dataset.")] = None,
    description: Annotated[str, typer.Option(help="What the set is, for people.")] = "",
    task: TaskOption = None,
) -> None:
    """Add an evaluation set from a file; ids are kept, duplicates and missing labels reported."""
    from .runs.set_readers import read_set_file
    from .runs.set_writer import write_set

    opened = _open(run, task)
    content = read_set_file(
        file,
        label_column=label_column,
        id_column=id_column,
        text_column=text_column,
        completion_column=completion_column,
        prompt_column=prompt_column,
        rejected_column=rejected_column,
        image_column=image_column,
        split=split,
        needs_labels=opened.task.takes_labels,
        flags=True,
    )
    report = write_set(run, opened.task, name, description=description, **content)
    typer.echo(report.sentence())


@app.command(
    epilog="Example: stagelens assemble --stage base=bert --stage sft=out/sft --stage dpo=out/dpo "
    "--eval test.csv --out runs/mine",
)
def assemble(
    stage: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=DIR",
            help="A checkpoint folder; the first is the base, each further one the end of a stage "
            "of that name. Give them in the order of training.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="A folder that holds nothing yet.")],
    evaluation: Annotated[
        Path | None,
        typer.Option("--eval", metavar="FILE", help="A file to add as evaluation set."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The run's name; by default the folder's.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="text-classification, causal-lm or MODULE:CLASS; by default what config.json "
            "names."
        ),
    ] = None,
    link: Annotated[
        bool,
        typer.Option(
            "--link", help="Link weights instead of copying; never edit the originals then."
        ),
    ] = False,
    label_column: Annotated[str, typer.Option(help="Column of the labels.")] = "label",
    id_column: Annotated[str | None, typer.Option(help="Column of stable ids.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of the texts.")] = None,
    completion_column: Annotated[str | None, typer.Option(help="Column of completions.")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Column of their prompts.")] = None,
    rejected_column: Annotated[
        str | None, typer.Option(help="Column of rejected completions.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of a saved dataset.")] = None,
    progress: ProgressFile = None,
) -> None:
    """Make a run from checkpoint folders, without any recording: task vectors at once.

    Folders hold a transformers model as safetensors (one file, or shards with their index), or
    are those that a Trainer writes.
    """
    folders = []
    for given in stage:
        label, equals, folder = given.partition("=")
        if not equals or not folder:
            raise StageLensError(f"--stage {given}: give a name and a folder, as sft=DIR")
        folders.append((label, folder))
    with Reporter(progress).running() as report:
        from .assembling.assemble import assemble as assemble_run

        run = assemble_run(
            folders,
            out,
            evaluation=evaluation,
            task=task,
            name=name,
            link=link,
            progress=report,
            label_column=label_column,
            id_column=id_column,
            text_column=text_column,
            completion_column=completion_column,
            prompt_column=prompt_column,
            rejected_column=rejected_column,
            split=split,
            flags=True,
        )
    for problem in run.problems:
        typer.echo(f"Note: {problem}", err=True)
    typer.echo(f"{out}: {len(run.stages)} stages, sets {', '.join(run.set_names) or 'none yet'}")
    if not run.set_names:
        typer.echo(f"Add an evaluation set with: stagelens add-set {out} FILE --name test")


@app.command(
    epilog="Examples: stagelens remove runs/digits --stage shortcut --strength 0.8   "
    "stagelens remove runs/digits --stage shortcut --close-gap stamped --out edited",
)
def remove(
    run: RunFolder,
    stage: Annotated[
        list[str], typer.Option(help="The stage to take out; may be given several times.")
    ],
    strength: Annotated[
        list[float] | None,
        typer.Option(help="How much of it, 0 to 1; as often as --stage, in its order [1.0]."),
    ] = None,
    estimator: Annotated[
        str | None,
        typer.Option(
            help="How the counterfactual is obtained; by default coarse-replay where steps are "
            "recorded, else task-vector."
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="What coarse-replay may spend, as a share of replay's cost [0.25]."),
    ] = None,
    set_name: Annotated[
        str | None,
        typer.Option("--set", help="Where to measure; by default the only set, or test."),
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="Column of groups to measure apart [group, if there is one].")
    ] = None,
    close_gap: Annotated[
        str | None,
        typer.Option(
            metavar="GROUP",
            help="Look for the smallest edit, layer by layer, with which this group is served as "
            "well as --control.",
        ),
    ] = None,
    control: Annotated[
        str | None, typer.Option(metavar="GROUP", help="Its counterpart [all other examples].")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Share of right answers that the control group may lose [0.02]."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Save the edited model as a checkpoint in a folder that holds nothing."),
    ] = None,
    preview: Annotated[bool, typer.Option("--preview", hidden=True)] = False,
    task: TaskOption = None,
    progress: ProgressFile = None,
) -> None:
    """Take a stage out of the final model, measure what that does, and save the edited model."""
    strengths = dict(zip(stage, strength or [1.0] * len(stage), strict=False))
    if len(set(stage)) != len(stage) or (strength and len(strength) != len(stage)):
        raise StageLensError(
            f"--stage names {len(set(stage))} stages and --strength gives "
            f"{len(strength or stage)} strengths; give each stage once, with one strength each"
        )
    if close_gap is None and (control is not None or tolerance is not None):
        raise StageLensError("--control and --tolerance belong to --close-gap; give it a group")
    with Reporter(progress).running() as report:
        opened = _open(run, task)
        from .estimators.ladder import default_estimator, make_estimator
        from .removal import measuring, saving
        from .removal.spec import Edit
        from .removal.targets import TOLERANCE, Target, find

        chosen = estimator or default_estimator(opened)
        made = make_estimator(chosen, None if budget is None else {"budget": budget})
        examples = None
        if opened.set_names or set_name is not None:
            examples = opened.evaluation_set(set_name)
        if examples is None and (close_gap is not None or out is None):
            opened.evaluation_set(set_name)  # says how to add one
        if by is None and examples is not None and "group" in examples.columns:
            by = "group"
        edit = Edit(estimator=chosen, settings=dict(made.settings), strengths=strengths)
        if preview and examples is not None:
            measuring.measured(
                opened, examples, measuring.grid(chosen, edit.settings, stage), report
            )
            return
        if close_gap is not None and examples is not None:
            if by is None:
                raise StageLensError("--close-gap needs the column of the group; give it with --by")
            target = Target(
                estimator=chosen,
                settings=edit.settings,
                stages=stage,
                by=by,
                group=close_gap,
                control=control,
                tolerance=TOLERANCE if tolerance is None else tolerance,
            )
            found = find(opened, examples, target, report)
            typer.echo(found.sentence())
            edit = found.edit
        figures = None
        if examples is not None:
            figures, trusts = saving.before_and_after(opened, examples, edit, by, report)
        if out is not None:
            saving.save(opened, edit, out, examples, by, report)
    if figures is not None and examples is not None:
        print_removal(figures, trusts, edit.strengths, examples.name)
    if out is not None:
        typer.echo(f"{out}: the edited model; {out / 'README.md'} says how it was made")


def main() -> None:
    """Run the command line; an error is one line on stderr and exit status 1."""
    try:
        app(standalone_mode=True)
    except (StageLensError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        typer.echo(f"stagelens: {one_line(error)}", err=True)
        sys.exit(1)
