"""Commands that make a run: a demo, one assembled from checkpoints, a set added to it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stagelens.contracts import StageLensError
from stagelens.runs.lineage import NEWEST
from stagelens.runs.sets.columns import SetColumns

from .options import ProgressFile, RunFolder, TaskOption, opened_with, with_columns
from .terminal import Reporter, say

if TYPE_CHECKING:
    from stagelens.assembling.recipe import Recipe

commands = typer.Typer()
DEMOS = ("digits", "comments", "chat")


@commands.command(epilog="Example: stagelens demo digits --out runs/digits")
def demo(
    name: Annotated[str, typer.Argument(metavar="digits|comments|chat", help="Which demo.")],
    out: Annotated[
        Path, typer.Option("--out", help="A folder that is empty or does not exist yet.")
    ],
    seed: Annotated[int, typer.Option(help="Makes the demo reproducible.")] = 0,
    draws: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Draws of the recipe to make as well, so that headlines have intervals over them; "
            "0 for none, which takes half as long [12; 6 for comments and chat].",
        ),
    ] = None,
    progress: ProgressFile = None,
) -> None:
    """Make a built-in demo: train it in stages, record it, and compute its effects.

    With draws of its recipe, digits takes under 30 seconds on two idle cores, comments under 60
    and chat under 150.

    digits: a small CNN on the handwritten digits that scikit-learn ships, with a planted shortcut
    in its second stage and planted wrong labels in its third.

    comments: a small BERT from scratch on synthetic comments, made by templates; in its third stage
    mentions of an identity go with the label toxic (planted).

    chat: a tiny language model from scratch on synthetic texts, instructions and preferences; in
    its third stage agreeing with the user's stated opinion is preferred to the truth (planted).
    Its answers are generated and scored.
    """
    if name not in DEMOS:
        raise StageLensError(f"there is no demo {name!r}; use: {', '.join(DEMOS)}")
    with Reporter(progress, phases=True).running() as report:
        from stagelens.demos.building import build

        # Only the demo asked for is imported, since all of them load torch.
        made = importlib.import_module(f"stagelens.demos.{name}")
        number = made.DRAWS if draws is None else draws
        shared_out, finish = getattr(made, "SHARED_OUT", ()), getattr(made, "finish", None)
        run = build(out, made.record, seed, report, shared_out, number, finish)
    say(f"{out}: {len(run.stages)} stages, sets {', '.join(run.set_names)}")
    say(f"Look at it with: stagelens app {out}, or stagelens attribute {out} --set test")


@commands.command(
    epilog="Examples: stagelens assemble --stage base=bert --stage sft=out/sft --stage dpo=out/dpo "
    "--eval test.csv --out runs/mine   "
    "stagelens assemble --stage base=bert --stage sft=out/sft --stage dpo=out/dpo "
    "--stage rl=out/rl --parent rl=sft --merge soup=out/soup --parents soup=dpo,rl "
    "--out runs/two   "
    "stagelens assemble docs/recipes/pythia-70m.yaml --eval test.jsonl --out runs/pythia",
)
@with_columns
def assemble(
    recipe: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RECIPE]", help="A file that names the stages, instead of --stage."
        ),
    ] = None,
    *,
    stage: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="A checkpoint folder, or an id on the Hugging Face hub (OWNER/NAME@REVISION); the "
            "first is the base, each further one the end of a stage of that name. Give them in the "
            "order of training.",
        ),
    ] = None,
    parent: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PARENT",
            help="What a stage was trained from, where that is not the one before it: the run then "
            "has several leaves; may be given several times.",
        ),
    ] = None,
    merge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="A checkpoint that was merged from others, such as a soup; say of which with "
            "--parents.",
        ),
    ] = None,
    parents: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=A,B", help="What a merge was made of."),
    ] = None,
    out: Annotated[Path, typer.Option(help="A folder that is empty or does not exist yet.")],
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
            help="A task's name, such as reward-model, or MODULE:CLASS; by default what "
            "config.json names."
        ),
    ] = None,
    link: Annotated[
        bool,
        typer.Option(
            "--link",
            help="Link the weights instead of copying them; the originals must then never be "
            "edited.",
        ),
    ] = False,
    allow_bin: Annotated[
        bool,
        typer.Option(
            "--allow-bin",
            help="Open pickles of weights (pytorch_model.bin, DeepSpeed) too, without running "
            "code in them.",
        ),
    ] = False,
    columns: SetColumns,
    progress: ProgressFile = None,
) -> None:
    """Make a run from checkpoint folders, without any recording: task vectors at once.

    Folders are those that from_pretrained loads, adapters of PEFT on an earlier stage, or what a
    Trainer writes.
    """
    folders, known = _stages(recipe, [*(stage or []), *(merge or [])])
    came_from = _parents(parent or [], merge or [], parents or [])
    if known is not None and recipe is not None:
        name, task = name or known.name, task or known.task
        columns = known.set_columns(columns)
        came_from = {**known.parents(), **came_from}
        if evaluation is None and known.evaluation is not None:
            evaluation = recipe.parent / known.evaluation
    with Reporter(progress).running() as report:
        from stagelens.assembling.assemble import assemble as assemble_run

        run = assemble_run(
            folders,
            out,
            evaluation=evaluation,
            task=task,
            name=name,
            link=link,
            allow_bin=allow_bin,
            progress=report,
            columns=columns,
            parents=came_from,
        )
    for problem in run.problems:
        say(f"Note: {problem}", err=True)
    leaves = run.lineage.leaves
    count = f"{len(run.lineage.stages)} stages"
    several = f", leaves {', '.join(leaves)}" if len(leaves) > 1 else ""
    say(f"{out}: {count}{several}, sets {', '.join(run.set_names) or 'none yet'}")
    if not run.set_names:
        say(f"Add an evaluation set with: stagelens add-set {out} FILE --name test")


def _stages(recipe: Path | None, given: list[str]) -> tuple[list[tuple[str, str]], Recipe | None]:
    """Names and places of checkpoints, from a recipe or from the command's options."""
    if recipe is not None:
        if given:
            raise StageLensError("give either a recipe or --stage, not both")
        from stagelens.assembling.recipe import read_recipe

        known = read_recipe(recipe)
        return known.checkpoints(recipe.parent), known
    stages = []
    for each in given:
        label, equals, place = each.partition("=")
        if not equals or not place:
            raise StageLensError(f"--stage {each}: give a name and a folder, as sft=DIR")
        stages.append((label, place))
    return stages, None


