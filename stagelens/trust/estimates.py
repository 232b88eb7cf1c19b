"""Which effect tables are stored, how they are named, and how pages and reports read them.

An *estimate* is an estimator with its settings; it has one name, such as ``coarse-replay 1/4``, in
controls, links, reports and cache keys alike. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from stagelens.contracts import ACCURACY, RunError
from stagelens.effects import summary
from stagelens.effects.results import (
    Result,
    ResultFacts,
    is_large,
    joined,
    load_result,
    result_path,
    stored_results,
)
from stagelens.estimators.coarse_replay import EXACT
from stagelens.estimators.registry import default_estimator, estimate_name, estimators, find
from stagelens.estimators.stage_trust import REPLAY, StageTrust, is_ground_truth
from stagelens.runs.run import Run
from stagelens.wording.trust_words import holds

from . import noise
from .stage_effects import Effects
from .verification import trusted_facts


def stored_estimates(run: Run, set_name: str) -> dict[str, ResultFacts]:
    """The effect tables that are stored for a set as it is now, by name of the estimate.

    Best first: by estimator, by how much of it was replayed exactly, and by budget.
    """
    found = [f for f in stored_results(run, set_name) if f.estimator in estimators()]
    found.sort(key=_rank)
    return {estimate_name(facts.estimator, facts.settings): facts for facts in found}


def known_trust(
    run: Run, set_name: str, estimator: str, settings: Mapping[str, object]
) -> dict[str, StageTrust]:
    """Stage to what is known of a stored effect table, verification included; else empty."""
    wanted = estimator, dict(settings)
    for facts in stored_results(run, set_name):
        if (facts.estimator, facts.settings) == wanted:
            return {stage.stage: stage for stage in trusted_facts(run, facts).stages}
    return {}


def usual_estimator(run: Run, set_name: str | None, stages: Sequence[str]) -> str:
    """The estimator used by default where one has to do for several stages.

    Replay where it has come to all of them, else the best that the recording allows and that costs
    less.

    Args:
        run: The run.
        set_name: One of its sets; None where there is none.
        stages: Their names.
    """
    there = known_trust(run, set_name, REPLAY, {}) if set_name is not None else {}
    replayed = {name for name, known in there.items() if known.trust != "refused"}
    return REPLAY if set(stages) <= replayed else default_estimator(run)


def _rank(facts: ResultFacts) -> tuple[int, int, float, str]:
    budget, exact = facts.settings.get("budget"), facts.settings.get(EXACT)
    best = -float(budget) if isinstance(budget, int | float) else 0.0
    # The settings come last, so that the order is the same each time.
    settings = str(sorted(facts.settings.items()))
    partly = -exact if isinstance(exact, int) else 0
    return -find(facts.estimator).preference, partly, best, settings


def as_effects(estimate: str, result: Result, orders: pd.DataFrame | None) -> Effects:
    """A whole effect table, with accuracy and with what is known of the training noise.

    Args:
        estimate: Its name.
        result: The table, with what was verified of it.
        orders: ``noise.load_orders``; None where the noise is not known.
    """
    table = noise.marked(summary.with_accuracy(result.table), orders)
    behaviours = dict(result.behaviours)
    if (table["behaviour"] == ACCURACY.name).any():
        behaviours = {ACCURACY.name: ACCURACY, **behaviours}
    return Effects.holding(estimate, table, behaviours, result.trust)


def stored_effects(
    run: Run,
    estimate: str,
    facts: ResultFacts,
    labelled: bool,
    orders: pd.DataFrame | None,
    coded: bool = False,
) -> Effects:
    """Like :func:`as_effects`, for a stored table that is read when it is first needed.

    Args:
        run: The run.
        estimate: Its name.
        facts: What it says of itself, see ``verification.trusted_facts``.
        labelled: Whether any example of the set has a label.
        orders: ``noise.load_orders``; None where the noise is not known.
        coded: See ``results.load_result``.
    """
    measured = {each.name: each.behaviour() for each in facts.behaviours}
    behaviours = {ACCURACY.name: ACCURACY, **measured} if labelled else measured

    def read(name: str, stage: str | None, columns: Sequence[str] | None) -> pd.DataFrame:
        if columns is not None:
            # What answers and noise need to be told.
            noisy = noise.MARKED if orders is not None else ()
            columns = list(dict.fromkeys([*columns, *summary.ANSWERS, *noisy]))
        if name == ACCURACY.name:
            whole = stage is None
            first = effects.first if whole else stored(effects.measured, stage, columns)
            return noise.marked(summary.accuracy_rows(first), orders)
        return noise.marked(stored(name, stage, columns), orders)

    def stored(name: str, stage: str | None, columns: Sequence[str] | None) -> pd.DataFrame:
        found = load_result(
            *(run, examples, "effects", facts.estimator, facts.settings),
            *(coded, name, stage, columns),
        )
        if found is None:
            path = result_path(run, facts)
            raise RunError(
                f"{path} is damaged or was deleted: the effects by {estimate} on set "
                f"{facts.set_name} cannot be read; delete it where it is still there, load the "
                "page again, and have them computed again"
            )
        return found.table

    examples = run.evaluation_set(facts.set_name)
    trust = {stage.stage: stage for stage in facts.stages}
    effects = Effects(estimate, behaviours, trust, read, is_large(examples.count))
    return effects


def best_known(chosen: Effects, others: Sequence[Effects]) -> Effects:
    """For each stage the numbers of which most is known: by replay, else those to rely on.

    Where no table of a stage can be relied on, its numbers are those that were chosen.
    """
    tables = [chosen, *others]
    return _taken(chosen, {s: tables[best_of(s, [t.trust for t in tables])] for s in chosen.trust})


def completed(chosen: Effects, others: Sequence[Effects], stages: Sequence[str]) -> Effects:
    """The chosen numbers; stages that their table lacks have the best known ones of the others.

    Args:
        chosen: Effects of a stored table, which may hold only some stages.
        others: Of the other tables of the set, the best first.
        stages: Of the run, in training order.
    """
    if all(stage in chosen.trust for stage in stages):
        return chosen
    taken = {}
    for stage in stages:
        having = [one for one in (chosen, *others) if stage in one.trust]
        if chosen in having:
            taken[stage] = chosen
        elif having:
            taken[stage] = having[best_of(stage, [one.trust for one in having])]
    return _taken(chosen, taken)


def _taken(chosen: Effects, taken: Mapping[str, Effects]) -> Effects:
    """Each stage's numbers from a table of its own."""
    trust = {stage: one.trust[stage] for stage, one in taken.items()}
    sources = {stage: one.sources[stage] for stage, one in taken.items()}

    def read(behaviour: str, stage: str | None, columns: Sequence[str] | None) -> pd.DataFrame:
        if behaviour in chosen.judged:  # no other table holds it
            own = chosen.of_stage(behaviour, stage, columns or ()) if stage is not None else None
            return chosen.of(behaviour) if own is None else own
        if stage is not None:
            return taken[stage].of_stage(behaviour, stage, columns or ())
        rows = [(table := one.of(behaviour))[table["stage"] == name] for name, one in taken.items()]
        return pd.concat(rows, ignore_index=True)

    return Effects(
        *(chosen.estimator, chosen.behaviours, trust, read, chosen.by_stage, sources),
        judged=chosen.judged,
    )


