"""Commands that look for what a stage made the model rely on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stagelens.analyses.saliency.map_table import BASELINES
from stagelens.trust.trust_columns import with_trust

from .estimator_options import CounterfactualOption
from .options import (
    BudgetOption,
    ExactStagesOption,
    LeafOption,
    ProgressFile,
    RunFolder,
    SetOption,
    TaskOption,
    chosen_settings,
    opened_with,
)
from .table_files import check_table_file, write_table
from .terminal import Reporter, print_features, print_saliency

commands = typer.Typer()


@commands.command(
    epilog="Examples: stagelens features runs/digits --set test --top 5   "
    "stagelens features runs/chat --score score:sycophancy"
)
def features(
    run: RunFolder,
    set_name: SetOption = None,
    estimator: Annotated[
        str | None,
        typer.Option(
            help="The estimator whose stage effects are used; by default replay where it has come "
            "to every stage, else coarse-replay where steps are recorded, else task-vector."
        ),
    ] = None,
    budget: BudgetOption = None,
    exact_stages: ExactStagesOption = None,
    score: Annotated[
        str | None,
        typer.Option(
            help="A score of answers, as stagelens scores names it, whose effects are looked at in "
            "place of the margin: which words of prompts go with them."
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many features to print per stage.")] = 5,
    leaf: LeafOption = None,
    task: TaskOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the tests of strongest evidence, with trust, to a .parquet or .csv file."
        ),
    ] = None,
    progress: ProgressFile = None,
) -> None:
    """Find features that go with a stage's effect, without saying what to look for."""
    check_table_file(out)
    with Reporter(progress).running() as report:
        opened = opened_with(run, task)
        examples = opened.evaluation_set(set_name)
        from stagelens.analyses.spurious.features import find_features
        from stagelens.effects.stored_scores import OWN
        from stagelens.estimators.registry import default_estimator, estimate_name
        from stagelens.trust.estimates import known_trust, usual_estimator
        from stagelens.trust.score_effects import score_result

        settings = chosen_settings(budget, exact_stages)
        usual = usual_estimator(opened, examples.name, [each.name for each in opened.stages])
        chosen = estimator or (default_estimator(opened) if settings else usual)
        if score is not None:
            by = estimate_name(chosen, settings or {}) if estimator or settings else None
            scored = score_result(opened, examples.name, score, by).facts
            chosen, trust = scored.estimator, {each.stage: each for each in scored.stages}
            settings = {n: value for n, value in scored.settings.items() if n not in OWN}
            found = find_features(opened, examples.name, chosen, settings, report, score)
        else:
            found = find_features(opened, examples.name, chosen, settings, report)
            trust = known_trust(opened, examples.name, chosen, found.facts.settings)
    print_features(found, trust, top)
    if out is not None:
        # As for effect tables: what is stored gets its trust when it is read.
        write_table(out, with_trust(found.table, trust, found.facts.behaviour.name))


@commands.command(
    epilog="Example: stagelens saliency runs/digits --stage shortcut --example stamped-004 "
    "--example stamped-007"
)
def saliency(
    run: RunFolder,
    stage: Annotated[str, typer.Option(help="The stage whose effect is attributed.")],
    example: Annotated[
        list[str], typer.Option(help="Id of an example of the set; may be given several times.")
    ],
    set_name: SetOption = None,
    behaviour: Annotated[
        str | None, typer.Option(help="What is attributed; by default the task's first behaviour.")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="What counts as an empty input, the default first: "
            + "; ".join(f"{', '.join(known)} for {kind}s" for kind, known in BASELINES.items())
            + "."
        ),
    ] = None,
    estimator: CounterfactualOption = None,
    budget: BudgetOption = None,
    exact_stages: ExactStagesOption = None,
    leaf: LeafOption = None,
    task: TaskOption = None,
    progress: ProgressFile = None,
) -> None:
    """Find where in the input a stage's effect sits: in which pixels, or in which tokens."""
    with Reporter(progress).running() as report:
        opened = opened_with(run, task)
        examples = opened.evaluation_set(set_name)
        from stagelens.analyses.saliency.maps import stage_maps
        from stagelens.estimators.registry import default_estimator
        from stagelens.trust.estimates import usual_estimator

        usual = usual_estimator(opened, examples.name, [stage])
        settings = chosen_settings(budget, exact_stages)
        chosen = estimator or (default_estimator(opened) if settings else usual)
        found = stage_maps(
            *(opened, examples.name, stage, example, chosen, settings, behaviour, baseline),
            progress=report,
        )
    print_saliency(found.maps, stage, found.behaviour, found.baseline, found.trust)
