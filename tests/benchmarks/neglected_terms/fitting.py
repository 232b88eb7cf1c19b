"""Bounds on true errors from expected ones: chosen on some runs, and told of on others."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import get_args

import numpy as np
import pandas as pd

from stagelens.derivatives.second_order import PROBES
from stagelens.estimators.neglected_bounds import (
    SEVERAL,
    Bounds,
    Held,
    Kind,
    Line,
    Span,
    span_of,
)

LEVEL = 0.9
BEHAVIOUR = "margin"
"""Whose errors are measured."""
CHOSEN_ON = {
    "digits-adamw-5e-4": (0, 1, 2),
    "digits-adamw-2e-3": (0, 1, 2),
    "digits-sgd-0.05": (0, 1, 2),
    "fashion-adamw-3e-4": (0, 1, 2),
}
"""Scenario to the seeds that bounds are chosen on; all other runs tell what they are worth."""

_FLOORS = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_LEAST, _FEW = 10, 100
"""Fewer errors tell no line, and so many no floor, as there are of whole stages."""
_MOST = 1.0
"""Of larger expected errors nothing is promised: there the second order is no amount."""
_RUNS = 3
"""Nor of larger ones than this many runs had."""
_DRAWS, _EVERY = 8, 4
_RESAMPLES = 2000
_TINY = 1e-30


def errors(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per error: of single evaluation examples, of 16 drawn ones, and of all.

    Errors are root mean squares over the evaluation examples and the stretches of a horizon, as
    ``stagelens horizon`` computes them.

    Args:
        rows: Of one job of :mod:`.measuring`: per stretch and example, effects to first order,
            expected and true.
    """
    known = np.isfinite(rows[["first", "expected", "true"]]).all(axis=1)
    own = rows[known].astype({"first": float, "expected": float, "true": float})
    own = own.assign(
        expected_missed=(own["expected"] - own["first"]) ** 2,
        expected_size=own["expected"] ** 2,
        true_missed=(own["true"] - own["first"]) ** 2,
        true_size=own["true"] ** 2,
    )
    sums = ["expected_missed", "expected_size", "true_missed", "true_size"]
    found = []
    for horizon, part in own.groupby("horizon"):
        each = part.groupby("example", sort=True)[sums].sum()
        random = np.random.default_rng(0)
        drawn = [random.choice(len(each), SEVERAL, replace=False) for _ in range(_DRAWS)]
        groups: list[tuple[Kind, np.ndarray]] = [("several", one) for one in drawn]
        groups.append(("several", np.arange(len(each))))
        groups += [("one", np.array([k])) for k in range(0, len(each), _EVERY)]
        values = each.to_numpy()
        for kind, places in groups:
            total = values[places].sum(0)
            final = horizon < 0
            found.append(
                {
                    "kind": kind,
                    "final": final,
                    "steps": int(part["steps"].iloc[0]) if final else int(horizon),
                    "examples": len(places),
                    "expected": float(np.sqrt(total[0] / (total[1] + _TINY))),
                    "true": float(np.sqrt(total[2] / (total[3] + _TINY))),
                }
            )
    return pd.DataFrame(found)


def chosen(table: pd.DataFrame) -> pd.Series:
    """Which errors bounds are chosen on."""
    seeds = [CHOSEN_ON.get(name, ()) for name in table["scenario"]]
    own = [seed in of for seed, of in zip(table["seed"], seeds, strict=True)]
    return pd.Series(own, index=table.index)


def fit(table: pd.DataFrame) -> Bounds:
    """Choose the lines, and count how often they hold elsewhere.

    Args:
        table: All errors, with ``scenario``, ``seed``, ``optimizer``, ``task`` and ``share``.
    """
    horizons = table["steps"].where(~table["final"]).astype(object)
    table = table.assign(
        run=table["scenario"] + "-" + table["seed"].astype(str),
        span=[span_of(None if pd.isna(one) else int(one)) for one in horizons],
    )
    own = chosen(table)
    # Of an optimiser of one scenario, nothing tells how far its factors carry.
    counts = table[own].groupby("optimizer")["scenario"].nunique()
    known = set(counts.index[counts >= 2])
    on, of = table[own & table["optimizer"].isin(known)], table[~own]
    kinds: dict[Kind, dict[Span, Line]] = {}
    for kind in get_args(Kind):
        lines = {
            span: line(on[(on["kind"] == kind) & (on["span"] == span)]) for span in get_args(Span)
        }
        kinds[kind] = {span: found for span, found in lines.items() if found is not None}
    parts = on[on["kind"].isin(["one", "several"])]
    return Bounds(
        level=LEVEL,
        probes=PROBES,
        chosen_on=sorted(on["run"].unique()),
        told_of=sorted(of["run"].unique()),
        scenarios=sorted(table["scenario"].unique()),
        optimizers=sorted(known),
        tasks=sorted(table["task"].unique()),
        behaviours=[BEHAVIOUR],
        steps=int(parts.loc[~parts["final"], "steps"].max()),
        final_steps=int(parts.loc[parts["final"], "steps"].max()),
        shares=(float(parts["share"].min()), float(parts["share"].max())),
        kinds=kinds,
        held=[
            each
            for kind in kinds
            for each in _held(of[of["kind"] == kind], kind, kinds[kind], known)
        ],
    )


