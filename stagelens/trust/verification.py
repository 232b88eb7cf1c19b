"""Estimates compared with replays: how far each number can be trusted.

Importing this module does not import torch; only :func:`verify` does work that needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stagelens.compute import processes
from stagelens.contracts import Progress, Refused
from stagelens.effects.results import Result, ResultFacts, load_result, stored_results
from stagelens.estimators.coarse_replay import EXACT
from stagelens.estimators.registry import estimators, make_estimator, method_of
from stagelens.estimators.reproduction import doubted
from stagelens.estimators.stage_trust import REPLAY, Agreement, StageTrust, is_ground_truth
from stagelens.runs import fact_tables
from stagelens.runs.run import Run
from stagelens.runs.schema import canonical_json
from stagelens.wording.trust_words import trust_word

from . import agreements
from .fidelity import bootstrap, fidelity, paired
from .noise import load_noise, load_orders, marked, measure_noise

COLUMNS = (
    "set",
    "stage",
    "behaviour",
    "estimator",
    "budget",
    "exact_stages",
    "r",
    "rho",
    "slope",
    "relative_error",
    "sign_agreement",
    "cost",
    "wall_cost",
    "reliable",
    "expected_error",
    "noise_floor_r",
    "noise_sd",
    "trust",
    "n",
)
"""Columns of a verification table, as ``stagelens verify --json`` prints them; ``reliable`` and
``expected_error`` are what was promised before any replay, ``exact_stages`` how many of the later
stages were replayed exactly before the cheap steps (0: none)."""

_KEYS = ["set_digest", "stage", "behaviour", "estimator", "settings"]


def _of(table: pd.DataFrame, behaviour: str) -> pd.DataFrame:
    return table[table["behaviour"] == behaviour]


def compare(estimate: Result, truth: Result, noise: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per stage and behaviour: an effect table against the one by replay.

    Stages that have no replay yet have no row.

    Args:
        estimate: Effects by any estimator.
        truth: Effects by replay, of the same set.
        noise: Effects under other orders, from :func:`load_noise`.
    """
    facts = estimate.facts
    rows = []
    for stage, trust in estimate.trust.items():
        if (real := truth.trust.get(stage)) is None:
            continue
        # A replay cannot verify itself.
        proves = is_ground_truth(real) and facts.estimator != REPLAY
        for behaviour in estimate.behaviours:
            own, true = paired(_of(estimate.table, behaviour), _of(truth.table, behaviour), stage)
            found = fidelity(own.to_numpy(), true.to_numpy())
            verified = proves and trust.trust == "estimated" and np.isfinite(found["r"])
            agreement = Agreement.model_validate({**found, "behaviour": behaviour})
            agreements = (agreement,) if verified else ()
            row: dict[str, Any] = {
                "set": facts.set_name,
                "stage": stage,
                "behaviour": behaviour,
                "estimator": facts.estimator,
                "budget": facts.settings.get("budget"),
                "exact_stages": facts.settings.get(EXACT, 0),
                **found,
                "cost": trust.cost,
                "wall_cost": trust.seconds / real.seconds if real.seconds > 0 else float("nan"),
                "reliable": trust.reliable,
                "expected_error": trust.expected_error,
                **_noise_figures(noise, stage, behaviour, true),
                "trust": trust_word(_joined(trust, agreements, {}), behaviour),
                "n": int(own.notna().sum()),
                "reason": trust.reason,
                "set_digest": facts.set_digest,
                "settings": canonical_json(facts.settings),
            }
            for name, (low, high) in bootstrap(own.to_numpy(), true.to_numpy()).items():
                row[f"{name}_low"], row[f"{name}_high"] = low, high
            rows.append(row)
    return pd.DataFrame(rows)


def _noise_figures(
    noise: pd.DataFrame | None, stage: str, behaviour: str, true: pd.Series
) -> dict[str, float]:
    """Noise-floor r, and the typical (root mean square) noise sd of an example's effect."""
    if noise is None:
        return {"noise_floor_r": float("nan"), "noise_sd": float("nan")}
    rows = noise[(noise["stage"] == stage) & (noise["behaviour"] == behaviour)]
    if rows.empty:
        return {"noise_floor_r": float("nan"), "noise_sd": float("nan")}
    orders = [o.set_index("example_id")["effect"] for _, o in rows.groupby("order")]
    r = [fidelity(o.reindex(true.index).to_numpy(), true.to_numpy())["r"] for o in orders]
    sd = pd.concat([*orders, true], axis=1).std(axis=1)
    return {"noise_floor_r": float(np.mean(r)), "noise_sd": float((sd**2).mean() ** 0.5)}


def _verification_path(run: Run) -> Path:
    return run.files.inside("results/verification.parquet")


