"""Draws of a run's recipe as they are stored, read, and turned into effects of the recipe.

Importing this module does not import torch; :mod:`.drawing` makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from stagelens.contracts import ACCURACY
from stagelens.effects.draws import COLUMNS, FEWEST, NAMES, DrawnEffects, Kind, tells_chance
from stagelens.effects.results import BehaviourFacts
from stagelens.effects.stored_scores import stored_scores
from stagelens.estimators.durations import STARTING, paces
from stagelens.estimators.protocol import METHOD
from stagelens.estimators.stage_trust import REPLAY, StageTrust
from stagelens.replaying.draw_plan import passes_needed
from stagelens.runs import fact_tables
from stagelens.runs.run import Run, Stage
from stagelens.runs.schema import digest
from stagelens.wording.numbers import predicted_time
from stagelens.wording.trust_words import width_in_means

from .stage_effects import Effects

RECIPE = "of this recipe"
"""Name of the estimate whose effects are means over draws of the recipe."""

_GOVERNING: tuple[Kind, ...] = ("runs", "recipe")
"""Kinds that say whether an effect would come again, the one that leaves least as recorded first.

On the same data, what is a matter of these data looks as certain as what is not: of gaps that are
nothing but chance in the data, nine of ten have an interval that leaves out zero.
"""


SCORED = "scored:"
"""How behaviours begin that are scores, where draws are stored: the score's key follows."""

VERSION = 3
"""Of what is drawn: draws of another version are made again."""


class DrawFacts(BaseModel):
    """What a table of draws says of itself.

    Attributes:
        run_digest: Of the run.
        set_digest: Of the evaluation set.
        kind: What was drawn.
        behaviours: Those of the task.
        pilot: How many draws settled the number of all; None where it was given.
        kept: What every draw has as recorded, in words.
        batches: See :class:`~stagelens.effects.draws.DrawnEffects`.
        seen: Stage to how often it saw each example; stages without are not known.
        runs: Of several recorded runs: their names, the run itself first.
        told: Of several recorded runs: in what they differ, as sentences; empty for nothing.
        replays: Of several recorded runs: stage to what is known of the replay that is known least.
    """

    model_config = ConfigDict(frozen=True)

    run_digest: str
    set_digest: str
    kind: Kind
    behaviours: list[BehaviourFacts]
    pilot: int | None = None
    batches: int | None = None
    kept: list[str] = []
    seen: dict[str, int] = {}
    runs: list[str] = []
    told: str = ""
    replays: dict[str, StageTrust] = {}


def draws_path(run: Run, set_digest: str, kind: Kind) -> Path:
    """Where draws of one kind are stored."""
    key = digest("draws", VERSION, METHOD, run.digest, set_digest, kind)[:32]
    return run.files.inside(f"results/draws/{key}.parquet")


def load(run: Run, set_digest: str, kind: Kind) -> tuple[DrawFacts, DrawnEffects] | None:
    """The stored draws of one kind; None where there are none."""
    found = as_stored(run, set_digest, kind)
    if found is None:
        return None
    facts, table = found
    named = with_names(run, set_digest, table)
    return facts, DrawnEffects(named, facts.kind, facts.pilot, facts.batches)


def with_names(run: Run, set_digest: str, table: pd.DataFrame) -> pd.DataFrame:
    """Stored draws with scores by their names on pages; without those that are stored no more."""
    of_scores = table["behaviour"].str.startswith(SCORED)
    if not of_scores.any():
        return table
    sets = [name for name in run.set_names if run.evaluation_set(name).digest == set_digest]
    names = {
        SCORED + one.key: name for each in sets for name, one in stored_scores(run, each).items()
    }
    kept = table[~of_scores | table["behaviour"].isin(list(names))]
    return kept.assign(behaviour=kept["behaviour"].replace(names)).reset_index(drop=True)


def as_stored(run: Run, set_digest: str, kind: Kind) -> tuple[DrawFacts, pd.DataFrame] | None:
    """The same as it was measured, with examples that are left out of means.

    Scores are there by their keys, after :data:`SCORED`.
    """
    return fact_tables.read(draws_path(run, set_digest, kind), DrawFacts, COLUMNS)


def stored_draws(run: Run, set_name: str) -> list[tuple[DrawFacts, DrawnEffects]]:
    """All that is stored for a set: what leaves least as recorded first, then the rest."""
    set_digest = run.evaluation_set(set_name).digest
    kinds: list[Kind] = [*_GOVERNING, "same data", "given earlier"]
    every = [load(run, set_digest, kind) for kind in kinds]
    return [one for one in every if one is not None]


def of_recipe(run: Run, set_name: str) -> tuple[DrawFacts, DrawnEffects] | None:
    """The draws that say whether an effect would come again; None where there are none.

    Those on the same data, or given the earlier stages as recorded, are not among them: they say
    less.
    """
    found = [one for one in stored_draws(run, set_name) if one[0].kind in _GOVERNING]
    # So few that they give no interval do not stand in the way of many.
    enough = [one for one in found if one[1].count >= FEWEST]
    return next(iter([*enough, *found]), None)


def governing(run: Run, set_name: str) -> DrawnEffects | None:
    """The effects of :func:`of_recipe`."""
    found = of_recipe(run, set_name)
    return None if found is None else found[1]


