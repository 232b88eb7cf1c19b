"""What methods that score single training examples say of each use of one, for many questions."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stagelens.analyses.contributions.first_order import behaviour_gradient
from stagelens.contracts import Example
from stagelens.derivatives.adjoint import KeptStates
from stagelens.derivatives.curvature import StageLoss, cast
from stagelens.derivatives.step_map import StateVectors
from stagelens.derivatives.trajectory import (
    Crossing,
    DerivativeOptions,
    LinearStage,
    active_names,
    check_differentiable,
)
from stagelens.replaying.replay import same_arithmetic
from stagelens.runs.run import Run
from stagelens.runs.step_records import StepRecord
from stagelens.tasks.image_classification import ImageClassification
from tests.benchmarks.group_agreement import UseScores
from tests.benchmarks.peers import margin

HELD, WEIGHTS = "contributions", "derivative in the weight"
"""What a use contributed with Adam's denominators held, as pages show it; and the derivative of the
behaviour in the weight that the example's loss has in that step, denominators and clipping
included. They are the same for SGD without clipping."""


@dataclass
class Scored:
    """Scores of a stage's uses by a method, and its cost.

    Attributes:
        by_stage: Stage to what every use did, in the order of steps and positions.
        seconds: Of processor time, for all stages.
    """

    by_stage: dict[str, UseScores] = field(default_factory=dict)
    seconds: float = 0.0


def adjoint_scores(
    run: Run,
    behaviour: str,
    questions: Sequence[Example],
    options: DerivativeOptions | None = None,
    since: str | None = None,
) -> dict[str, Scored]:
    """Of every use in every stage for many questions, by one reverse sweep for all of them.

    Same numbers as :func:`stagelens.analyses.contributions.first_order.contributions` gives for one
    question at a time; the gradient of every example is computed once for all.

    Args:
        run: The run.
        behaviour: Of the questions.
        questions: K evaluation examples.
        options: Dtype and curvature.
        since: The earliest stage that is wanted.

    Returns:
        By :data:`HELD` and :data:`WEIGHTS`.
    """
    began = time.process_time()
    options = options or DerivativeOptions()
    stages = run.stages if since is None else run.stages[run.stage(since).index :]
    check_differentiable(stages)
    active = active_names(run, stages)
    found = {HELD: Scored(), WEIGHTS: Scored()}
    later: LinearStage | None = None
    vectors: StateVectors | None = None
    for stage in reversed(stages):
        own = LinearStage(run, stage, active, options)
        with same_arithmetic(stage):
            kept = KeptStates(own, max(1, math.isqrt(stage.steps)))
            if vectors is None or later is None:
                vectors = own.layout.zeros(len(questions))
                for name, slopes in _slopes(run, own, behaviour, questions).items():
                    if name in vectors.values:
                        vectors.values[name] = slopes
            else:
                vectors = Crossing(own, later).pull(vectors, kept.end)
            rows: list[tuple[int, Tensor, Tensor]] = []
            for record, step in kept.backwards():
                values = step.before.values
                share = {name: step.factor * tensor for name, tensor in step.share(vectors).items()}
                before, gradients, statistics = step.pull(vectors)
                held, weights = _of_uses(own.loss, values, record, (share, gradients))
                rows.append((record.step, held, weights))
                through = own.loss.pull(values, record, gradients, statistics)
                for name, tensor in through.items():
                    before.values[name] = before.values[name] + tensor
                vectors = before
        rows.reverse()
        steps = np.concatenate([np.full(held.shape[1], number) for number, held, _ in rows])
        for name, place in ((HELD, 1), (WEIGHTS, 2)):
            scores = torch.cat([row[place] for row in rows], 1).double().numpy()
            found[name].by_stage[stage.name] = UseScores(steps, scores)
        later = own
    for one in found.values():
        one.seconds = time.process_time() - began
    return found


def _of_uses(
    loss: StageLoss,
    values: Mapping[str, Tensor],
    record: StepRecord,
    vectors: Sequence[Mapping[str, Tensor]],
) -> list[Tensor]:
    """Of each K vectors, their products with the examples' parts of a step's gradient; (K, B)."""
    if all(isinstance(micro.batch, tuple) for micro in record.batches or ()):
        each = example_gradients(loss, values, record)
        return [_products(own, each) for own in vectors]
    # Models of transformers are not for vmap; memory of a gradient per example would be large.
    count = len(next(iter(vectors[0].values())))
    lanes = [{n: t[k] for n, t in own.items()} for own in vectors for k in range(count)]
    found = loss.example_products(values, record, lanes)
    return [torch.stack(found[at : at + count]) for at in range(0, len(found), count)]


class _Whole(nn.Module):
    """A model and its loss as one module, so that torch can put other weights into both."""

    def __init__(self, loss: StageLoss) -> None:
        super().__init__()
        self.model, self.loss = loss.model, loss.loss

    def forward(self, *batch: Tensor) -> Tensor:
        return self.loss(self.model, tuple(row[None] for row in batch))


def example_gradients(
    loss: StageLoss, values: Mapping[str, Tensor], record: StepRecord
) -> dict[str, Tensor]:
    """Name to every example's part of a step's gradient, (B, *shape).

    For losses that are means over the examples of a tuple of tensors; the parts sum to the step's
    gradient. Forward passes that draw random numbers are not for this.
    """
    whole = _Whole(loss)
    weights = {f"model.{name}": values[name] for name in loss.names}

    def of_one(weights: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        found: Tensor = torch.func.functional_call(whole, dict(weights), batch)
        return found

    parts: list[dict[str, Tensor]] = []
    for micro in record.batches or ():
        batch = cast(micro.batch, loss.dtype)
        divisor = len(batch[0]) * loss.rules.divisor(micro)
        found = torch.func.vmap(torch.func.grad(of_one), (None, 0))(weights, batch)
        parts.append({name: tensor / divisor for name, tensor in found.items()})
    return {name: torch.cat([part[f"model.{name}"] for part in parts]) for name in loss.names}


def _slopes(
    run: Run,
    own: LinearStage,
    behaviour: str,
    questions: Sequence[Example],
    values: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Gradients of the questions' behaviours by name, (K, *shape), at the stage's end or values."""
    each = [behaviour_gradient(run, own, behaviour, [one], values)[1] for one in questions]
    return {name: torch.stack([slopes[name] for slopes in each]) for name in each[0]}


