"""Do intervals over draws hold what they say? Many cheap trainings whose recipe is known by force.

Each simulated run trains two stages on data of its own, with a logistic regression or a tiny
network, and its effects are those of leaving out a stage. The truth of the recipe is the mean over
20,000 runs with other data, orders and initial values. Printed are, for some draws of each
simulated run:

- how often the 95 % interval holds the truth;
- how often a gap whose true effect is 0 is called a finding: the gap is along a feature that has
  nothing to do with the labels, and whose sign is drawn symmetrically anew for every data set.

    python tests/benchmarks/draws.py [--runs 2000] [--draws 8 12] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from stagelens.effects.draws import (
    DrawInterval,
    Kind,
    draws_for_width,
    interval_over_draws,
    likely_draws,
)
from stagelens.replaying.draw_plan import Draw, pool_size
from stagelens.replaying.draws import order_of

FEATURES, STEPS, BATCH, PASSES = 6, (20, 20), 8, 2
"""The last feature is the one without meaning; every example is seen in two passes."""
RATE = 0.3


@dataclass(frozen=True)
class Recipe:
    """What is trained.

    Attributes:
        name: What it is called.
        hidden: Units of the hidden layer; 0 for a logistic regression.
        given: Whether all runs begin with the same weights, as from a pretrained model.
    """

    name: str
    hidden: int = 0
    given: bool = False


RECIPES = (
    Recipe("logistic regression"),
    Recipe("tiny network", hidden=4),
    Recipe("the same, given start", hidden=4, given=True),
)


def _weights(recipe: Recipe, count: int, random: torch.Generator) -> list[Tensor]:
    """Initial weights of so many models, (count, ...)."""
    if not recipe.hidden:
        return [torch.zeros(count, FEATURES, 1)]
    if recipe.given:
        one = _weights(replace(recipe, given=False), 1, torch.Generator().manual_seed(7))
        return [each.expand(count, *each.shape[1:]) for each in one]
    return [
        torch.randn(count, FEATURES, recipe.hidden, generator=random) / FEATURES**0.5,
        torch.randn(count, recipe.hidden, 1, generator=random) / recipe.hidden**0.5,
    ]


def _scores(weights: list[Tensor], x: Tensor) -> Tensor:
    """(count, n) from (count, n, FEATURES)."""
    for each in weights[:-1]:
        x = torch.tanh(x @ each)
    return (x @ weights[-1])[..., 0]


def _trained(weights: list[Tensor], batches: Iterator[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Plain SGD on the logistic loss of many models at once."""
    for x, y in batches:
        held = [each.detach().requires_grad_() for each in weights]
        loss = torch.nn.functional.softplus(-y * _scores(held, x)).mean(1).sum()
        weights = [w - RATE * g for w, g in zip(held, torch.autograd.grad(loss, held), strict=True)]
    return [each.detach() for each in weights]


@dataclass
class Data:
    """The batches of two stages for so many runs: x (runs, steps, BATCH, FEATURES), y likewise."""

    x: list[Tensor]
    y: list[Tensor]


def _data(count: int, random: torch.Generator) -> Data:
    """Data of ``count`` runs; stages have other rules, and share the feature without meaning."""
    found = Data([], [])
    sign = (torch.randint(0, 2, (count, 1, 1), generator=random) * 2 - 1).float()
    for steps, rule in zip(STEPS, ((1.0, 0.5, 0, 0, 0), (1.0, 0, 0.7, 0, 0)), strict=True):
        rows = steps * BATCH // PASSES
        x = torch.randn(count, rows, FEATURES, generator=random)
        x[..., -1:] = sign * x[..., -1:].sign()
        chance = torch.sigmoid(1.5 * (x[..., :-1] @ torch.tensor(rule)))
        y = (torch.rand(count, rows, generator=random) < chance).float() * 2 - 1
        blocks = []
        for _ in range(PASSES):
            order = torch.rand(count, rows, generator=random).argsort(1)
            blocks.append((_rows(x, order), _rows(y[..., None], order)[..., 0]))
        shape = (count, steps, BATCH)
        found.x.append(torch.cat([b[0] for b in blocks], 1).reshape(*shape, FEATURES))
        found.y.append(torch.cat([b[1] for b in blocks], 1).reshape(*shape))
    return found