def recipe_effects(run: Run, set_name: str) -> Effects | None:
    """Effects of the recipe: means over draws, per example; None where nothing was drawn."""
    found = of_recipe(run, set_name)
    if found is None:
        return None
    facts, drawn = found
    keys = ["stage", "behaviour", "example_id"]
    means = drawn.table.groupby(keys, sort=False)[["final", "effect"]].mean().reset_index()
    examples = run.evaluation_set(set_name).table()
    table = means.merge(examples, on="example_id", how="left")
    table = table.assign(
        set=set_name,
        without=table["final"] - table["effect"],
        estimator=RECIPE,
        prediction=None,
        prediction_without=None,
        confidence=np.nan,
        confidence_without=np.nan,
        within_noise=pd.array([None] * len(table), dtype="boolean"),
    )
    behaviours = {each.name: each.behaviour() for each in facts.behaviours}
    scores = stored_scores(run, set_name).items()
    # Distinct values first: going through a column of strings takes seconds.
    measured = set(table["behaviour"].unique())
    behaviours |= {name: one.behaviour for name, one in scores if name in measured}
    if ACCURACY.name in measured:
        behaviours = {ACCURACY.name: ACCURACY, **behaviours}
    there = set(table["stage"].unique())
    trust = {s.name: _trust(s, s.name in there, facts, drawn) for s in run.stages}
    return Effects.holding(RECIPE, table, behaviours, trust)


def _trust(stage: Stage, there: bool, facts: DrawFacts, drawn: DrawnEffects) -> StageTrust:
    if not there:
        return StageTrust(
            stage=stage.name,
            estimator=REPLAY,
            trust="refused",
            reason=f"The recipe was not drawn without stage {stage.name!r}.",
        )
    how = (
        "of recorded runs, each with and without it"
        if drawn.kind == "runs"
        else "trained anew, each with and without it"
    )
    if (least := facts.replays.get(stage.name)) is not None and least.trust != "exact":
        reason = f"The mean over {drawn.words} {how}. Of the least certain: {least.reason}"
        return least.model_copy(update={"reason": reason})
    return StageTrust(
        stage=stage.name,
        estimator=REPLAY,
        trust="estimated",
        reason=f"The mean over {drawn.words} {how}, which other draws would change.",
        on_samples=() if least is None else least.on_samples,
        over_draws=_widths(stage, drawn),
    )


def _widths(stage: Stage, drawn: DrawnEffects) -> tuple[tuple[str, float], ...]:
    """Behaviour to how wide the interval of its mean effect is, in sizes of that effect."""
    own = drawn.table[drawn.table["stage"] == stage.name]
    means = own.groupby(["behaviour", "draw"], observed=True)["effect"].mean()
    found = []
    for behaviour, values in means.groupby(level="behaviour", observed=True):
        if values.isna().all():
            continue
        # A draw that gave no number is not left out: the others would look more alike than they
        # are, and intervals go by which draws have the data of another.
        one = drawn.interval(values.to_numpy())
        found.append((str(behaviour), width_in_means(one.mean, one.low, one.high)))
    return tuple(found)


def sentence(facts: DrawFacts, drawn: DrawnEffects) -> str:
    """What was drawn, in words."""
    left_out = f" {drawn.left_out}" if drawn.left_out else ""
    if drawn.kind == "runs":
        return f"{drawn.words} of one recipe: {', '.join(facts.runs)}.{facts.told}{left_out}"
    varied, alone = "batches in other orders", ""
    if drawn.kind == "recipe":
        varied = "batches drawn with replacement, as other data of the same kind would be"
        if tells_chance(drawn.count):
            alone = " Some draws share their batches, which shows what is chance alone."
    # What is kept, below, may be initial values.
    others = "dropout" if facts.kept else "initial values and dropout"
    kept = f"{alone} Not drawn anew: {'; '.join(facts.kept)}." if facts.kept else alone
    if drawn.kind == "recipe" and drawn.count >= FEWEST and not tells_chance(drawn.count):
        kept += (
            " Intervals are conservative: so few draws do not show what is chance alone, so they "
            "are too wide where initial values, orders or dropout matter."
        )
    return (
        f"{drawn.words} {NAMES[drawn.kind]}: {varied}; new random numbers for {others}, if "
        f"training used any.{kept}{left_out}"
    )


def predicted_cost(
    run: Run, stages: Sequence[Stage], count: int, kind: Kind, processes: int = 1
) -> tuple[int, float | None]:
    """What draws should cost: stage passes, and seconds (None where no pace is known).

    Args:
        run: The run.
        stages: Those to leave out.
        count: How many draws.
        kind: What is drawn.
        processes: How many share them.
    """
    work = passes_needed(run, stages, kind == "given earlier")
    pace = {each.stage: each.seconds for each in paces(run).stages}
    seconds = [pace[stage.name] for stage in work]
    if any(one is None for one in seconds):
        return count * len(work), None
    rounds = -(-count // max(processes, 1))
    return count * len(work), STARTING + rounds * sum(one or 0.0 for one in seconds)


def cost_text(passes: int, seconds: float | None) -> str:
    """``40 stage passes, about 2 minutes``."""
    time = "time not known" if seconds is None else predicted_time(seconds)
    named = "stage pass" if passes == 1 else "stage passes"
    return f"{passes:,} {named}, {time}"
