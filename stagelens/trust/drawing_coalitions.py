"""Draws of a run's recipe with every coalition of stages, trained and measured.

What a draw is made from is a message, as processes share them: its number (``draw``), the ``kind``
of draws, the ``sets``, how often examples were ``seen``, and ``whole`` to tell it from a draw that
is trained with and without single stages only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stagelens.compute.helpers import Item
from stagelens.contracts import ACCURACY, Progress, ProgressCallback, StageLensError
from stagelens.effects.draws import Kind
from stagelens.effects.results import BehaviourFacts
from stagelens.estimators.coalition_plan import MOST
from stagelens.estimators.durations import paces
from stagelens.estimators.protocol import METHOD
from stagelens.estimators.sharing_out import share_pieces
from stagelens.measuring.models import BATCH_SIZE, SHARD, empty_model, measure
from stagelens.replaying.draw_plan import Draw, coalition_passes
from stagelens.replaying.draws import drawn_coalitions
from stagelens.runs import fact_tables
from stagelens.runs.claims import claim
from stagelens.runs.run import Run
from stagelens.runs.schema import digest
from stagelens.runs.sets.evaluation_set import EvaluationSet

from . import drawing, one_draw
from .drawn_coalitions import (
    FOLDER,
    DrawnCoalitionFacts,
    DrawnCoalitions,
    column,
    draw_path,
    stored,
)
from .draws import VERSION, load


def check(run: Run, kind: Kind) -> None:
    """Refuse before any work what cannot be drawn with every coalition.

    Raises:
        StageLensError: There are too many stages.
        Refused: Names the stage and what is in the way.
    """
    if len(run.stages) > MOST:
        raise StageLensError(
            f"{len(run.stages)} stages have {1 << len(run.stages):,} coalitions, and all of them "
            f"are trained in each draw of up to {MOST}; draw without --shares"
        )
    drawing.check(run, kind)


def unmade(run: Run, set_names: Sequence[str], number: int, kind: Kind) -> list[int]:
    """The draws that some set lacks, of those with lower numbers."""
    sets = [run.evaluation_set(name) for name in set_names]
    return [n for n in range(number) if not all(_is_stored(run, e, kind, n) for e in sets)]


def _is_stored(run: Run, examples: EvaluationSet, kind: Kind, number: int) -> bool:
    facts = fact_tables.facts_of(draw_path(run, examples.digest, kind, number), DrawnCoalitionFacts)
    return facts is not None and facts.run_digest == run.digest


def measure_coalitions_of_draws(
    run: Run,
    set_names: Sequence[str],
    number: int,
    progress: ProgressCallback,
    kind: Kind = "recipe",
) -> dict[str, DrawnCoalitions]:
    """Train every coalition of stages in each draw, and measure them on sets; stored draw by draw.

    Effects of leaving out single stages are among them, and are stored as those of draws are.

    Args:
        run: The run.
        set_names: Evaluation sets; each draw is trained once for all of them.
        number: How many draws.
        progress: Called for every step.
        kind: ``"recipe"`` or ``"same data"``.

    Raises:
        StageLensError: There are too many stages.
        Refused: The recipe cannot be drawn again; names the stage and what is in the way.
    """
    left = unmade(run, set_names, number, kind)
    if left:
        check(run, kind)
        drawn_with = _seen(run, set_names, kind)
        known = [pace.seconds or 1.0 for pace in paces(run).stages]
        cost = sum(known[index] for index in coalition_passes(range(1 << len(known))))
        common = {"kind": kind, "sets": list(set_names), "seen": drawn_with, "whole": True}
        items = [Item({"draw": n, **common}, cost) for n in left]
        share_pieces(run, run.stages, items, partial(do, run), Progress(progress).part(0.0, 0.99))
        for item in items:
            # What a helper could not do, or another command was about to; else it is there.
            make(run, item.message, progress, wait=True)
            _claimed(run, item.message).unlink(missing_ok=True)
    found = {name: stored(run, name, kind, number) for name in set_names}
    each = {name: one for name, one in found.items() if one is not None}
    seen = next(iter(each.values())).facts[0].seen
    _keep_effects(run, set_names, number, kind, seen)
    drawing.measure_on_sets(run, set_names, number, progress, None, kind)
    return each


def _seen(run: Run, set_names: Sequence[str], kind: Kind) -> dict[str, int]:
    """How often stages saw their examples, as far as that matters and can be told."""
    if kind != "recipe":
        return {}
    for name in set_names:
        if (known := stored(run, name, kind)) is not None:
            return known.facts[0].seen
        effects = load(run, run.evaluation_set(name).digest, kind)
        if effects is not None and effects[0].seen:
            return effects[0].seen
    return drawing.told_times_seen(run)


def do(run: Run, message: Mapping[str, Any], progress: ProgressCallback) -> None:
    """One draw, as processes share them; one that another command is about to make is left."""
    make(run, message, progress, wait=False)


def make(run: Run, message: Mapping[str, Any], progress: ProgressCallback, wait: bool) -> None:
    """Train and measure the coalitions of one draw, and store them, unless that was done."""
    kind, number = message["kind"], int(message["draw"])
    with claim(_claimed(run, message), wait) as mine:
        if not mine:
            return
        sets = [run.measurable_set(name) for name in message["sets"]]
        left = [each for each in sets if not _is_stored(run, each, kind, number)]
        if not left:
            return
        report = Progress(progress).part(0.0, 1.0, f"Draw {number + 1}: ")
        model = empty_model(run)
        held = [list(e.batches(BATCH_SIZE)) if e.count <= SHARD else None for e in left]
        tables: list[dict[str, np.ndarray]] = [{} for _ in left]
        masks = range(1 << len(run.stages))
        draw = Draw(number, kind == "recipe")
        for mask, weights in drawn_coalitions(run, draw, masks, message["seen"], report):
            for examples, batches, own in zip(left, held, tables, strict=True):
                given = examples.batches(BATCH_SIZE) if batches is None else batches
                (one,) = measure(run.task, model, [weights], given, examples.count)
                values = one_draw.values_of(one, examples.table([])["label"])
                own.update({column(mask, name): each for name, each in values.items()})
        for examples, own in zip(left, tables, strict=True):
            facts = DrawnCoalitionFacts(
                run_digest=run.digest,
                set_digest=examples.digest,
                kind=kind,
                draw=number,
                stages=len(run.stages),
                behaviours=[BehaviourFacts.of(each) for each in run.task.behaviour_kinds],
                batches=drawing.pools(run, message["seen"]) if kind == "recipe" else None,
                kept=drawing.kept_as_recorded(run, kind, message["seen"]),
                seen=message["seen"],
            )
            table = pd.DataFrame({"example_id": examples.table([])["example_id"], **own})
            fact_tables.write(draw_path(run, examples.digest, kind, number), table, facts)


def _claimed(run: Run, message: Mapping[str, Any]) -> Path:
    """The file that whoever makes a draw holds."""
    key = digest("whole draw", VERSION, METHOD, run.digest, message["kind"], message["seen"])
    return run.files.inside(f"{FOLDER}/.{key[:16]}-{message['draw']}.lock")


def _keep_effects(
    run: Run, set_names: Sequence[str], number: int, kind: Kind, seen: dict[str, int]
) -> None:
    """Have draws of single stages find what these coalitions say of them."""
    every = [stage.name for stage in run.stages]
    full = (1 << len(every)) - 1
    for item in drawing.draws_to_make(run, set_names, number, every, kind, seen):
        stages = [run.stage(name) for name in item.message["stages"]]
        masks = {("", True): full} | {(s.name, False): full & ~(1 << s.index) for s in stages}
        for name in item.message["sets"]:
            examples = run.evaluation_set(name)
            path = draw_path(run, examples.digest, kind, item.message["draw"])
            found = fact_tables.read(path, DrawnCoalitionFacts)
            if found is None or found[0].seen != seen:
                continue
            facts, table = found
            names = [each.name for each in facts.behaviours]
            if column(full, ACCURACY.name) in table:
                names.append(ACCURACY.name)
            measured = {
                key: {each: table[column(mask, each)].to_numpy(float) for each in names}
                for key, mask in masks.items()
            }
            ids = table["example_id"]
            made = one_draw.table_of(ids, facts.draw, stages, measured)
            one_draw.put(run, name, item.message, made)