def _rows(values: Tensor, order: Tensor) -> Tensor:
    return values.gather(1, order[..., None].expand(-1, -1, values.shape[-1]))


def _effects(
    recipe: Recipe, data: Data, orders: list[Tensor], random: torch.Generator, weights: list[Tensor]
) -> dict[str, np.ndarray]:
    """Effects of the first stage on a behaviour and on the gap, one per run."""

    def batches(stage: int) -> Iterator[tuple[Tensor, Tensor]]:
        every = torch.arange(len(orders[stage]))
        for place in range(STEPS[stage]):
            step = orders[stage][:, place]
            yield data.x[stage][every, step], data.y[stage][every, step]

    middle = _trained(weights, batches(0))
    final, without = _trained(middle, batches(1)), _trained(weights, batches(1))
    found = {}
    with_stage, plain = (_behaviours(one) for one in (final, without))
    for name in with_stage:
        found[name] = (with_stage[name] - plain[name]).numpy()
    return found


_TEST = torch.randn(200, FEATURES, generator=torch.Generator().manual_seed(1))
_LABELS = (_TEST[:, 0] + 0.5 * _TEST[:, 1]).sign()


def _behaviours(weights: list[Tensor]) -> dict[str, Tensor]:
    x = _TEST.expand(len(weights[0]), -1, -1)
    with_it, against = x.clone(), x.clone()
    with_it[..., -1], against[..., -1] = 1.0, -1.0
    margin = _LABELS * _scores(weights, x)
    gap = _LABELS * 0 + _scores(weights, with_it) - _scores(weights, against)
    return {"margin": margin.mean(1), "gap": gap.mean(1)}


def _orders(count: int, number: int, kind: Kind, seed: int) -> list[Tensor]:
    """Which batches each run uses in one draw, as the product draws them."""
    found = []
    draw = Draw(number, kind == "recipe")
    for index, steps in enumerate(STEPS):
        rows = []
        for run in range(count):
            # Each run has stages of its own number, so that it has other random numbers.
            own = (seed * 1_000_003 + run) * len(STEPS) + index
            stage = cast(Any, SimpleNamespace(index=own, steps=steps))
            rows.append(order_of(draw, stage, PASSES))
        found.append(torch.tensor(rows))
    return found


def _shuffled(count: int, random: torch.Generator) -> list[Tensor]:
    """Other orders for the truth, quicker than the product draws them."""
    return [torch.rand(count, steps, generator=random).argsort(1) for steps in STEPS]


def _recorded(count: int) -> list[Tensor]:
    return [torch.arange(steps).expand(count, -1) for steps in STEPS]


@dataclass(frozen=True)
class Share:
    """How often something happened."""

    times: int
    of: int

    @property
    def value(self) -> float:
        return self.times / self.of

    def __str__(self) -> str:
        low, high = stats.binomtest(self.times, self.of).proportion_ci(method="exact")
        return f"{100 * self.value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


@dataclass(frozen=True)
class Found:
    """What came out for one recipe and kind of draw."""

    covered: Share
    findings: Share
    width: float


def simulate(
    recipe: Recipe,
    kind: Kind,
    runs: int,
    draws: int,
    seed: int,
    truth_runs: int = 20_000,
    truth_orders: int = 200,
) -> Found:
    """Coverage and findings of one kind of draw.

    Of draws on the same data the truth is the mean over orders of these data.
    """
    random = torch.Generator().manual_seed(seed)
    every: dict[str, list[np.ndarray]] = {"margin": [], "gap": []}
    data = _data(runs, random)
    first = _weights(recipe, runs, random)
    for number in range(draws):
        if kind == "runs":
            own = _data(runs, random), _recorded(runs), _weights(recipe, runs, random)
        else:
            begun = _weights(recipe, runs, random) if kind == "recipe" else first
            own = data, _orders(runs, number, kind, seed), begun
        for name, values in _effects(recipe, own[0], own[1], random, own[2]).items():
            every[name].append(values)
    truth = _truth(recipe, kind, data, first, random, truth_runs, truth_orders)
    covered = findings = 0
    width = 0.0
    for run in range(runs):
        one = _interval(every["margin"], run, kind)
        covered += one.low <= truth[run] <= one.high
        width += (one.high - one.low) / runs
        findings += _interval(every["gap"], run, kind).is_clear
    return Found(Share(covered, runs), Share(findings, runs), width)


