"""The command that shares out what training did among its stages."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from rich.console import Console

from stagelens.analyses.shares.bridge import bridges
from stagelens.analyses.shares.halves import halves_cost
from stagelens.analyses.shares.mean_table import mean_table
from stagelens.analyses.shares.pairs import pairs_of
from stagelens.analyses.shares.sentences import cautions, pair_sentences, rest_sentence
from stagelens.analyses.shares.share_table import (
    ALONE,
    SEEN_AFTER,
    SHARE,
    WITHOUT,
    Shares,
    share_table,
    shares_of,
)
from stagelens.analyses.shares.stored import wanted_masks
from stagelens.analyses.shares.together import apart_sentence
from stagelens.contracts import ACCURACY, Behaviour, Refused, StageLensError
from stagelens.effects.coalition_results import (
    CoalitionResult,
    key_of,
    lacking,
    load_coalitions,
    parts_of,
)
from stagelens.estimators.coalition_plan import (
    ESTIMATORS,
    NO_EXACT_STAGES,
    Cost,
    cost,
    refusal,
    trained,
)
from stagelens.estimators.parties import parties_of, stage_masks
from stagelens.estimators.registry import estimate_name, find, make_estimator
from stagelens.estimators.stage_trust import REPLAY
from stagelens.runs.files import check_changeable
from stagelens.runs.run import Run
from stagelens.runs.sets.clusters import clusters
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.wording.folding import listed
from stagelens.wording.numbers import (
    count_text,
    predicted_time,
    signed_text,
    value_text,
)
from stagelens.wording.trust_words import trust_explanation, trust_label, trust_word

from . import halving
from .given_data import DatasetOption
from .options import (
    BudgetOption,
    DeviceOption,
    LeafOption,
    ObjectiveOption,
    OptimizerOption,
    ProcessesOption,
    ProgressFile,
    RunFolder,
    SetOption,
    TaskOption,
    opened_together,
    own_file,
    parse_time,
)
from .table_files import check_table_file, write_table
from .terminal import Reporter, Table, say

commands = typer.Typer()

_HEADINGS = {SHARE: "share", WITHOUT: "without it", ALONE: "alone", SEEN_AFTER: "seen after"}


@commands.command(
    epilog="Examples: stagelens shares runs/digits --set test   "
    "stagelens shares runs/digits --together pretrain,adapt --json   "
    "stagelens shares runs/digits --estimator coarse-replay --budget 0.25 --out shares.csv"
)
def shares(
    run: RunFolder,
    set_name: SetOption = None,
    estimator: Annotated[
        str | None,
        typer.Option(
            help=f"How the models are obtained: {', '.join(ESTIMATORS)} [the first of them that "
            "the recording allows, and --time]."
        ),
    ] = None,
    time: Annotated[
        float | None,
        typer.Option(
            "--time",
            parser=parse_time,
            metavar="TIME",
            help="How long training may take: 90s, 30m, 2h, or seconds. The best estimator that is "
            "predicted to fit is used, coarse-replay with the largest budget.",
        ),
    ] = None,
    budget: BudgetOption = None,
    together: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STAGE,STAGE",
            help="Take these stages as one, as of one party; may be given several times.",
        ),
    ] = None,
    halves: Annotated[
        str | None,
        typer.Option(
            metavar="STAGE[:STEP]",
            help="Tell how shares change where this stage is taken as two halves, cut after a "
            "step [a checkpoint near its middle, else the middle step].",
        ),
    ] = None,
    behaviour: Annotated[
        list[str] | None,
        typer.Option(
            help="What is shared out; may be given several times [accuracy where there are "
            "labels, and the first that was measured]."
        ),
    ] = None,
    models: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="At most so many models, where there are more than six stages or parties: orders "
            "in which they join are drawn then, and intervals include the choice.",
        ),
    ] = None,
    cost_only: Annotated[
        bool, typer.Option("--cost", help="Say what it would take, and compute nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print rows as JSON.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Write every example's shares, with trust, to a .parquet or .csv file."),
    ] = None,
    # Known to other commands with coarse replay, so it is told why it is none of this one's.
    exact_stages: Annotated[int | None, typer.Option("--exact-stages", hidden=True)] = None,
    leaf: LeafOption = None,
    task: TaskOption = None,
    objective: ObjectiveOption = None,
    dataset: DatasetOption = None,
    optimizer: OptimizerOption = None,
    device: DeviceOption = None,
    processes_wanted: ProcessesOption = None,
    progress: ProgressFile = None,
) -> None:
    """Share out what training as a whole did among its stages; shares add up to all of it.

    A stage's share is the mean, over all orders in which the stages could join, of what its joining
    changes (Shapley). For it, every subset of the stages is trained, with all stages in their
    places in time; subsets share what they have in common. What it costs is told beforehand. Models
    are measured and kept one by one: started again, the command goes on.
    """
    if exact_stages is not None:
        raise Refused(NO_EXACT_STAGES)
    if time is not None and (estimator or budget) is not None:
        raise typer.BadParameter(
            "a time limit chooses the estimator and its budget: omit --time, or both of these",
            param_hint="--time",
        )
    check_table_file(out)
    with Reporter(own_file(progress)).running() as report:
        opened = opened_together(run, task)
        _ = opened.last
        examples = opened.evaluation_set(set_name)
        parties = parties_of(opened, [_several(each) for each in together or ()])
        masks = wanted_masks(opened, parties, models)
        own = list(stage_masks(opened, parties, masks).values())
        if time is not None:
            name, settings = _within(opened, examples, own, time, None if cost_only else report)
        else:
            name = estimator or _first_possible(opened, examples, own)
            settings = {} if budget is None else {"budget": budget}
        made = make_estimator(name, settings)
        left = lacking(opened, key_of(opened, examples, name, made.settings), own)
        _check_possible(opened, name, own, left)
        cut = halving.asked_cut(opened, halves, together)
        extra = cut and halves_cost(opened, examples, name, made.settings, cut)
        if cost_only and as_json:
            told = asdict(cost(opened, left, name, made.settings))
            more = {} if not extra else {"halves": {**asdict(extra[0]), "between": extra[1]}}
            say(json.dumps({"estimator": name, **told, **more}, indent=1))
            return
        if left:
            check_changeable("shares")
            if name == REPLAY and not cost_only:
                _time_steps(opened, examples, left, report)
            say(_cost_text(cost(opened, left, name, made.settings)), err=True)
        if cut and extra and extra[0].coalitions:
            check_changeable("shares")
            say(halving.cost_text(_cost_text(extra[0]), extra[1], cut), err=True)
        if cost_only:
            if not left and not (extra and extra[0].coalitions):
                say("Every model was measured before.", err=True)
            return
        from stagelens.effects.coalition_halves import measure_halves
        from stagelens.effects.coalition_measuring import measure_coalitions

        result = measure_coalitions(
            opened, examples.name, name, masks, parties, made.settings, report
        )
        apart = cut and measure_halves(opened, examples.name, name, cut, made.settings, report)
    for note in opened.problems:
        say(f"Note: {note}", err=True)
    found = [shares_of(result, each) for each in _behaviours(result, behaviour)]
    halved = [shares_of(apart, each.behaviour.name) for each in found] if apart else []
    if as_json:
        blocks = [_rows(result, each) for each in found]
        if cut and apart:
            told_of = {"halves_of": cut.stage, "cut_after_step": cut.step}
            blocks += [_rows(apart, each).assign(**told_of) for each in halved]
        say(pd.concat(blocks, ignore_index=True).to_json(orient="records", indent=1))
    else:
        _print(opened, result, found)
        if cut:
            for each in halved:
                say(halving.told_halves(each, cut))
        if (sharing := clusters(examples)) is not None:
            say(sharing.words(count_text(examples.count, "example")))
    if out is not None:
        write_table(out, share_table(result, [each.behaviour.name for each in found]))


def _several(text: str) -> list[str]:
    """The stages that an option takes as one.

    Raises:
        StageLensError: They are fewer than two.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(set(names)) < 2:
        raise StageLensError(
            f"--together {text!r} names fewer than two stages; give those to take as one, "
            "separated by commas"
        )
    return names


