"""How often intervals over examples hold the truth: of means, shares and gaps between two groups.

One command prints the table::

    python tests/benchmarks/intervals.py [--runs 4000] [--sizes 5 20 200]

Examples are drawn from distributions whose means are known, ``n`` of either group, and the
intervals of ``effects.contrasts`` are made; beside them stand those of the percentile bootstrap,
which were shown before. *Clustered* rows come from as many sources as ``n`` says, of 1 to 4 rows
each, and half of their variance is common to a source. Of 0/1 values an interval cannot hold the
truth in exactly 95 %, as there are few that could be seen: what matters is that it is not much
less.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stagelens.effects.contrasts import (
    difference_spread,
    mean_spread,
    share_interval,
    shares_difference,
)

_RESAMPLES = 500
Draw = Callable[[np.random.Generator, int], np.ndarray]
Ends = tuple[float, float]


@dataclass(frozen=True)
class Kind:
    """What values of two groups are like.

    Attributes:
        name: As it is printed.
        draws: (n,) values of the first group, and of the second.
        means: Their true means.
        values: ``"numbers"``, ``"answers"`` (0 or 1) or ``"changes"`` of answers (-1, 0 or 1).
        clustered: Whether rows share sources.
    """

    name: str
    draws: tuple[Draw, Draw]
    means: tuple[float, float]
    values: str
    clustered: bool = False


def _answers(p: float, q: float) -> Kind:
    draws = tuple(lambda r, n, p=each: (r.random(n) < p).astype(float) for each in (p, q))
    return Kind(f"0/1 at {p:g} and {q:g}", draws, (p, q), "answers")  # type: ignore[arg-type]


def _changes(up: float, down: float, others: float) -> Kind:
    def draw(random: np.random.Generator, n: int, up: float, down: float) -> np.ndarray:
        return random.choice([1.0, -1.0, 0.0], size=n, p=[up, down, 1 - up - down])

    return Kind(
        f"changes +{up:g} -{down:g}, and +{others:g}",
        (lambda r, n: draw(r, n, up, down), lambda r, n: draw(r, n, others, 0.0)),
        (up - down, others),
        "changes",
    )


KINDS = (
    Kind("normal", (lambda r, n: r.normal(size=n),) * 2, (0.0, 0.0), "numbers"),
    Kind(
        "normal, sd 1 and 4",
        (lambda r, n: r.normal(size=n), lambda r, n: 4 * r.normal(size=n)),
        (0.0, 0.0),
        "numbers",
    ),
    Kind("exponential", (lambda r, n: r.exponential(size=n),) * 2, (1.0, 1.0), "numbers"),
    *(_answers(*each) for each in ((0.5, 0.5), (0.98, 0.6), (0.98, 0.95), (0.02, 0.02))),
    *(_changes(*each) for each in ((0.3, 0.1, 0.1), (0.3, 0.0, 0.02), (0.02, 0.0, 0.02))),
    Kind("normal, clustered", (lambda r, n: r.normal(size=n),) * 2, (0, 0), "numbers", True),
    Kind(
        "0/1 at 0.5, clustered", (lambda r, n: r.normal(size=n),) * 2, (0.5,) * 2, "answers", True
    ),
)


def _rows(kind: Kind, n: int, random: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Values of both groups, who is in the first, and the source of each row."""
    sizes = random.integers(1, 5, 2 * n) if kind.clustered else np.ones(2 * n, int)
    clusters = np.repeat(np.arange(2 * n), sizes)
    first = clusters < n
    if not kind.clustered:
        values = np.concatenate([draw(random, n) for draw in kind.draws])
        return values, first, clusters
    values = kind.draws[0](random, 2 * n)[clusters] + kind.draws[0](random, len(clusters))
    return (values > 0).astype(float) if kind.values == "answers" else values, first, clusters


def now(kind: Kind, values: np.ndarray, first: np.ndarray, shared: np.ndarray | None) -> list[Ends]:
    """Of the first group's mean, and of the difference."""
    own = None if shared is None else shared[first]
    if kind.values == "answers":
        return [
            share_interval(values[first], own),
            shares_difference(values, first, ~first, shared),
        ]
    answers = kind.values == "changes"
    return [
        mean_spread(values[first], own, answers).ends(),
        difference_spread(values, first, ~first, shared, answers).ends(),
    ]


def before(
    kind: Kind, values: np.ndarray, first: np.ndarray, shared: np.ndarray | None, seed: int
) -> list[Ends]:
    """The same by resampling the examples, or sources, of each group."""
    random, means = np.random.default_rng(seed), []
    for side in (first, ~first):
        own = values[side]
        place = (
            np.arange(len(own))
            if shared is None
            else np.unique(shared[side], return_inverse=True)[1]
        )
        sums, counts = np.bincount(place, weights=own), np.bincount(place)
        drawn = random.integers(0, len(sums), (_RESAMPLES, len(sums)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return [tuple(np.quantile(each, [0.025, 0.975])) for each in (means[0], means[0] - means[1])]


def covered(kind: Kind, n: int, runs: int) -> dict[str, float]:
    """Shares of intervals that hold the truth, in percent."""
    random = np.random.default_rng(n)
    truths = kind.means[0], kind.means[0] - kind.means[1]
    held = np.zeros((2, 2))
    for seed in range(runs):
        values, first, clusters = _rows(kind, n, random)
        shared = clusters if kind.clustered else None
        both = before(kind, values, first, shared, seed), now(kind, values, first, shared)
        for place, made in enumerate(both):
            for what, ((low, high), truth) in enumerate(zip(made, truths, strict=True)):
                held[place, what] += low - 1e-12 <= truth <= high + 1e-12
    (old_mean, old_gap), (mean, gap) = 100 * held / runs
    return {"mean, before": old_mean, "now": mean, "difference, before": old_gap, "now ": gap}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5, 20, 200])
    given = parser.parse_args()
    rows = [
        {"values": kind.name, "n": n, **covered(kind, n, given.runs)}
        for kind in KINDS
        for n in given.sizes
    ]
    error = 100 * (0.95 * 0.05 / given.runs) ** 0.5
    print(f"Intervals that hold the truth, of {given.runs:,} (standard error {error:.2f} points)")
    print(pd.DataFrame(rows).round(1).to_string(index=False))


if __name__ == "__main__":
    main()