def _parents(given: list[str], merges: list[str], several: list[str]) -> dict[str, str | list[str]]:
    """Stage to what it came from, of the command's options."""
    found: dict[str, str | list[str]] = {}
    for each in given:
        name, _, parent = each.partition("=")
        if not parent:
            raise StageLensError(f"--parent {each}: give a stage and its parent, as rl=sft")
        found[name] = parent
    for each in several:
        name, _, listed = each.partition("=")
        named = [parent.strip() for parent in listed.split(",") if parent.strip()]
        if len(named) < 2:
            raise StageLensError(
                f"--parents {each}: give a merge and what it was made of, as soup=a,b"
            )
        found[name] = named
    for name in (each.partition("=")[0] for each in merges):
        if isinstance(found.get(name, ""), str):
            raise StageLensError(f"--merge {name}: say of what it was made: --parents {name}=a,b")
    return found


@commands.command(
    name="add-set",
    epilog="Examples: stagelens add-set runs/digits photos/ --name photos   "
    "stagelens add-set runs/digits test.npz --name test --label-column y   "
    "stagelens add-set runs/chat pairs.jsonl --name pairs --completion-column chosen",
)
@with_columns
def add_set(
    run: RunFolder,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="An image folder (metadata.csv, or a folder per class), a folder that "
            "datasets saved, or a .npz, .parquet, .csv, .tsv, .jsonl or .json file.",
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="The set's name in this run.")],
    *,
    columns: SetColumns,
    description: Annotated[str, typer.Option(help="What the set is, for people.")] = "",
    task: TaskOption = None,
) -> None:
    """Add an evaluation set from a file; ids are kept, duplicates and missing labels reported."""
    from stagelens.runs.sets.readers import read_set_file
    from stagelens.runs.sets.writer import write_set

    opened = opened_with(run, task, leaf=NEWEST)
    content = read_set_file(file, columns, needs_labels=opened.task.takes_labels)
    report = write_set(opened.path, opened.task, name, description=description, **content)
    say(report.sentence())