def _check_possible(run: Run, estimator: str, masks: list[int], left: list[int]) -> None:
    """Refuse, before anything is told or computed, where no model can be had by training.

    Raises:
        Refused: None of them can, and none is stored; says why.
    """
    hard = [mask for mask in masks if trained(mask, run.stages)]
    reasons = [refusal(run, mask, estimator) for mask in hard]
    if hard and all(reasons) and set(hard) <= set(left):
        raise Refused(reasons[0])


def _first_possible(run: Run, examples: EvaluationSet, masks: Sequence[int]) -> str:
    """The best estimator that gives every one of these coalitions, or gave it before."""
    for name in ESTIMATORS:
        there = parts_of(run, key_of(run, examples, name, make_estimator(name).settings))
        had = {mask for mask, part in there.items() if part.trust.trust != "refused"}
        if not any(refusal(run, mask, name) for mask in masks if mask not in had):
            return name
    return ESTIMATORS[-1]


def _within(
    run: Run, examples: EvaluationSet, masks: Sequence[int], limit: float, report: Reporter | None
) -> tuple[str, dict[str, Any]]:
    """The best estimator whose models are predicted to take no longer; tells what would.

    Args:
        run: The run.
        examples: The evaluation set.
        masks: Coalitions of single stages.
        limit: Seconds.
        report: Of the time that it takes to time a few steps; None to time none.
    """
    exact, coarse, free = ESTIMATORS
    budgets = sorted(find(coarse).budgets.values(), reverse=True)
    tries = [(exact, {}), *((coarse, {"budget": each}) for each in budgets)]
    for name, settings in tries:
        key = key_of(run, examples, name, make_estimator(name, settings).settings)
        left = lacking(run, key, masks)
        if any(refusal(run, mask, name) for mask in left):
            continue
        if name == exact and left and report is not None:
            _time_steps(run, examples, left, report)
        seconds = cost(run, left, name, settings).seconds
        if seconds is not None and seconds <= limit:
            return name, settings
        took = "a time that is not known" if seconds is None else predicted_time(seconds)
        say(f"Note: {estimate_name(name, settings)} would take {took}", err=True)
    return free, {}


