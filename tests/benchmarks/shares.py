"""Shares by estimates against exact ones, and how well shares predict models that were left out.

One command prints the tables::

    python tests/benchmarks/shares.py --cache DIR [--seeds 3 4 5] [--scenarios NAME ...]

*Shares*: per stage, the correlation over examples of a share of the margin by an estimate with the
exact one, its relative error, and the trust that it is shown with; beside it, whether leaving out
that stage alone is called reliable. *Models*: how often the errors of coalitions' models stay
within what is expected of them, for one missing stage and for several. *Prediction*: for each
example, how the values of all coalitions rank as predicted by a sum over their stages (Spearman;
the median over examples): the linear datamodelling score of A. Ilyas et al. (2022), with
coalitions for subsets. Shares are fitted to a random half of the coalitions, by the weights that
make all of them give Shapley's (S. Lundberg and S.-I. Lee, 2017), and asked for the other half.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stagelens.analyses.shares import values as formulas
from stagelens.analyses.shares.share_table import SHARE, shares_of
from stagelens.effects.coalition_measuring import measure_coalitions
from stagelens.effects.coalition_results import CoalitionResult
from stagelens.wording.trust_words import trust_word
from tests.benchmarks.scenarios import SCENARIOS, Scenario, recorded

ESTIMATES: dict[str, tuple[str, dict[str, Any]]] = {
    "coarse 1/4": ("coarse-replay", {"budget": 0.25}),
    "coarse 1/2": ("coarse-replay", {"budget": 0.5}),
    "task vectors": ("task-vector", {}),
}
_MARGIN = "margin"


def measure(scenario: Scenario, seed: int, cache: Path) -> tuple[list[Any], list[Any], list[Any]]:
    """Rows of the three tables, of one run."""
    run = recorded(scenario, seed, cache)
    began = time.perf_counter()
    exact = measure_coalitions(run, "test", "replay")
    seconds = time.perf_counter() - began
    known = {"scenario": scenario.name, "seed": seed}
    shares, models = [], []
    found = {}
    for name, (estimator, settings) in ESTIMATES.items():
        began = time.perf_counter()
        found[name] = measure_coalitions(run, "test", estimator, settings=settings)
        took = (time.perf_counter() - began) / seconds
        own = {**known, "estimate": name}
        shares += [{**own, **row, "time": took} for row in _shares(exact, found[name])]
        models += [{**own, **row} for row in _models(exact, found[name])]
    scores = _scores(exact.values(_MARGIN), found["task vectors"].values(_MARGIN), seed)
    return shares, models, [{**known, "by": by, "score": score} for by, score in scores.items()]


def _shares(exact: CoalitionResult, estimate: CoalitionResult) -> Iterator[dict[str, Any]]:
    own, truth = (shares_of(each, _MARGIN) for each in (estimate, exact))
    trust = own.trust_in(SHARE)
    for party, name in enumerate(own.names):
        a, b = (each.reading(SHARE)[party] for each in (own, truth))
        there = np.isfinite(a) & np.isfinite(b)
        alone = estimate.trust[exact.full & ~(1 << party)]
        yield {
            "stage": name,
            "r": np.corrcoef(a[there], b[there])[0, 1] if there.any() else np.nan,
            "error": _size(a[there] - b[there]) / _size(b[there]) if there.any() else np.nan,
            "expected": trust[name].expected_error,
            "trust": trust_word(trust[name], _MARGIN),
            "without_it": trust_word(alone, _MARGIN),
        }


def _models(exact: CoalitionResult, estimate: CoalitionResult) -> Iterator[dict[str, Any]]:
    final = exact.value(exact.full, _MARGIN)
    for mask, trust in estimate.trust.items():
        if trust.trust != "estimated" or trust.expected_error is None:
            continue
        truth = exact.value(mask, _MARGIN)
        error = _size(estimate.value(mask, _MARGIN) - truth) / _size(final - truth)
        missing = len(exact.parties) - mask.bit_count()
        within = error <= trust.expected_error
        yield {"missing": "one" if missing == 1 else "several", "error": error, "within": within}


def _size(values: np.ndarray) -> float:
    return float(np.sqrt(np.nanmean(values**2)))


def _scores(
    v: dict[int, np.ndarray], by_vectors: dict[int, np.ndarray], seed: int
) -> dict[str, float]:
    """Median Spearman correlation over examples, of coalitions that nothing was fitted to."""
    m = int(math.log2(len(v)))
    full, masks = len(v) - 1, sorted(v)
    middle = [mask for mask in masks if mask not in (0, full)]
    singles = {0, full, *(full & ~(1 << k) for k in range(m))}
    half = set(np.random.default_rng(seed).permutation(middle)[: len(middle) // 2].tolist())
    fitted = _fitted(v, m, [mask for mask in middle if mask in half])
    asked = [mask for mask in middle if mask not in half]
    beyond = [mask for mask in masks if mask not in singles]
    effects = formulas.leave_one_out(v, m)
    return {
        "shares from half, other half": _score(v, fitted, asked),
        "without it, other half": _score(v, effects, asked),
        "task vectors, other half": _ranked(v, by_vectors, asked),
        "shares of all (not held out), several missing": _score(v, formulas.shapley(v, m), beyond),
        "without it, several missing": _score(v, effects, beyond),
        "task vectors, several missing": _ranked(v, by_vectors, beyond),
    }


def _fitted(v: dict[int, np.ndarray], m: int, masks: list[int]) -> np.ndarray:
    """(M, N) shares from some coalitions: least squares, with sums that are what they must be."""
    full = (1 << m) - 1
    member = np.array([[mask >> k & 1 for k in range(m)] for mask in masks], dtype=float)
    size = member.sum(axis=1)
    weights = np.array([(m - 1) / (math.comb(m, int(s)) * s * (m - s)) for s in size])
    y = np.stack([v[mask] - v[0] for mask in masks])
    total = v[full] - v[0]
    # The last share is what the others leave of the total.
    x = member[:, :-1] - member[:, -1:]
    z = y - member[:, -1:] * total
    root = np.sqrt(weights)[:, None]
    first, *_ = np.linalg.lstsq(root * x, root * z, rcond=None)
    return np.concatenate([first, (total - first.sum(axis=0))[None]])


def _score(v: dict[int, np.ndarray], parts: np.ndarray, masks: list[int]) -> float:
    predicted = {
        mask: sum(parts[k] for k in range(len(parts)) if mask >> k & 1) + 0 * v[0] for mask in masks
    }
    return _ranked(v, predicted, masks)


def _ranked(v: dict[int, np.ndarray], predicted: dict[int, np.ndarray], masks: list[int]) -> float:
    truth, own = (np.stack([each[mask] for mask in masks]) for each in (v, predicted))
    there = np.isfinite(truth).all(axis=0) & np.isfinite(own).all(axis=0)
    ranks = [rankdata(each[:, there], axis=0) for each in (truth, own)]
    a, b = (rank - rank.mean(axis=0) for rank in ranks)
    sizes = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    return float(np.median((a * b).sum(axis=0)[sizes > 0] / sizes[sizes > 0]))


def _counted(r: pd.Series) -> str:
    return f"{(r >= 0.95).sum()} of {len(r)}, the least {r.min():.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), choices=SCENARIOS)
    given = parser.parse_args()
    tables: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
    for name in given.scenarios:
        for seed in given.seeds:
            for table, rows in zip(
                tables, measure(SCENARIOS[name], seed, given.cache), strict=True
            ):
                table += rows
            print(f"{name}, seed {seed}: measured", file=sys.stderr, flush=True)
    shares, models, scores = (pd.DataFrame(rows) for rows in tables)
    pd.set_option("display.width", 200, "display.max_rows", None, "display.max_columns", None)
    print(shares.round(3).to_string(index=False))
    given_share = shares["r"].notna() & (shares["trust"] != "refused")
    reliable = shares[shares["without_it"].isin(["reliable", "exact"]) & given_share]
    print("\nWhere leaving the stage out is reliable and its share is given: r of at least 0.95")
    print(reliable.groupby("estimate")["r"].agg(_counted))
    print("\nModels within their expected error, of how many; largest error")
    grouped = models.groupby(["estimate", "missing"])
    print(grouped.agg(within=("within", "sum"), models=("within", "size"), worst=("error", "max")))
    print("\nPrediction of coalitions (median Spearman correlation)")
    print(scores.pivot_table(index="by", columns="scenario", values="score", sort=False).round(2))


if __name__ == "__main__":
    main()