def line(rows: pd.DataFrame) -> Line | None:
    """The line that nine of ten errors stay within, in every scenario; None for too few runs.

    Of the floors the one is taken that makes bounds lowest, in the mean of their logarithms.
    """
    largest = rows.groupby("run")["expected"].max().nlargest(_RUNS)
    if len(largest) < _RUNS:
        return None
    up_to = min(float(largest.min()), _MOST)
    own = rows[rows["expected"] <= up_to]
    if len(own) < _LEAST:
        return None
    # Of a scenario with one run, the quantile says more of that run than of it.
    parts = [own, *(part for _, part in own.groupby("scenario") if part["run"].nunique() > 1)]
    best: tuple[float, float, float] | None = None
    for floor in _FLOORS if len(own) > _FEW else _FLOORS[:1]:
        factor = max(_quantile(part, floor) for part in parts)
        bounds = np.maximum(factor * (floor + own["expected"]), own["expected"]).clip(lower=_TINY)
        size = float(np.log(bounds).mean())
        if best is None or size < best[0]:
            best = size, floor, factor
    assert best is not None
    return Line(floor=best[1], factor=round(best[2], 3), up_to=round(up_to, 3), cases=len(own))


def _quantile(rows: pd.DataFrame, floor: float) -> float:
    """Of true errors over expected ones and the floor, every run with equal weight."""
    ratio = (rows["true"] / (rows["expected"] + floor).clip(lower=_TINY)).to_numpy()
    weights = 1 / rows.groupby("run")["run"].transform("size").to_numpy(float)
    order = np.argsort(ratio)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(ratio[order][min(np.searchsorted(reached, LEVEL), len(order) - 1)])


def _held(
    rows: pd.DataFrame, kind: Kind, lines: Mapping[Span, Line], known: Collection[str]
) -> Iterator[Held]:
    """By scenario and span, and for all."""
    bounds = [
        lines[span].bound(error) if span in lines and optimizer in known else None
        for span, error, optimizer in zip(
            rows["span"], rows["expected"], rows["optimizer"], strict=True
        )
    ]
    promised = pd.Series(bounds, index=rows.index, dtype=float)
    # To rounding: a step by itself is exact to second order.
    rows = rows.assign(
        known=promised.notna(),
        kept=rows["true"] <= promised * 1.001 + 1e-4,
    )
    spans = [span for span in get_args(Span) if (rows["span"] == span).any()]
    for scenario in ("", *sorted(rows["scenario"].unique())):
        for span in ("", *spans):
            part = rows[
                ((rows["scenario"] == scenario) | (not scenario))
                & ((rows["span"] == span) | (not span))
            ]
            promised_of = part[part["known"]]
            if not len(part):
                continue
            low, high = _between(promised_of)
            yield Held(
                kind=kind, scenario=scenario, span=span, kept=int(promised_of["kept"].sum()),
                cases=len(promised_of), runs=int(promised_of["run"].nunique()), low=low, high=high,
                unknown=len(part) - len(promised_of),
            )  # fmt: skip


def _between(rows: pd.DataFrame) -> tuple[float | None, float | None]:
    """The 95 % interval of the share that held, by drawing whole runs anew."""
    by_run = rows.groupby("run")["kept"].agg(["sum", "size"]).to_numpy(float)
    if len(by_run) < 3:
        return None, None
    drawn = np.random.default_rng(0).integers(0, len(by_run), (_RESAMPLES, len(by_run)))
    sums = by_run[drawn].sum(1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
    return round(float(low), 4), round(float(high), 4)


def text(found: Bounds) -> str:
    """The lines, and a row per kind, scenario and span."""
    lines = [f"chosen on {', '.join(found.chosen_on)}"]
    for kind, spans in found.kinds.items():
        for span, own in spans.items():
            lines.append(
                f"{kind}, {span}: {own.factor:g} ({own.floor:g} + expected) up to {own.up_to:g}, "
                f"chosen on {own.cases:,} errors"
            )
    rows = pd.DataFrame([each.model_dump() for each in found.held])
    rows["share"] = rows["kept"] / rows["cases"]
    lines.append(rows.round(3).to_string(index=False))
    return "\n".join(lines)