def _time_steps(run: Run, examples: EvaluationSet, masks: Sequence[int], report: Reporter) -> None:
    """Time a few steps of the stages that are to be trained, where that was not done before."""
    from stagelens.estimators.durations import stored_timings

    known = stored_timings(run)
    timed = set() if known is None or known.example is None else set(known.stages)
    wanted = {s.index: s for mask in masks for s in trained(mask, run.stages)}
    stages = [s for _, s in sorted(wanted.items()) if not s.no_replay]
    if any(stage.name not in timed for stage in stages):
        from stagelens.estimators.pace import measure_paces

        measure_paces(run, examples, stages, report)


def _cost_text(told: Cost) -> str:
    models = f"{count_text(told.coalitions, 'model')} to measure"
    if not told.passes:
        return f"{models}; no stage has to be trained."
    passes = "1 stage pass" if told.passes == 1 else f"{told.passes:,} stage passes"
    seconds = "time not known" if told.seconds is None else predicted_time(told.seconds)
    return (
        f"{models}, {told.recorded} of them recorded: {passes}, {told.steps:,} steps "
        f"({told.replays:.2g} times the whole training), {seconds} in one process."
    )


def _behaviours(result: CoalitionResult, wanted: list[str] | None) -> list[str]:
    first = result.facts.behaviours[0].name
    usual = [name for name in (ACCURACY.name, first) if name in result.behaviours]
    return list(dict.fromkeys(wanted or usual))


def _rows(result: CoalitionResult, found: Shares) -> pd.DataFrame:
    rows = mean_table(found)
    rows.insert(0, "set", result.facts.set_name)
    rows.insert(1, "estimator", result.facts.estimator)
    return rows.assign(base=found.level(0), final_model=found.level(found.full))


def _print(run: Run, result: CoalitionResult, every: Sequence[Shares]) -> None:
    explained: dict[tuple[str, str], list[str]] = {}
    for found in every:
        kind = found.behaviour
        levels = " to ".join(value_text(found.level(mask), kind) for mask in (0, found.full))
        table = Table(f"Shares in {kind.name} on {result.facts.set_name}: from {levels}")
        table.add_column("stage")
        for heading in (*_HEADINGS.values(), "95 % of share"):
            table.add_column(heading, justify="right")
        table.add_column("trust")
        rows = mean_table(found)
        for row in rows.to_dict("records"):
            cells = [_cell(row[name], kind) for name in _HEADINGS]
            ends = [row["share_low"], row["share_high"]]
            known = np.isfinite(ends).all()
            interval = " to ".join(signed_text(end, kind, unit=False) for end in ends)
            table.add_row(row["stage"], *cells, interval if known else "not known", row["trust"])
        sums = [rows[name].sum(skipna=False) for name in _HEADINGS]
        table.add_row("together", *(_cell(each, kind) for each in sums), "", "")
        Console(width=None if sys.stdout.isatty() else 200).print(table)
        for name, trust in found.trust_in(SHARE).items():
            said = (trust_word(trust, kind.name), trust_explanation(trust, kind.name))
            explained.setdefault(said, []).append(name)
        if rest := rest_sentence(found):
            say(f"Without it, one at a time: {rest[0].lower()}{rest[1:]}")
        for sentence in (*bridges(found), *pair_sentences(pairs_of(found), kind, "example")):
            say(str(sentence))
        for line in _apart(run, result, found):
            say(line)
    for (word, explanation), names in explained.items():
        say(f"{listed(list(dict.fromkeys(names)))}: {word}. {explanation}")
    for caution in cautions(every[0]):
        say(caution)


def _cell(value: float, behaviour: Behaviour) -> str:
    return signed_text(value, behaviour) if np.isfinite(value) else "-"


def _apart(run: Run, result: CoalitionResult, found: Shares) -> list[str]:
    """By how much shares of stages taken as one are other than if each were its own party."""
    joined = [names for names in result.parties if 1 < len(names) < len(run.stages)]
    facts = result.facts
    single = load_coalitions(run, facts.set_name, facts.estimator, facts.settings)
    if not joined or single is None or not single.complete:
        return []
    apart = shares_of(single, found.behaviour.name)
    lines = []
    for names in joined:
        told = apart_sentence(apart, [run.stage(name).index for name in names])
        assert told.trust is not None
        lines.append(f"{told} ({trust_label(told.trust, told.behaviour)})")
    return lines
