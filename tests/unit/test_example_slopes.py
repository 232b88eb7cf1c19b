"""The derivative in the weight of an example's loss, against training with another weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stagelens.analyses.contributions.first_order import contributions
from stagelens.contracts import Example
from stagelens.derivatives.trajectory import DerivativeOptions
from stagelens.runs.run import Run
from stagelens.runs.states import load_into
from tests.support.small_runs import CLASSES, SHAPE, Optimizer, Phase, record

ASKED = [
    Example(str(i), {"image": image}, label=CLASSES[i])
    for i, image in enumerate(np.random.default_rng(0).normal(size=(2, *SHAPE[1:])))
]
STEPS = 4


def _sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1)


def _adam(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, 0.02, eps=1e-4, weight_decay=0.1)


def _adamw(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, 0.02, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.1)


def _margin(run: Run, make: Optimizer, clip: float | None, weights: torch.Tensor) -> float:
    """The mean margin after all stages, each with a new optimiser and these weights in the first.

    Args:
        run: Whose batches are trained on.
        make: Of every stage.
        clip: As recorded.
        weights: (steps, B) of the examples of the first stage.
    """
    model = run.task.build_model()
    load_into(model, run.stages[0].start().model)
    for stage in run.stages:
        optimizer = make([{"params": list(model.parameters())}])
        for number, step in enumerate(stage.read_steps()):
            ((images, labels),) = [micro.batch for micro in step.batches or ()]
            losses = nn.functional.cross_entropy(model(images), labels, reduction="none")
            if stage.index == 0:
                losses = losses * weights[number]
            optimizer.zero_grad()
            losses.mean().backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
    batch = run.task.collate(ASKED)
    with torch.no_grad():
        logits = model(batch[0].double())
        return float(run.task.behaviours(logits, batch)["margin"].mean())


@pytest.mark.parametrize(
    ("make", "clip"), [(_sgd, None), (_sgd, 0.3), (_adam, None), (_adamw, 0.3)]
)
def test_it_is_what_another_weight_of_its_loss_does(
    tmp_path: Path, make: Optimizer, clip: float | None
) -> None:
    phases = [Phase(name, make, STEPS, clip_norm=clip) for name in ("one", "two")]
    run = record(tmp_path / "run", "cnn", phases)
    options = DerivativeOptions("float64")
    table = contributions(run, "margin", ASKED, with_examples=True, options=options).examples
    assert table is not None
    own = table[(table["stage"] == "one") & (table["part"] == "example")]
    slopes = own["slope"].to_numpy(float).reshape(STEPS, -1)
    held = own["contribution"].to_numpy(float).reshape(STEPS, -1)
    h = 1e-5
    for step, place in ((0, 1), (1, 4), (STEPS - 1, 0)):
        ends = []
        for sign in (1, -1):
            weights = torch.ones(slopes.shape, dtype=torch.float64)
            weights[step, place] += sign * h
            ends.append(_margin(run, make, clip, weights))
        assert slopes[step, place] == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-4)
    # What is shown as contributions holds denominators and clipping; SGD alone has neither.
    assert np.allclose(slopes, held) == (make is _sgd and clip is None)
