"""What every step, and every training example, contributed to one behaviour, to first order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stagelens.contracts import CARRIED, Example, Progress, ProgressCallback, Refused, no_progress
from stagelens.derivatives.adjoint import StepContribution, sweep, sweep_within
from stagelens.derivatives.autodiff import along
from stagelens.derivatives.batch_norm import ExplicitBatchNorm
from stagelens.derivatives.curvature import cast
from stagelens.derivatives.trajectory import DerivativeOptions, LinearStage, active_names
from stagelens.runs.batches import to_device
from stagelens.runs.run import Run

_BATCH = 256


@dataclass(frozen=True)
class Contributions:
    """Contributions to one behaviour of the final model, in the behaviour's unit.

    Positive contributions raised the behaviour. A stage's steps sum to the *linearised* effect of
    scaling the stage, which is not the stage effect of an effect table.

    Attributes:
        behaviour: Its name.
        value: Of the final model, the mean over the examples asked about.
        steps: Columns ``stage, step, contribution``, in training order.
        examples: Columns ``stage, step, part, position, contribution, slope``: per step
            one row for each example of its batches (``part`` is ``"example"``, ``position`` counts
            over the step's micro-batches) and one for :data:`CARRIED` (``position`` is missing);
            contributions sum to the step. ``slope`` is the derivative in the weight of the
            example's loss, which leaving it out goes by. None where it was not asked for.
        steps_only: Stages without rows in ``examples``, and why.
    """

    behaviour: str
    value: float
    steps: pd.DataFrame
    examples: pd.DataFrame | None
    steps_only: Mapping[str, str] = field(default_factory=dict)


def contributions(
    run: Run,
    behaviour: str,
    examples: Sequence[Example],
    *,
    with_examples: bool = False,
    options: DerivativeOptions | None = None,
    spacing: int | None = None,
    progress: ProgressCallback = no_progress,
    since: str | None = None,
    horizon: int | None = None,
) -> Contributions:
    """Contribution of every step of the stages to a behaviour, by one reverse sweep.

    Args:
        run: The run.
        behaviour: One of the task's, for instance ``"margin"``.
        examples: One example, or a group whose mean is asked about; those without a label are
            left out where the behaviour needs one.
        with_examples: Also the contribution of every training example of every step.
        options: Dtype and curvature.
        spacing: Steps between two kept states; by default the square root of a stage's steps.
        progress: Called after every step.
        since: The earliest stage that is wanted, where the sweep ends; None for the first.
        horizon: Ask about the behaviour so many steps later within each stage, where it still
            trains, in place of that of the final model; see
            :func:`stagelens.derivatives.adjoint.sweep_within`.

    Raises:
        Refused: The behaviour is unknown or has no value, or the run has no derivatives
            (see :func:`stagelens.derivatives.forward_mode.final_tangents`).
    """
    value = float("nan")

    def gradient(last: LinearStage) -> Mapping[str, Tensor]:
        # The sweep asks for the gradient alone, and the value comes with it.
        nonlocal value
        value, slopes = behaviour_gradient(run, last, behaviour, examples)
        return slopes

    # The sweep runs backwards; tables are in training order.
    if horizon is None:
        found = sweep(run, gradient, options, spacing, with_examples, progress, since)[::-1]
    else:
        last = LinearStage(
            run, run.last, active_names(run, [run.last]), options or DerivativeOptions()
        )
        gradient(last)
        found = _within(run, behaviour, examples, horizon, options, progress, since)
    steps = pd.DataFrame(
        {
            "stage": [one.stage for one in found],
            "step": [one.step for one in found],
            "contribution": [one.contribution for one in found],
        }
    )
    table = _example_table(found) if with_examples else None
    only = {one.stage: one.why for one in found if one.why is not None}
    return Contributions(behaviour, value, steps, table, only)


def _within(
    run: Run,
    behaviour: str,
    examples: Sequence[Example],
    horizon: int,
    options: DerivativeOptions | None,
    progress: ProgressCallback,
    since: str | None,
) -> list[StepContribution]:
    """Contributions to the behaviour some steps later in the same stage, in training order."""

    def gradient(own: LinearStage, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return behaviour_gradient(run, own, behaviour, examples, values)[1]

    stages = run.stages if since is None else run.stages[run.stage(since).index :]
    total, done, overall = sum(stage.steps for stage in stages), 0, Progress(progress)
    found: list[StepContribution] = []
    for stage in stages:
        part = overall.part(done / total, (done + stage.steps) / total)
        (own,) = sweep_within(run, stage, [gradient], horizon, options=options, progress=part)
        found += own
        done += stage.steps
    return found


def _example_table(found: Sequence[StepContribution]) -> pd.DataFrame:
    blocks = []
    for one in found:
        if one.examples is None or one.slopes is None:
            continue
        count = len(one.examples)
        blocks.append(
            pd.DataFrame(
                {
                    "stage": one.stage,
                    "step": one.step,
                    "part": ["example"] * count + [CARRIED],
                    "position": pd.array([*range(count), None], dtype="Int64"),
                    "contribution": np.append(one.examples, one.carried),
                    "slope": np.append(one.slopes, np.nan),
                }
            )
        )
    if not blocks:
        names = ["stage", "step", "part", "position", "contribution", "slope"]
        return pd.DataFrame({name: [] for name in names})
    return pd.concat(blocks, ignore_index=True)


def behaviour_gradient(
    run: Run,
    last: LinearStage,
    behaviour: str,
    examples: Sequence[Example],
    values: Mapping[str, Tensor] | None = None,
) -> tuple[float, dict[str, Tensor]]:
    """``(y, grad y)`` at a model, in evaluation mode; y is the mean over the examples.

    Args:
        run: The run.
        last: Its last stage, or the one that the values are of; its model is used, and left in the
            modes it was in.
        behaviour: Name of y.
        examples: What y is measured on.
        values: Parameters and buffers of the model; by default those at the stage's end, which of
            the last stage is the final model.

    Raises:
        Refused: The task has no such behaviour, or none of the examples has a value.
    """
    value, slopes, count = behaviour_sum(run, last, behaviour, examples, values)
    if not count:
        raise no_value(behaviour, examples)
    return value / count, {name: total / count for name, total in slopes.items()}


def behaviour_sum(
    run: Run,
    last: LinearStage,
    behaviour: str,
    examples: Sequence[Example],
    values: Mapping[str, Tensor] | None = None,
) -> tuple[float, dict[str, Tensor], int]:
    """As :func:`behaviour_gradient`, of the sum, and of how many examples it is.

    Batches and parts of a target differ in how many examples have a value: sums add up.

    Raises:
        Refused: The task has no such behaviour.
    """
    x = last.loss.place(last.end.values if values is None else values)
    total: list[Tensor] = [torch.zeros_like(t) for t in x]
    value, count = 0.0, 0
    for measured in _measured(run, last, behaviour, examples):
        kept = measured[~measured.isnan()]
        if kept.numel() == 0:
            continue
        slopes = torch.autograd.grad(kept.sum(), x, allow_unused=True, materialize_grads=True)
        total = [a + b for a, b in zip(total, slopes, strict=True)]
        value, count = value + float(kept.detach().sum()), count + kept.numel()
    return value, dict(zip(last.loss.names, total, strict=True)), count


def behaviour_along(
    run: Run,
    own: LinearStage,
    behaviour: str,
    examples: Sequence[Example],
    values: Mapping[str, Tensor],
    direction: Mapping[str, Tensor] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """``(y, grad y . v)`` of every example, in evaluation mode; (N,) each, NaN without a value.

    Args:
        run: The run.
        own: The stage whose model is used, as by :func:`behaviour_gradient`.
        behaviour: Name of y.
        examples: N of them.
        values: Parameters and buffers of the model.
        direction: v, by name; None for y alone, with zeros beside it.

    Raises:
        Refused: The task has no such behaviour, or none of the examples has a value.
    """
    x = own.loss.place(values)
    found, slopes = [], []
    for measured in _measured(run, own, behaviour, examples):
        found.append(measured.detach().double().cpu().numpy())
        pushed = torch.zeros_like(measured)
        if direction is not None:
            v = [direction[name] for name in own.loss.names]
            (pushed,) = along([torch.nan_to_num(measured)], x, v)
        slopes.append(pushed.double().cpu().numpy())
    all_found = np.concatenate(found)
    if not (direction is None or np.isfinite(all_found).any()):
        raise no_value(behaviour, examples)
    return all_found, np.concatenate(slopes)


def no_value(behaviour: str, examples: Sequence[Example]) -> Refused:
    """That a behaviour has no value on any of these examples."""
    return Refused(
        f"none of the {len(examples)} examples has a {behaviour}; give examples with labels"
    )


def _measured(
    run: Run, last: LinearStage, behaviour: str, examples: Sequence[Example]
) -> Iterator[Tensor]:
    """The behaviour of the examples, batch by batch, by the values that were placed; with a graph.

    The model is in evaluation mode between batches, and then left in the modes it was in.
    """
    model, loss = last.loss.model, last.loss
    modes = {name: module.training for name, module in model.named_modules()}
    model.eval()
    try:
        for first in range(0, len(examples), _BATCH):
            batch = cast(
                to_device(run.task.collate(examples[first : first + _BATCH]), loss.device),
                loss.dtype,
            )
            # Torch's own BatchNorm has no gradient in its running statistics.
            with torch.enable_grad(), ExplicitBatchNorm(model):
                measured = run.task.behaviours(run.task.outputs(model, batch), batch)
            if behaviour not in measured:
                known = ", ".join(measured)
                raise Refused(f"the task has no behaviour {behaviour!r}; use one of {known}")
            yield measured[behaviour]
    finally:
        for name, module in model.named_modules():
            # Not model.train(): a stage may have frozen some modules in evaluation mode.
            module.training = modes[name]
