"""The gate's rates over thousands of pairs: the runs of ``gate.py``, trained many at once.

One command, half a minute on one core::

    python tests/benchmarks/gate_seeds.py [--pairs 400] [--planted 400]

Each pair is two recorded trainings and 8 redraws of either, on the data and by the recipe of
``tests/support/gated.py``: Adam anew in every stage, initial values of torch's linear layers, and
examples in an order of the seed's own. A redraw keeps a recording's batches and has them in another
order, from other initial values, as replay's redraws do. All trainings run side by side as batched
matrices, and the gate's own functions judge what they answer, so nothing but recording and replay
is left out, whose exactness unit tests show; ``gate.py`` runs these as well, at 100 times the cost.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stagelens.analyses.gate.judging import judged
from stagelens.analyses.gate.report import Estimand, SliceFinding
from stagelens.analyses.gate.sides import Compared
from stagelens.analyses.gate.slices import GateSlice
from stagelens.contracts import ACCURACY, Behaviour
from tests.support.gated import BATCH, EASY, GROUPS, HARD, STEPS, evaluation, training_data

DRAWS, HIDDEN, RATE, AT_ONCE = 8, 64, 0.01, 20
MARGIN = Behaviour("margin", "higher", "nats")


def _initial(count: int, random: torch.Generator) -> list[Tensor]:
    """Weights and biases of so many new models, as torch draws those of linear layers."""
    found = []
    for inputs, outputs in ((16, HIDDEN), (HIDDEN, 3)):
        bound = inputs**-0.5
        for shape in ((count, inputs, outputs), (count, 1, outputs)):
            found.append((2 * torch.rand(shape, generator=random) - 1) * bound)
    return found


def _logits(weights: list[Tensor], x: Tensor) -> Tensor:
    """(T, n, 3) from (T, n, 16) or (n, 16)."""
    a, b, c, d = weights
    return torch.nn.functional.gelu(x @ a + b) @ c + d


def _adam(weights: list[Tensor], batches: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """One stage: x (T, BATCH, 16) and labels (T, BATCH) at each step."""
    held = [each.detach().requires_grad_() for each in weights]
    optimizer = torch.optim.Adam(held, lr=RATE)
    for x, y in batches:
        loss = torch.nn.functional.cross_entropy(
            _logits(held, x).flatten(0, 1), y.flatten(), reduction="sum"
        )
        optimizer.zero_grad()
        (loss / BATCH).backward()  # models share no parameter: each has its own mean
        optimizer.step()
    return [each.detach() for each in held]


def trained(
    pairs: int, spread: float, spoiled: bool, random: torch.Generator
) -> dict[str, np.ndarray]:
    """Accuracy and margin of (pairs, 2, 1 + DRAWS, N): recorded models first, then their redraws.

    Args:
        pairs: How many.
        spread: Of the images of a class.
        spoiled: Whether the second recipe of each pair is the spoiled one.
        random: Of everything.
    """
    each, count = 1 + DRAWS, pairs * 2 * (1 + DRAWS)
    weights = _initial(count, random)
    for stage, steps in STEPS.items():
        images, labels, marked = training_data(stage, spread)
        other = torch.where(marked, 1, labels)
        # (pairs, 2, steps, BATCH): a recording's batches, which its redraws share.
        rows = torch.rand(pairs, 2, steps * BATCH, generator=random).argsort(-1)
        rows = rows.reshape(pairs, 2, 1, steps, BATCH).expand(-1, -1, each, -1, -1)
        order = torch.rand(pairs, 2, each, steps, generator=random).argsort(-1)
        order[:, :, 0] = torch.arange(steps)
        rows = rows.gather(3, order[..., None].expand(-1, -1, -1, -1, BATCH))
        wrong = torch.tensor([False, spoiled])[None, :, None, None, None].expand(rows.shape)
        answers = torch.where(wrong, other[rows], labels[rows]).reshape(count, steps, BATCH)
        x = images.reshape(-1, 16)[rows].reshape(count, steps, BATCH, 16)
        weights = _adam(weights, [(x[:, n], answers[:, n]) for n in range(steps)])
    images, labels = evaluation(spread)
    logits = _logits(weights, images.reshape(-1, 16))
    right = (logits.argmax(-1) == labels).double()
    own = logits.gather(2, labels.expand(count, -1)[..., None])[..., 0].double()
    rest = logits.double().scatter(2, labels.expand(count, -1)[..., None], -torch.inf)
    shape = pairs, 2, each, len(labels)
    return {
        "accuracy": right.reshape(shape).numpy(),
        "margin": (own - rest.logsumexp(-1)).reshape(shape).numpy(),
    }


def judge(
    values: dict[str, np.ndarray], names: tuple[str, ...], most: float, estimand: Estimand
) -> list[SliceFinding]:
    """What the gate says of one pair; values are (2, 1 + DRAWS, N)."""
    kinds = [kind for kind in (ACCURACY, MARGIN) if kind.name in names]
    groups = np.repeat(GROUPS, values["accuracy"].shape[-1] // len(GROUPS))
    slices = [GateSlice("group", name, groups == name) for name in GROUPS]
    sides = [
        # Judging looks at the values alone.
        cast(Compared, _Side({kind.name: values[kind.name][side] for kind in kinds}))
        for side in range(2)
    ]
    limits = {kind.name: most for kind in kinds}
    return judged(sides, kinds, slices, limits, None, estimand, same=False)


class _Side:
    source = "redraws"

    def __init__(self, values: dict[str, np.ndarray]) -> None:
        self.values = values


SETTINGS: dict[str, tuple[tuple[str, ...], float, Estimand]] = {
    "accuracy, 2 points allowed": (("accuracy",), 0.02, "recipes"),
    "accuracy and margin, no drop allowed": (("accuracy", "margin"), 0.0, "recipes"),
    "the same of the two models": (("accuracy", "margin"), 0.0, "models"),
}


def rates(pairs: int, spread: float, spoiled: bool, seed: int) -> dict[str, Counter[str]]:
    """Setting to how many pairs got which verdict, and on ``a`` or other slices a regression."""
    random = torch.Generator().manual_seed(seed)
    found: dict[str, Counter[str]] = {name: Counter() for name in SETTINGS}
    for start in range(0, pairs, AT_ONCE):
        count = min(AT_ONCE, pairs - start)
        values = trained(count, spread, spoiled, random)
        for number in range(count):
            own = {name: each[number] for name, each in values.items()}
            for name, setting in SETTINGS.items():
                rows = judge(own, *setting)
                worse = [r.group for r in rows if r.verdict == "regressed"]
                fine = all(r.verdict == "fine" for r in rows)
                found[name]["regressed" if worse else "fine" if fine else "could not tell"] += 1
                found[name]["a"] += "a" in worse
                found[name]["others"] += bool(set(worse) - {"a"})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--planted", type=int, default=400)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for title, spread, spoiled, pairs, seed in (
        ("A/A, easy", EASY, False, given.pairs, 0),
        ("A/A, hard", HARD, False, given.pairs, 1),
        ("planted, 10 points", EASY, True, given.planted, 2),
    ):
        for name, found in rates(pairs, spread, spoiled, seed).items() if pairs else ():
            said = ", ".join(
                f"{what} {found[what]} ({100 * found[what] / pairs:.2f} %)"
                for what in ("regressed", "fine", "could not tell")
            )
            more = f"; slice a {found['a']}, another {found['others']}" if spoiled else ""
            print(f"{title}, {pairs} pairs, {name}: {said}{more}", flush=True)


if __name__ == "__main__":
    main()