def _products(vectors: Mapping[str, Tensor], each: Mapping[str, Tensor]) -> Tensor:
    """(K, *shape) and (B, *shape) by name to (K, B)."""
    parts = [v.flatten(1) @ each[name].flatten(1).T for name, v in vectors.items()]
    return torch.stack(parts).sum(0)


def _collated(run: Run, questions: Sequence[Example], model: nn.Module) -> tuple[Tensor, Tensor]:
    images, labels = run.task.collate(list(questions))
    return images.to(next(model.parameters()).dtype), labels


def tracin_scores(run: Run, questions: Sequence[Example], since: str | None = None) -> Scored:
    """TracIn on the margin: lr grad y . grad loss, at the stage's recorded states.

    A use is not told from another of the same example but by its learning rate. What it moved is
    -lr / B grad loss, as of plain SGD; all checkpoints count alike.

    Args:
        run: The run.
        questions: K evaluation examples.
        since: The earliest stage that is wanted.
    """
    began, found = time.process_time(), Scored()
    stages = run.stages if since is None else run.stages[run.stage(since).index :]
    active = active_names(run, stages)
    for stage in stages:
        own = LinearStage(run, stage, active, DerivativeOptions())
        states = [stage.start(), *(state for _, state in stage.within()), stage.end()]
        steps, values = [], []
        for state in states:
            weights = {name: state.model[name].clone() for name in own.loss.names}
            slopes = _slopes(run, own, "margin", questions, weights)
            rows = []
            for record in stage.read_steps():
                (each,) = _of_uses(own.loss, weights, record, (slopes,))
                rows.append(-float(record.groups[0]["lr"]) * each)
                if state is states[0]:
                    steps.append(np.full(each.shape[1], record.step))
            values.append(torch.cat(rows, 1))
        mean = torch.stack(values).mean(0).double().numpy()
        found.by_stage[stage.name] = UseScores(np.concatenate(steps), mean)
    found.seconds = time.process_time() - began
    return found


def trak_scores(run: Run, questions: Sequence[Example], dimensions: int = 256) -> Scored | None:
    """dattri's TRAK of the margin at the final model; None of texts, or where it is not installed.

    One model; its kernel is of the examples of all stages, each once. What TRAK scores is an
    example, of which every use gets the whole. Scores have no unit: their slope means nothing.
    """
    if not importlib.util.find_spec("dattri") or not isinstance(run.task, ImageClassification):
        return None
    from dattri.algorithm.trak import TRAKAttributor
    from dattri.task import AttributionTask
    from torch.utils.data import DataLoader, TensorDataset

    began, found = time.process_time(), Scored()
    model = run.task.build_model().eval()

    def target(params: Any, data: Any) -> Tensor:
        image, label = data
        logits = torch.func.functional_call(model, params, (image[None],))
        return margin(logits, label.long()[None]).squeeze()

    def right(params: Any, data: Any) -> Tensor:
        return torch.sigmoid(target(params, data))

    end = run.last.end().model
    task = AttributionTask(loss_func=target, target_func=target, model=model, checkpoints=[end])
    steps = [(stage, record) for stage in run.stages for record in stage.read_steps()]
    batches = [micro.batch for _, record in steps for micro in record.batches or ()]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    flat = np.concatenate([images.flatten(1).numpy(), labels[:, None].numpy()], axis=1)
    _, first, index = np.unique(flat, axis=0, return_index=True, return_inverse=True)
    train = DataLoader(TensorDataset(images[first], labels[first]), batch_size=64)
    asked = DataLoader(TensorDataset(*_collated(run, questions, model)), batch_size=64)
    scorer = TRAKAttributor(task, right, {"proj_dim": dimensions}, device="cpu")
    with contextlib.redirect_stderr(io.StringIO()):  # bars of progress
        scores = scorer.attribute(asked, train).detach().double().numpy()
    values = scores[index.reshape(-1)].T
    at = 0
    for stage in run.stages:
        sizes = [len(batches[number][1]) for number, (s, _) in enumerate(steps) if s is stage]
        own = np.repeat(np.arange(len(sizes)), sizes)
        found.by_stage[stage.name] = UseScores(own, values[:, at : at + len(own)])
        at += len(own)
    found.seconds = time.process_time() - began
    return found


def random_scores(like: Scored, seed: int) -> Scored:
    """Numbers that mean nothing."""
    random = np.random.default_rng(seed)
    return Scored(
        {
            name: UseScores(own.steps, random.normal(size=own.values.shape))
            for name, own in like.by_stage.items()
        }
    )