def load_verification(run: Run) -> pd.DataFrame:
    """All stored rows for this run's recording; empty where nothing was verified."""
    table = fact_tables.read_plain(_verification_path(run), (*_KEYS, "run_digest", "method"))
    if table is None:
        return pd.DataFrame(columns=[*COLUMNS, "set_digest", "settings", "run_digest"])
    mine = (table["run_digest"] == run.digest) & (
        table["method"] == table["estimator"].map(method_of)
    )
    return table[mine].reset_index(drop=True)


def save_verification(run: Run, rows: pd.DataFrame) -> None:
    """Add rows to the stored table; those of the same behaviour and settings are replaced."""
    # The same estimate may have been asked for twice.
    methods = rows["estimator"].map(method_of)
    rows = rows.assign(run_digest=run.digest, method=methods).drop_duplicates(_KEYS)
    stored = load_verification(run)
    if len(stored):
        kept = stored.merge(rows[_KEYS], on=_KEYS, how="left", indicator=True)
        stored = stored[(kept["_merge"] == "left_only").to_numpy()]
        rows = pd.concat([stored, rows], ignore_index=True) if len(stored) else rows
    fact_tables.write(_verification_path(run), rows)


def trusted(run: Run, result: Result) -> Result:
    """A result with all that is known of it from what is stored; computes no model.

    Estimates are compared with the stored replay of the same set; where there is none, the figures
    kept from an earlier one are used. Where coarse replay was refused, the cheaper estimates of
    the stage say so. ``within_noise`` is filled in where the training noise was measured.
    """
    table = marked(result.table, load_orders(run, result.facts.set_name))
    return Result(trusted_facts(run, result.facts, partial(_of, result.table)), table)


def trusted_facts(
    run: Run, facts: ResultFacts, rows: Callable[[str], pd.DataFrame | None] | None = None
) -> ResultFacts:
    """What a result says of itself, with all that is known of it; see :func:`trusted`.

    Args:
        run: The run.
        facts: Of the result.
        rows: Gives those of a behaviour, by its name; None reads the stored ones, where there is a
            replay to compare with.
    """
    found = _agreements(run, facts, rows)
    warned = _warned(run, facts)
    joined = [_joined(stage, found.get(stage.stage, ()), warned) for stage in facts.stages]
    stages = [_unsettled(run, stage) for stage in doubted(run, joined)]
    return facts.model_copy(update={"stages": stages})


def _unsettled(run: Run, trust: StageTrust) -> StageTrust:
    """What is known of an estimate, with why no replay can settle it, where that is so."""
    names = [stage.name for stage in run.stages]
    if trust.trust != "estimated" or trust.stage not in names:
        return trust
    later = run.stages[names.index(trust.stage) + 1 :]
    why = next((stage.no_replay for stage in later if stage.no_replay), "")
    return trust.model_copy(update={"no_replay": why}) if why else trust


def keep_agreements(run: Run, set_name: str) -> None:
    """Keep how the stored estimates of a large set agree with its replay, for whoever reads them.

    Nothing else is stored by it: without, the same is worked out whenever it is looked at.
    """
    every = stored_results(run, set_name)
    for truth in (facts for facts in every if facts.estimator == REPLAY):
        for facts in (each for each in every if each.estimator != REPLAY):
            agreements.keep(run, facts, truth, _true_stages(run, truth))
        return


def _true_stages(run: Run, truth: ResultFacts) -> list[str]:
    return [t.stage for t in doubted(run, truth.stages) if is_ground_truth(t)]


def _agreements(
    run: Run, facts: ResultFacts, rows_of: Callable[[str], pd.DataFrame | None] | None
) -> dict[str, tuple[Agreement, ...]]:
    """Stage to its agreement with replay, by behaviour in the result's order."""
    if facts.estimator == REPLAY:
        return {}
    known = (f for f in stored_results(run, facts.set_name) if f.estimator == REPLAY)
    truth = next(known, None)
    rows: Sequence[tuple[str, str, Mapping[str, Any]]] = ()
    if truth is not None:
        # A damaged table gives no rows; the figures kept from it are used below.
        rows = agreements.figures(run, facts, truth, _true_stages(run, truth), rows_of)
    if not rows:
        stored = load_verification(run)
        mine = stored[
            (stored["set_digest"] == facts.set_digest)
            & (stored["estimator"] == facts.estimator)
            & (stored["settings"] == canonical_json(facts.settings))
            & stored["trust"].isin(("verified", "does not agree"))
        ]
        rows = [(row["stage"], row["behaviour"], row) for row in mine.to_dict("records")]
    found: dict[str, tuple[Agreement, ...]] = {}
    for stage, behaviour, row in rows:
        if np.isfinite(row["r"]):
            agreement = Agreement.model_validate({**row, "behaviour": behaviour})
            found[stage] = (*found.get(stage, ()), agreement)
    return found