def _interval(values: list[np.ndarray], run: int, kind: Kind) -> DrawInterval:
    pools = [pool_size(steps, PASSES) for steps in STEPS]
    return interval_over_draws([each[run] for each in values], kind, batches=min(pools))


def _truth(
    recipe: Recipe,
    kind: Kind,
    data: Data,
    first: list[Tensor],
    random: torch.Generator,
    truth_runs: int,
    truth_orders: int,
) -> np.ndarray:
    """The mean effect of the recipe for each run, by brute force."""
    runs = len(first[0])
    if kind == "same data":
        found = [
            _effects(recipe, data, _shuffled(runs, random), random, first)["margin"]
            for _ in range(truth_orders)
        ]
        return np.mean(found, axis=0)
    own = _data(truth_runs, random), _recorded(truth_runs), _weights(recipe, truth_runs, random)
    mean = _effects(recipe, own[0], own[1], random, own[2])["margin"].mean()
    return np.full(runs, mean)


def widths(runs: int, pilot: int, seed: int) -> tuple[Share, Share]:
    """Stein's rule on normal draws: coverage, and how often the range of draws that is told holds.

    It is to hold how many the true spread, of which a pilot knows little, would have needed.
    """
    random, covered, near = np.random.default_rng(seed), 0, 0
    for _ in range(runs):
        first = random.normal(size=pilot)
        needed = draws_for_width(first[:, None], 1.0)
        more = random.normal(size=needed - pilot)
        one = interval_over_draws(np.concatenate([first, more]), "same data", pilot)
        covered += one.low <= 0 <= one.high
        low, high = likely_draws(needed, pilot)
        enough = max((2 * stats.t.ppf(0.975, pilot - 1)) ** 2, pilot)
        near += low <= math.ceil(enough) <= high
    return Share(covered, runs), Share(near, runs)


WORDS: dict[Kind, str] = {
    "runs": "recorded runs",
    "recipe": "draws of the recipe",
    "same data": "draws on the same data",
}


def _pooled(shares: Sequence[Share]) -> str:
    """All seeds together, and each."""
    whole = Share(sum(one.times for one in shares), sum(one.of for one in shares))
    each = ", ".join(f"{100 * one.value:.1f}" for one in shares)
    return f"{whole}" + (f" [by seed: {each}]" if len(shares) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=2000, help="Simulated runs of every seed.")
    parser.add_argument("--draws", type=int, nargs="+", default=[8, 12])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--kinds", nargs="+", choices=list(WORDS), default=list(WORDS))
    parser.add_argument("--recipes", type=int, nargs="+", default=list(range(len(RECIPES))))
    given = parser.parse_args()
    runs = given.runs * len(given.seeds)
    bound = 100 * stats.binom.ppf(0.95, runs, 0.05) / runs
    print(f"{runs} simulated runs, {given.runs} of each seed; exact 95 % intervals in brackets")
    print(f"of a true rate of 5 %, at most {bound:.1f} % are seen in 95 of 100 such simulations")
    for draws, number, kind in product(given.draws, given.recipes, given.kinds):
        recipe = RECIPES[number]
        every = [simulate(recipe, kind, given.runs, draws, seed) for seed in given.seeds]
        # Of given weights or data, the gap is a matter of these too.
        too = ["weights"] * recipe.given + ["data"] * (kind == "same data")
        said = f" (not null given the {' and '.join(too)})" if too else ""
        print(
            f"{draws} draws, {recipe.name}, {WORDS[kind]}: interval holds the truth "
            f"{_pooled([one.covered for one in every])}, null called a finding "
            f"{_pooled([one.findings for one in every])}{said}, mean width "
            f"{np.mean([one.width for one in every]):.3f}",
            flush=True,
        )
    for draws in given.draws if "same data" in given.kinds else ():
        both = [widths(given.runs, draws, seed) for seed in given.seeds]
        covered, near = (_pooled([one[place] for one in both]) for place in (0, 1))
        print(
            f"Stein's rule, pilot of {draws}: interval holds the truth {covered}; the draws that "
            f"the true spread needs are within the range told: {near}"
        )


if __name__ == "__main__":
    main()
