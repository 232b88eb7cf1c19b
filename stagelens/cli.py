"""The command line: the same functions that the dashboard's jobs run."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .contracts import StageLensError
from .runs.run import Run, open_run

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
_EVERY = 0.2


class _Reporter:
    """Shows progress on the terminal, or writes it to a file that the dashboard reads."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._written = 0.0
        self._share = 0.0
        self._text = ""
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        hidden = file is not None or not sys.stderr.isatty()
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden)
        self._bar_task = self._bar.add_task("", total=1.0)

    def __call__(self, share: float, text: str) -> None:
        self._share, self._text = min(max(share, 0.0), 1.0), text
        self._bar.update(self._bar_task, completed=self._share, description=text)
        if time.monotonic() - self._written >= _EVERY:
            self.write("running")

    def write(self, state: str, error: str | None = None) -> None:
        if self._file is None:
            return
        done = 1.0 if state == "done" else self._share
        content = {"done": done, "text": self._text, "state": state, "error": error}
        temporary = self._file.with_name(f"{self._file.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(content))
        os.replace(temporary, self._file)
        self._written = time.monotonic()

    @contextmanager
    def running(self) -> Iterator[_Reporter]:
        """Report success or failure at the end, whatever happens."""
        self.write("running")
        try:
            with self._bar:
                yield self
        except BaseException as error:
            self.write("failed", one_line(error))
            raise
        self.write("done")


def one_line(error: BaseException) -> str:
    """An error for people, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, StageLensError) else f"{type(error).__name__}: {text}"


def _open(path: Path, task: str | None) -> Run:
    if task is None:
        return open_run(path)
    from .tasks import load_task_class, make_task

    found = load_task_class(task)
    run = open_run(path)
    return open_run(path, make_task(found, run.file.task.config, run.task_assets()))


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of every command; ``--debug`` is read in :func:`main`."""


@app.command(epilog="Example: stagelens demo digits --out runs/digits")
def demo(
    name: Annotated[str, typer.Argument(metavar="digits", help="Which demo.")],
    out: Annotated[Path, typer.Option("--out", help="A folder that holds nothing yet.")],
    seed: Annotated[int, typer.Option(help="Makes the demo the same again.")] = 0,
    progress: ProgressFile = None,
) -> None:
    """Make a built-in demo: train it in stages, record it, and compute its effects.

    digits: a small CNN on the handwritten digits that scikit-learn ships, with a planted shortcut
    in its second stage and planted wrong labels in its third.
    """
    if name != "digits":
        raise StageLensError(f"there is no demo {name!r}; use: digits")
    with _Reporter(progress).running() as report:
        from .demos import digits

        run = digits.build(out, seed, report)
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
    if out is not None and out.suffix not in (".parquet", ".csv"):
        raise StageLensError(f"{out}: name the file .parquet or .csv")
    with _Reporter(progress).running() as report:
        opened = _open(run, task)
        examples = opened.evaluation_set(set_name)
        from . import effects
        from .estimators.ladder import default_estimator
        from .verification import trusted

        chosen = estimator or default_estimator(opened)
        effects.boundaries(opened, examples.name)
        result = effects.attribute(
            opened,
            examples.name,
            chosen,
            stage or None,
            report,
            None if budget is None else {"budget": budget},
        )
        result = trusted(opened, result)
    for problem in opened.problems:
        typer.echo(f"Note: {problem}", err=True)
    _print_effects(result)
    if out is not None:
        table = result.table.assign(
            trust=result.table["stage"].map({n: t.trust for n, t in result.trust.items()})
        )
        _write_table(table, out)
        typer.echo(f"{out}: {len(table):,} rows")


def _write_table(table: Any, out: Path) -> None:
    from .runs.files import atomic_path

    with atomic_path(out) as temporary:
        if out.suffix == ".csv":
            table.to_csv(temporary, index=False)
        else:
            table.to_parquet(temporary, index=False)


def _console() -> Console:
    """As wide as the terminal; wide enough for every column where the output is kept."""
    return Console(width=None if sys.stdout.isatty() else 200)


def _print_effects(result: Any) -> None:
    count = result.table["example_id"].nunique()
    facts = result.facts
    from .standing import WORDS, explained, standing_of

    printed = Table(title=f"Mean stage effect on {facts.set_name} ({count:,} examples)")
    printed.add_column("stage")
    for name, behaviour in result.behaviours.items():
        printed.add_column(f"{name} ({behaviour.better} is better)", justify="right")
    printed.add_column("trust")
    means = result.table.groupby(["stage", "behaviour"], sort=False)["effect"].mean()
    for stage, trust in result.trust.items():
        values = [means.get((stage, name), float("nan")) for name in result.behaviours]
        cells = ["-" if value != value else f"{value:+.3f}" for value in values]
        printed.add_row(stage, *cells, f"{WORDS[standing_of(trust)]}: {explained(trust)}")
    _console().print(printed, markup=False)


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
    with _Reporter(progress).running() as report:
        opened = _open(run, task)
        examples = opened.evaluation_set(set_name)
        rows = verification.verify(opened, examples.name, wanted, report, stage or None, orders)
    rows = rows[list(verification.COLUMNS)]
    if as_json:
        typer.echo(rows.to_json(orient="records", indent=1))
        return
    _print_verification(rows)


def _print_verification(rows: Any) -> None:
    printed = Table(title=f"Estimates against replay on {rows['set'].iloc[0]}")
    for name in ("stage", "behaviour", "estimator", "budget"):
        printed.add_column(name)
    figures = ("r", "rho", "slope", "relative_error", "sign_agreement", "cost", "wall_cost")
    for name in (*figures, "expected_error", "noise_floor_r"):
        printed.add_column(name.replace("_", " "), justify="right")
    printed.add_column("trust")
    for row in rows.to_dict("records"):
        values = [row[name] for name in (*figures, "expected_error", "noise_floor_r")]
        cells = ["-" if v is None or v != v else f"{v:.2f}" for v in values]
        budget = row["budget"]
        shown = "" if budget is None or budget != budget else f"{budget:g}"
        printed.add_row(
            row["stage"], row["behaviour"], row["estimator"], shown, *cells, row["trust"]
        )
    _console().print(printed, markup=False)


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
    with _Reporter(progress).running() as report:
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
        )
    for problem in run.problems:
        typer.echo(f"Note: {problem}", err=True)
    typer.echo(f"{out}: {len(run.stages)} stages, sets {', '.join(run.set_names) or 'none yet'}")


def main() -> None:
    """Run the command line; an error is one line on stderr and exit status 1."""
    try:
        app(standalone_mode=True)
    except (StageLensError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        typer.echo(f"stagelens: {one_line(error)}", err=True)
        sys.exit(1)