def _warned(run: Run, facts: ResultFacts) -> dict[str, str]:
    """Stage to the title of a better estimator all of whose stored tables of the set refused it.

    Where a closer look refused to give a number, a cheaper estimate is not to be relied on.
    """
    stored = [f for f in stored_results(run, facts.set_name) if f.estimator in estimators()]
    found: dict[str, str] = {}
    for kind in estimators().values():
        own = [f for f in stored if f.estimator == kind.name and kind.warns_cheaper]
        known = [trust for each in own for trust in each.stages]
        given = {trust.stage for trust in known if trust.trust != "refused"}
        for trust in known:
            if trust.stage not in given:
                found.setdefault(trust.stage, kind.title)
    return found


def _joined(
    stage: StageTrust, found: tuple[Agreement, ...], warned: Mapping[str, str]
) -> StageTrust:
    if stage.trust != "estimated":
        return stage
    if found:
        # The first behaviour speaks where none is named.
        word = "verified" if found[0].agrees else "does not agree"
        # What was promised before the replay stays beside what came of it.
        return stage.model_copy(update={"trust": word, "agreements": found})
    if stage.stage in warned:
        reason = f"{stage.reason} {warned[stage.stage]} of this stage was refused."
        return stage.model_copy(update={"reason": reason, "reliable": False})
    return stage


def verify(
    run: Run,
    set_name: str,
    estimators: Sequence[tuple[str, Mapping[str, Any]]],
    progress: Any,
    stages: Sequence[str] | None = None,
    orders: int = 0,
    split_batches: bool = False,
    ensemble: bool | None = None,
    shard: bool = False,
) -> pd.DataFrame:
    """Replay, compare every estimator with it, and store the figures.

    Args:
        run: The run.
        set_name: An evaluation set.
        estimators: Name and settings of each.
        progress: Called as the work proceeds.
        stages: Their names; None for all.
        orders: Other orders of the batches for the noise floor; 0 for none.
        split_batches: See :class:`~stagelens.estimators.replay.Replay`.
        ensemble: The same.
        shard: The same.

    Returns:
        One row per estimator, stage and behaviour; see :data:`COLUMNS`.

    Raises:
        Refused: The run cannot be replayed.
    """
    from stagelens.effects.computing import attribute

    for name, settings in estimators:
        make_estimator(name, settings)  # fails on a wrong setting before anything is replayed
    parts, overall = 1 + len(estimators) + orders, Progress(progress)
    truth = attribute(
        run,
        set_name,
        REPLAY,
        stages,
        overall.piece(0, parts),
        {"split_batches": split_batches, "ensemble": ensemble, "shard": shard},
    )
    known = doubted(run, truth.facts.stages)
    if refused := [t for t in known if t.trust == "refused"]:
        raise Refused(refused[0].reason)
    truth = Result(truth.facts.model_copy(update={"stages": known}), truth.table)
    noise = None
    if orders:
        part = overall.part(1 / parts, (1 + orders) / parts)
        noise = measure_noise(run, set_name, orders, part, stages)
    else:
        noise = load_noise(run, truth.facts.set_digest)
    tables = []
    for number, (name, settings) in enumerate(estimators):
        report = overall.piece(1 + orders + number, parts)
        try:
            estimate = attribute(run, set_name, name, stages, report, settings)
            stages_of = doubted(run, estimate.facts.stages)
            facts = estimate.facts.model_copy(update={"stages": stages_of})
            estimate = Result(facts, estimate.table)
        except Refused as refusal:
            estimate = load_refused(run, truth, name, dict(settings), str(refusal))
        tables.append(compare(estimate, truth, noise))
    rows = pd.concat(tables, ignore_index=True)
    processes.by_main(lambda: save_verification(run, rows))
    return rows


def load_refused(
    run: Run, truth: Result, estimator: str, settings: dict[str, Any], reason: str
) -> Result:
    """What an estimator that refused every stage gives: the same rows, without numbers."""
    stored = load_result(run, truth.facts.set_name, "effects", estimator, settings)
    if stored is not None and set(truth.trust) <= set(stored.trust):
        return stored
    trusts = [
        StageTrust(stage=t.stage, estimator=estimator, trust="refused", reason=reason)
        for t in truth.facts.stages
    ]
    facts = truth.facts.model_copy(
        update={"estimator": estimator, "settings": settings, "stages": trusts}
    )
    return Result(facts, truth.table.assign(effect=np.nan, without=np.nan, estimator=estimator))