def best_of(stage: str, tables: Sequence[Mapping[str, StageTrust]]) -> int:
    """Which of several tables says most of a stage; the first wins among equals.

    Args:
        stage: At least one table has it.
        tables: Stage to what is known of it, per table.
    """
    of = [number for number, table in enumerate(tables) if stage in table]
    settled = [number for number in of if is_ground_truth(tables[number][stage])]
    leaned_on = [number for number in of if holds(tables[number][stage])]
    shown = [number for number in of if tables[number][stage].trust != "refused"]
    return [*settled, *leaned_on, *shown, *of][0]


def best_result(run: Run, set_name: str, stages: Sequence[str] | None = None) -> Result:
    """All stages of a set, each by the stored table that says most of it.

    The rows, and what is known of each stage, name the estimator that they are by. The rest of the
    facts are those of the first stage's table.

    Args:
        run: The run.
        set_name: One of its sets; some effect table of it is stored.
        stages: Names of stages; None for all. Those of which nothing is stored are left out.

    Raises:
        RunError: No table is stored that can be read.
    """
    found, there = _best_tables(run, set_name)
    if stages is not None:
        there = {name: number for name, number in there.items() if name in stages}
    parts: dict[str, Result] = {}
    for number in dict.fromkeys(there.values()):  # one table after the other: they may be large
        facts = found[number]
        stored = load_result(run, set_name, "effects", facts.estimator, facts.settings)
        if stored is None:
            raise RunError(f"{result_path(run, facts)} is damaged; start the command again")
        whole = Result(facts, noise.marked(stored.table, noise.load_orders(run, set_name)))
        for name in (name for name, of in there.items() if of == number):
            parts[name] = joined([whole], [name])
    if not parts:
        raise RunError(f"no stage effect is stored for set {set_name!r}; start the command again")
    return joined([parts[name] for name in there], list(there))


def best_trust(run: Run, set_name: str) -> dict[str, StageTrust]:
    """Stage to what is known of the numbers that :func:`best_result` takes; reads no rows."""
    found, there = _best_tables(run, set_name)
    return {name: {t.stage: t for t in found[n].stages}[name] for name, n in there.items()}


def _best_tables(run: Run, set_name: str) -> tuple[list[ResultFacts], dict[str, int]]:
    """All stored tables, best first, and stage to the number of the one that says most of it."""
    found = [trusted_facts(run, facts) for facts in stored_estimates(run, set_name).values()]
    trusts = [{trust.stage: trust for trust in facts.stages} for facts in found]
    names = [s.name for s in run.stages if any(s.name in trust for trust in trusts)]
    return found, {name: best_of(name, trusts) for name in names}
