"""The command that has models answer prompts, and scores what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from stagelens.contracts import Scorer, StageLensError
from stagelens.measuring import scorers

from .estimator_options import ModelsWithoutOption, OnlyStagesOption, StopOption
from .given_data import DatasetOption
from .options import (
    BudgetOption,
    DeviceOption,
    ExactStagesOption,
    LeafOption,
    ObjectiveOption,
    OptimizerOption,
    ProcessesOption,
    ProgressFile,
    RunFolder,
    SetOption,
    TaskOption,
    chosen_settings,
    opened_together,
    own_file,
)
from .score_tables import Scored, in_json, print_score, scored_means
from .table_files import check_table_file, write_table
from .terminal import Reporter, Table, print_table, say

commands = typer.Typer()

_CHOICE = "multiple-choice"


@commands.command(
    epilog="Examples: stagelens answer runs/chat --set prompts --scorer exact --scorer refusal   "
    "stagelens answer runs/chat --set sums --scorer numeric --samples 4 --stop '\\n\\n'   "
    "stagelens answer runs/chat --set prompts --scorer 'regex:pattern=^yes'"
)
def answer(
    run: RunFolder,
    set_name: SetOption = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:KEY=VALUE]",
            help="A scorer, with a setting (or NAME:{JSON} for several); may be given several "
            f"times. {', '.join(scorers.BUILT_IN)}, {_CHOICE}, or one that is installed. Any takes "
            "'as', what tables call it, and 'reference', the column answers are held against.",
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 64,
    samples: Annotated[
        int, typer.Option(help="Answers per prompt that are sampled; 0 for a greedy one.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of the samples; each prompt has its own noise.")] = 0,
    temperature: Annotated[float, typer.Option(help="Of the samples.")] = 1.0,
    stop: StopOption = None,
    estimator: ModelsWithoutOption = None,
    budget: BudgetOption = None,
    exact_stages: ExactStagesOption = None,
    stage: OnlyStagesOption = None,
    leaf: LeafOption = None,
    task: TaskOption = None,
    objective: ObjectiveOption = None,
    dataset: DatasetOption = None,
    optimizer: OptimizerOption = None,
    device: DeviceOption = None,
    processes_wanted: ProcessesOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write every model's answers and scores to a .parquet or .csv file."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    progress: ProgressFile = None,
) -> None:
    """Have the final model, and those after and without each stage, answer a set of prompts."""
    check_table_file(out)
    wanted = [_scorer(given) for given in scorer or []]
    choosing = [each for each in wanted if each.name == _CHOICE]
    if choosing and len(wanted) > len(choosing):
        raise StageLensError(
            f"{_CHOICE} compares likelihoods and generates no answers; score it by a command of "
            "its own"
        )
    if len(choosing) > 1:
        raise StageLensError(f"give {_CHOICE} once, with one norm")
    with Reporter(own_file(progress)).running() as report:
        opened = opened_together(run, task)
        _ = opened.last
        examples = opened.evaluation_set(set_name)
        from stagelens.effects import answers, scores
        from stagelens.estimators.registry import replay_if_possible
        from stagelens.measuring.generation import Generation

        stops = tuple(text.replace("\\n", "\n") for text in stop or [])
        how: answers.How = Generation(max_tokens, samples, seed, temperature, stops)
        if choosing:
            how = answers.Choosing(choosing[0].settings["norm"])
        found = answers.answer(
            opened,
            examples.name,
            how,
            estimator or replay_if_possible(opened),
            chosen_settings(budget, exact_stages),
            stage or None,
            report,
        )
        scored = []
        for each in wanted:
            result = scores.scored(opened, examples.name, found, how, each)
            scored.append(scored_means(opened, result))
    if as_json:
        say(json.dumps(_json(found.models, scored), indent=1))
    else:
        _print(found.models, scored)
    if out is not None:
        write_table(out, _every(found.models))


def _scorer(given: str) -> Scorer:
    name, _, rest = given.partition(":")
    settings: dict[str, Any] = {}
    if rest.startswith("{"):
        try:
            settings = dict(json.loads(rest))
        except (ValueError, TypeError) as error:
            raise StageLensError(f"--scorer {given}: its settings are no JSON ({error})") from None
    elif rest:
        key, equals, value = rest.partition("=")
        if not equals:
            raise StageLensError(f"--scorer {given}: give a setting as NAME:KEY=VALUE")
        settings = {key: value}
    if name == _CHOICE:
        from stagelens.measuring.choices import multiple_choice

        return multiple_choice(**settings)
    return scorers.find_scorer(name, settings)


def _every(models: Any) -> pd.DataFrame:
    """One row per model, prompt and sample."""
    blocks = [table.assign(model=name) for name, table in models.items()]
    table = pd.concat(blocks, ignore_index=True)
    return table[["model", *(name for name in table if name != "model")]]


def _print(models: Any, scored: list[Scored]) -> None:
    final = models["final"]
    first = _first(final)
    changed = Table(title=f"Answers to {len(first):,} prompts that differ from the final model's")
    changed.add_column("model")
    changed.add_column("first answers that differ", justify="right")
    for name, table in models.items():
        if name != "final":
            own = _first(table).reindex(first.index)
            changed.add_row(name.replace(":", " "), f"{int((own != first).sum()):,}")
    print_table(changed)
    for each in scored:
        print_score(each)
    for note in _notes(models):
        say(f"Note: {note}")


def _notes(models: Any) -> list[str]:
    """What may make answers differ from what they seem to be."""
    from stagelens.measuring.generation import NEAR_TIE

    every = pd.concat(models.values())
    close, cut = int((every["gap"] < NEAR_TIE).sum()), int(models["final"]["cut"].sum())
    notes = []
    if close:
        notes.append(
            f"in {close:,} of {len(every):,} answers two tokens were so nearly alike (logits less "
            f"than {NEAR_TIE:g} apart) that another batch or machine may choose the other one"
        )
    if cut:
        notes.append(
            f"{cut:,} of {len(models['final']):,} prompts lost their beginning, to leave room for "
            "the answer; a smaller --max-tokens leaves more of them"
        )
    return notes


def _first(table: pd.DataFrame) -> pd.Series:
    return table[table["sample"] == 0].set_index("example_id")["answer"]


def _json(models: Any, scored: list[Scored]) -> dict[str, Any]:
    scores = [in_json(each) for each in scored]
    return {"models": list(models), "scores": scores, "notes": _notes(models)}
