"""The commands that look into a stage by first order: what contributed, and how far that holds."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

import pandas as pd
import typer

from stagelens.analyses.contributions.horizon_table import (
    SHARE,
    Horizons,
    error_text,
    later_text,
    most_text,
)
from stagelens.contracts import CARRIED, StageLensError
from stagelens.derivatives.curvature_kinds import USUAL
from stagelens.effects.results import stored_results
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.run import Run
from stagelens.trust.estimates import best_result
from stagelens.wording.numbers import count_text, plain_signed

from .given_data import DatasetOption
from .options import (
    CurvatureOption,
    LeafOption,
    ObjectiveOption,
    OptimizerOption,
    ProgressFile,
    RunFolder,
    SetOption,
    TaskOption,
    groups_of,
    opened_with,
)
from .smoothing import CheckOption, checked
from .terminal import Reporter, Table, print_contributions, print_table, say

commands = typer.Typer()

ExamplesOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ID",
        help="The example to ask about; given several times, their mean [the mean of the set].",
    ),
]
GroupsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN=VALUE",
        help="Ask about the mean of the examples with this value; given several times, of "
        "those that have all of them.",
    ),
]


@commands.command(
    epilog="Examples: stagelens contributions runs/digits --set test --example stamped-003   "
    "stagelens contributions runs/digits --set mixed-up --group label=4 --since mislabelled"
)
def contributions(
    run: RunFolder,
    set_name: SetOption = None,
    example: ExamplesOption = None,
    group: GroupsOption = None,
    behaviour: Annotated[
        str | None,
        typer.Option(help="The behaviour whose contributions are computed; by default the first."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="STAGE",
            help="The earliest stage of interest; a later one saves work [the first].",
        ),
    ] = None,
    horizon: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="STEPS",
            help="Ask about the behaviour so many steps later, within each stage, in place of the "
            "final model's: first order holds better the shorter that is; see stagelens horizon.",
        ),
    ] = None,
    top: Annotated[
        int, typer.Option(min=1, help="How many training examples to print per stage.")
    ] = 5,
    curvature: CurvatureOption = USUAL,
    check_smoothness: CheckOption = False,
    leaf: LeafOption = None,
    task: TaskOption = None,
    objective: ObjectiveOption = None,
    dataset: DatasetOption = None,
    optimizer: OptimizerOption = None,
    progress: ProgressFile = None,
) -> None:
    """Compute what every step and every training example contributed, to first order."""
    groups = groups_of(group)
    with Reporter(progress).running() as report:
        opened = opened_with(run, task)
        examples = opened.evaluation_set(set_name)
        from stagelens.analyses.contributions.computing import contribute
        from stagelens.analyses.contributions.contribution_table import Question
        from stagelens.analyses.contributions.horizon_table import (
            load_horizons,
            promised,
            sentence,
            within_sentence,
        )

        question = Question(ids=tuple(example or ()), groups=groups)
        found = contribute(
            *(opened, examples.name, question, behaviour, report, since, curvature, horizon)
        )
        ids = question.of(examples)
        name = found.facts.behaviour.name
        # Some steps later, there is no stage effect to hold the contributions against.
        effects = {} if horizon else _effects(opened, examples.name, name, ids)
        known = [load_horizons(opened, examples, name, ids, stage) for stage in opened.stages]
        kind, verdicts = found.facts.behaviour.behaviour(), {}
        for stage in found.facts.steps:
            if stage not in found.facts.steps_only:
                asked = (opened, stage, examples.name, kind, check_smoothness, horizon)
                verdicts[stage] = checked(*asked, report)
    print_contributions(found, top, effects, verdicts)
    if any(len(found.part("carried", stage)) for stage in found.facts.steps):
        say(f"Together includes {CARRIED}, which are no single example's.")
    if horizon is not None:
        say(
            f"Each contribution is to the model {later_text(horizon)} in its own stage, or where "
            "that ends, so that together they are no effect of the stage."
        )
    own = [each for each in known if each is not None and each.facts.stage in found.facts.steps]
    for each in own:
        say(sentence(each) if horizon is None else within_sentence(each, horizon))
    if said := next(filter(None, map(promised, own)), ""):
        say(said)
    if not own:
        say(
            "Note: how far first order is off is not known; estimate it without a replay: "
            f"stagelens horizon {run} --set {examples.name} --stage STAGE",
            err=True,
        )
    if not effects and not horizon:
        say(
            "Note: no stage effect is stored for this set, so what first order leaves unexplained "
            f"is not known; compute them: stagelens attribute {run} --set {examples.name}",
            err=True,
        )


@commands.command(
    epilog="Examples: stagelens horizon runs/digits --set test --stage mislabelled   "
    "stagelens horizon runs/digits --set test --stage shortcut --group label=4"
)
def horizon(
    run: RunFolder,
    *,
    stage: Annotated[str, typer.Option(help="The stage whose training examples are left out.")],
    set_name: SetOption = None,
    example: ExamplesOption = None,
    group: GroupsOption = None,
    behaviour: Annotated[
        str | None, typer.Option(help="The behaviour that is asked about; by default the first.")
    ] = None,
    share: Annotated[
        float,
        typer.Option(help="The share of its examples that is left out, above 0 and below 1."),
    ] = SHARE,
    leaf: LeafOption = None,
    task: TaskOption = None,
    objective: ObjectiveOption = None,
    dataset: DatasetOption = None,
    optimizer: OptimizerOption = None,
    progress: ProgressFile = None,
) -> None:
    """Estimate, without a replay, how far first order is off some steps later."""
    if not 0 < share < 1:
        raise StageLensError(f"--share {share:g} is no share; give one above 0 and below 1")
    groups = groups_of(group)
    with Reporter(progress).running() as report:
        opened = opened_with(run, task)
        examples = opened.evaluation_set(set_name)
        from stagelens.analyses.contributions.contribution_table import Question
        from stagelens.analyses.contributions.horizon_table import promised, sentence
        from stagelens.analyses.contributions.horizons import horizons

        question = Question(ids=tuple(example or ()), groups=groups)
        own = opened.stage(stage)
        found = horizons(opened, own, examples.name, question, behaviour, share, report)
    _print_horizons(found)
    say(sentence(found))
    if said := promised(found):
        say(said)


def _print_horizons(found: Horizons) -> None:
    """Expected errors of first order, by how many steps later the behaviour is asked."""
    facts = found.facts
    left_out = f"{100 * facts.share:.0f} % of the examples of {facts.stage} ({facts.left_out:,})"
    printed = Table(
        title=f"How far first order holds: without {left_out}, the {facts.behaviour.name} of "
        f"{count_text(facts.count)}"
    )
    names = (
        "steps later",
        "to first order",
        "neglected, about",
        "expected error",
        "9 of 10 within",
    )
    for name in names:
        printed.add_column(name, justify="right")
    for place, row in enumerate(found.table.to_dict("records")):
        later = "final model" if pd.isna(row["horizon"]) else f"{row['horizon']:,}"
        means = [plain_signed(row[name], ".2g") for name in ("first_order", "neglected")]
        error = row["expected_error"]
        most = most_text(found, place) or "not known"
        printed.add_row(later, *means, error_text(error), "-" if pd.isna(error) else most)
    print_table(printed)
    spent = found.table["gradients"].sum()
    say(
        f"Estimated without a replay, by {spent:,.0f} gradients of a step; a replay without these "
        f"examples takes {facts.steps + facts.later:,}, and settles it for them. The neglected "
        "term is itself of second order only: where it is not small beside the effect, it is a "
        "sign of trouble, not an amount."
    )
    unit = f", in {facts.behaviour.unit}" if facts.behaviour.unit else ""
    say(
        f"The two columns of effects are means over the examples{unit}; positive and negative ones "
        "cancel there. Expected errors are root mean squares over the single examples, of the "
        "neglected term relative to the effect with it, and so no quotient of the two columns. "
        "Every row is of the model so many steps later, where the effect may have another sign."
    )


def _effects(
    run: Run, set_name: str, behaviour: str, ids: Collection[str]
) -> dict[str, tuple[float, StageTrust]]:
    """Stage to its mean effect on these examples by the best stored table, with its trust."""
    if not stored_results(run, set_name):
        return {}
    best = best_result(run, set_name)
    rows = best.table[(best.table["behaviour"] == behaviour) & best.table["example_id"].isin(ids)]
    means = rows.groupby("stage", sort=False)["effect"].mean()
    return {str(stage): (float(mean), best.trust[str(stage)]) for stage, mean in means.items()}
