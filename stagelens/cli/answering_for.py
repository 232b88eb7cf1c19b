"""The commands of those who answer for a model: what people say of a run, and its dossier."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stagelens.contracts import StageLensError
from stagelens.runs.described import (
    OF_RUN,
    OF_STAGE,
    document,
    from_given,
    keep,
    operations_of,
    unanswered,
)
from stagelens.runs.described import (
    answers as answers_of,
)
from stagelens.runs.described import (
    template as template_of,
)
from stagelens.runs.files import atomic_path, check_writable
from stagelens.runs.run import Run

from .given_data import DatasetOption
from .options import (
    LeafOption,
    ObjectiveOption,
    OptimizerOption,
    ProgressFile,
    RunFolder,
    TaskOption,
    opened_with,
)
from .terminal import Reporter, say

commands = typer.Typer()


@commands.command(
    epilog="Examples: stagelens describe runs/digits   "
    "stagelens describe runs/digits --template said.json   "
    "stagelens describe runs/digits --answers said.json"
)
def describe(
    run: RunFolder,
    answers: Annotated[
        Path | None, typer.Option(help="Take answers from a JSON file; null takes one back.")
    ] = None,
    template: Annotated[
        Path | None,
        typer.Option(help="Write all questions to a JSON file, with what was said so far."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was said as JSON.")] = False,
    leaf: LeafOption = None,
    task: TaskOption = None,
) -> None:
    """Say what cannot be seen in a run: who trained a stage, why, on what data, by which licence.

    Questions that nobody answered yet are asked one after another; an empty answer leaves one
    open. Answers are kept in the run folder, and no number depends on them.
    """
    opened = opened_with(run, task)
    if template is not None:
        _write_template(opened, template)
    elif answers is not None:
        keep(opened, from_given(opened, _read(answers), str(answers)))
        say(f"{opened.path}: {_left(opened)}")
    elif as_json:
        say(json.dumps(document(opened), indent=1, ensure_ascii=False))
    elif sys.stdin.isatty():
        _ask(opened)
    else:
        raise StageLensError(
            "there is no terminal to ask at; write the questions with --template FILE, and give "
            "the answers with --answers FILE"
        )


@commands.command(
    epilog="Examples: stagelens dossier runs/digits --out dossier.html   "
    "stagelens dossier runs/digits --out model-card.md"
)
def dossier(
    run: RunFolder,
    out: Annotated[
        Path,
        typer.Option(help="A .html or .json file, or .md for a section of a model card."),
    ],
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    leaf: LeafOption = None,
    task: TaskOption = None,
    objective: ObjectiveOption = None,
    dataset: DatasetOption = None,
    optimizer: OptimizerOption = None,
    progress: ProgressFile = None,
) -> None:
    """Write what every stage was, who answers for it, and what it is measured to have done.

    What people have to say comes from ``stagelens describe``; what nobody said is not known, and
    says so. Effects are those that ``stagelens attribute`` has measured.
    """
    from stagelens.report.dossier.building import dossier as build
    from stagelens.report.dossier.computing import count, stored
    from stagelens.report.dossier.writing import as_html, as_json, as_markdown

    writers = {".html": as_html, ".json": as_json, ".md": as_markdown}
    if out.suffix not in writers:
        raise StageLensError(f"{out}: name the file .html, .json or .md")
    if out.exists() and not force:
        raise StageLensError(f"{out} already exists; give another name, or --force")
    check_writable(out)
    with Reporter(progress).running() as told:
        opened = opened_with(run, task)
        _ = opened.last
        content = writers[out.suffix](build(opened, stored(opened) or count(opened, told)))
    with atomic_path(out) as temporary:
        temporary.write_bytes(content)
    say(f"{out}: {len(opened.stages)} stages, {len(content) / 1e3:,.0f} kB; {_left(opened)}")


def _write_template(run: Run, path: Path) -> None:
    if path.exists():
        raise StageLensError(f"{path} already exists; give another name")
    check_writable(path)
    with atomic_path(path) as temporary:
        text = json.dumps(template_of(run), indent=1, ensure_ascii=False)
        temporary.write_text(f"{text}\n", "utf-8")
    say(f"{path}: fill it in, then: stagelens describe {run.path} --answers {path}")


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise StageLensError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise StageLensError(f"{path}: this is no JSON: {error}") from None


def _left(run: Run) -> str:
    """How many questions are open, in words."""
    asked = len(OF_RUN) + len(OF_STAGE) * len(run.stages)
    left = sum(map(len, unanswered(run, answers_of(run)).values()))
    more = "" if not left else f"; stagelens describe {run.path} asks for the others"
    return f"{asked - left} of {asked} questions answered{more}"


def _ask(run: Run) -> None:
    open_ones = unanswered(run, answers_of(run))
    if not open_ones:
        say(f"{run.path}: every question is answered; change answers with --template and --answers")
        return
    for stage, fields in open_ones.items():
        say(f"\nStage {stage}" if stage else "The model as a whole")
        questions = OF_STAGE if stage else OF_RUN
        for field in fields:
            said: Any = typer.prompt(questions[field], default="", show_default=False).strip()
            if not said:
                continue
            if field == "base_operations":
                said = operations_of(said)
            given = {"stages": {stage: {field: said}}} if stage else {field: said}
            # Kept one by one: nothing is lost where somebody stops in the middle.
            keep(run, from_given(run, given, field))
    say(f"{run.path}: {_left(run)}")
