"""The command that says what to train on next: a stage's examples by how much each helps."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stagelens.contracts import ACCURACY, StageLensError
from stagelens.runs.run import Run, Stage
from stagelens.wording.numbers import count_text, phrase, value_text
from stagelens.wording.signs import POSITIVE_IS, gain_range_text, gain_text
from stagelens.wording.trust_words import FIRST_ORDER

from .given_data import DatasetOption
from .options import (
    LeafOption,
    ObjectiveOption,
    OptimizerOption,
    ProgressFile,
    RunFolder,
    TaskOption,
    groups_of,
    opened_with,
)
from .table_files import check_table_file, write_table
from .terminal import Reporter, Table, print_table, say

if TYPE_CHECKING:
    from stagelens.analyses.selection.horizons import Tried
    from stagelens.analyses.selection.tables import Proof
    from stagelens.contracts import Behaviour

commands = typer.Typer()


@commands.command(
    epilog="Examples: stagelens select runs/digits --stage mislabelled --target test "
    "--group group=clean --prove 8   stagelens select runs/chat --stage sft --target test "
    "--keep 0.5 --horizon 32 --out kept.csv",
)
def select(
    run: RunFolder,
    *,
    stage: Annotated[str, typer.Option(help="The stage whose training examples are ordered.")],
    target: Annotated[
        str | None,
        typer.Option(
            metavar="SET",
            help="The evaluation set that is to become better; by default the only one, or test.",
        ),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE",
            help="Only the target's examples with this value; may be given several times.",
        ),
    ] = None,
    behaviour: Annotated[
        str | None, typer.Option(help="What is to become better [loss, else the first].")
    ] = None,
    keep: Annotated[
        float, typer.Option(help="The share of the stage's examples to keep, above 0, at most 1.")
    ] = 0.5,
    horizon: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="How many steps later the target is asked. Given several times, each is judged by "
            "replaying its choice twice [a tenth of the stage, a third, all].",
        ),
    ] = None,
    distinct: Annotated[
        bool,
        typer.Option(
            "--distinct", help="Of examples that are nearly the same text, keep only the best."
        ),
    ] = False,
    prove: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="DRAWS",
            help="Replay the stage and all later ones with the chosen examples, random ones, the "
            "worst, and all, in so many draws of the order of batches. The ranking then uses one "
            "half of the target's examples, and the other half judges.",
        ),
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the kept examples, best first, to this .parquet or .csv file."),
    ] = None,
    leaf: LeafOption = None,
    task: TaskOption = None,
    objective: ObjectiveOption = None,
    dataset: DatasetOption = None,
    optimizer: OptimizerOption = None,
    progress: ProgressFile = None,
) -> None:
    """Order a stage's examples by how much each helps a target, and choose the best."""
    check_table_file(out)
    if not 0 < keep <= 1:
        raise StageLensError(f"--keep {keep:g} is no share; give one above 0 and at most 1")
    if prove in (1, 2):
        raise StageLensError("--prove takes 3 draws or more: fewer have no interval")
    groups = groups_of(group)
    with Reporter(progress).running() as report:
        opened = opened_with(run, task)
        from stagelens.analyses.contributions.contribution_table import Question
        from stagelens.analyses.selection.halves import halves
        from stagelens.analyses.selection.horizons import try_horizons, usual_horizons
        from stagelens.analyses.selection.proving import prove as replay_choice
        from stagelens.contracts import Progress

        own = opened.stage(stage)
        examples = opened.evaluation_set(target)
        asked = judges = Question(groups=groups)
        if prove:
            asked, judges = halves(examples, asked)
        overall = Progress(report)
        ranked = overall.part(0.0, 0.5 if prove else 1.0)
        tried = try_horizons(
            *(opened, own, examples.name, asked, keep),
            horizon or usual_horizons(own.steps),
            behaviour,
            ranked,
        )
        best = tried[0].ranking
        alike = _alike(opened, own) if distinct else None
        kept = best.kept(keep, alike)
        proof = None
        if prove:
            proof = replay_choice(
                *(opened, own, examples.name, judges, best, kept, prove),
                progress=overall.part(0.5, 1.0),
            )
    kind = best.facts.behaviour.behaviour()
    asked_of = f"{count_text(best.facts.count)} of {examples.name}"
    say(
        f"{len(kept):,} of {count_text(len(best.table), 'training example')} of {stage} kept: "
        f"those that help the {phrase(kind)} of {asked_of} most, {best.facts.horizon:,} steps "
        f"later ({FIRST_ORDER})"
    )
    _print_horizons(tried, kind)
    if proof is not None:
        _print_proof(proof, stage)
    if out is not None:
        rows = best.table.set_index("example_id").loc[kept].reset_index()
        write_table(out, rows)


def _alike(run: Run, stage: Stage) -> Mapping[str, Collection[str]]:
    """Near duplicates within the stage."""
    from stagelens.analyses.training_data.computing import training_data

    found = training_data(run, stage.name).duplicates
    alike: dict[str, set[str]] = {}
    if found is not None:
        within = found[(found["where"] == "stage") & (found["place"] == stage.name)]
        for one, other in zip(within["example_id"], within["other_id"], strict=True):
            alike.setdefault(str(one), set()).add(str(other))
            alike.setdefault(str(other), set()).add(str(one))
    return alike


def _print_horizons(tried: list[Tried], kind: Behaviour) -> None:
    if len(tried) < 2:
        return
    table = Table("Horizons, each judged by replaying its choice")
    table.add_column("steps later", justify="right")
    table.add_column(f"{phrase(kind)} of the target", justify="right")
    for one in sorted(tried, key=lambda each: each.ranking.facts.horizon):
        chosen = " *" if one is tried[0] else ""
        table.add_row(f"{one.ranking.facts.horizon:,}{chosen}", value_text(one.value, kind))
    print_table(table)


def _print_proof(proof: Proof, stage: str) -> None:
    """What replays gave: per behaviour one row per part, with the paired difference."""
    draws = proof.table["draw"].nunique()
    target = proof.facts.ranking.behaviour.name
    for facts in proof.facts.behaviours:
        kind = facts.behaviour()
        measured = (proof.table["behaviour"] == kind.name).any()
        if kind.name not in (target, ACCURACY.name) or not measured:
            continue
        table = Table(f"{phrase(kind)} by replay, {draws} draws, on examples that did not choose")
        table.add_column(f"{stage} trained on")
        table.add_column("mean", justify="right")
        table.add_column("chosen is better by", justify="right")
        table.add_column("95 % interval", justify="right")
        names = {
            "chosen": f"the chosen {proof.facts.kept:,}",
            "random": f"random {proof.facts.kept:,}",
            "worst": f"the worst {proof.facts.kept:,}",
            "all": f"all {proof.facts.of:,}",
        }
        for part, words in names.items():
            mean = value_text(float(proof.values(part, kind.name).mean()), kind)  # type: ignore[arg-type]
            if part == "chosen":
                table.add_row(words, mean, "", "")
                continue
            gain = proof.gain(part, kind.name)  # type: ignore[arg-type]
            table.add_row(
                words,
                mean,
                gain_text(gain.mean * kind.sign, kind),
                gain_range_text(gain.low * kind.sign, gain.high * kind.sign, kind),
            )
        print_table(table)
    say(
        "Rows left out leave the batches that were drawn, and no others come in their place. "
        + POSITIVE_IS.replace("because of the stage", "with the chosen examples")
    )
