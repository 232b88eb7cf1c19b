"""Strengths by layer, proposed by a smooth objective and measured, on the validation part only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.func import functional_call

from stagelens.contracts import Refused, Task
from stagelens.derivatives.batch_norm import ExplicitBatchNorm
from stagelens.measuring.models import BATCH_SIZE
from stagelens.runs.batches import to_device
from stagelens.runs.run import Run
from stagelens.runs.sets.evaluation_set import EvaluationSet

from .edits import Material, layers_of, subtracted

_SMOOTH, _FEWEST = 384, 64
"""Examples of each of the two groups that the smooth objective looks at, at most. A model of many
parameters takes long over each, so it proposes by fewer; what is proposed is measured on all."""
_SMALL = 1_000_000
"""From this many parameters on, there are fewer."""

_STEPS = 20
_FLAT = 1e-4
"""L-BFGS-B ends after so many steps, or where the objective falls by no larger share than this."""


@dataclass(frozen=True)
class Goal:
    """Which gap to close, on N examples.

    Attributes:
        group: (N,) bool, the examples that the model serves worse.
        control: (N,) bool, those that it should serve no worse afterwards.
        labels: (N,) right answers.
        tolerance: Share of right answers that the control group may lose.
    """

    group: np.ndarray
    control: np.ndarray
    labels: np.ndarray
    tolerance: float

    def gap(self, right: np.ndarray) -> float:
        """Accuracy of the control group at the group's own mix of labels, minus the group's.

        Args:
            right: (N,) bool, whether the model's answer is the label.
        """
        shared = []
        for name, count in zip(
            *np.unique(self.labels[self.group], return_counts=True), strict=True
        ):
            rows = self.control & (self.labels == name)
            # A label that the control group lacks has nothing to be compared with.
            if rows.any():
                shared.append((right[rows].mean(), count))
        if not shared:
            return float(right[self.control].mean() - right[self.group].mean())
        values, weights = zip(*shared, strict=True)
        return float(np.average(values, weights=weights) - right[self.group].mean())


@dataclass(frozen=True)
class Trial:
    """One edit, measured on the validation part.

    Attributes:
        strengths: (stages, layers).
        size: Norm of the edit over the norm of full removal.
        gap: What is left of the gap.
        control: Accuracy of the control group.
    """

    strengths: np.ndarray
    size: float
    gap: float
    control: float


class Trials:
    """Proposes and measures strengths; holds the validation part, collated.

    Attributes:
        layers: Columns of strengths, whose rows are the stages.
        shape: Of an array of strengths.
    """

    def __init__(
        self,
        run: Run,
        examples: EvaluationSet,
        material: Material,
        stages: Sequence[str],
        goal: Goal,
        validation: np.ndarray,
    ) -> None:
        known = validation & (goal.group | goal.control) & ~_missing(goal.labels)
        rows = np.flatnonzero(known)
        self.goal = Goal(goal.group[rows], goal.control[rows], goal.labels[rows], goal.tolerance)
        for name, part in (("group", self.goal.group), ("control group", self.goal.control)):
            if not part.any():
                raise Refused(
                    f"the {name} has no labelled example on the validation part; choose a larger "
                    "group, or set strengths by hand"
                )
        self.task, self.stages, self.material = run.task, list(stages), material
        # Gradients are wanted in the strengths only.
        self.model = run.task.build_model(run.last.facts.build_config).eval().requires_grad_(False)
        self.tensor_layers = layers_of(material.final)
        self.layers = list(dict.fromkeys(self.tensor_layers.values()))
        self.shape = (len(self.stages), len(self.layers))
        self._shares = self._sizes()
        ids = examples.table([])["example_id"].to_numpy()[rows]
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        self._measured = [
            to_device(self.task.collate(examples.by_id(list(part))), device)
            for part in _blocks(ids)
        ]
        smooth = self._smooth_rows()
        self._smooth = [
            (
                to_device(self.task.collate(examples.by_id(list(ids[part]))), device),
                torch.from_numpy(self.goal.group[part]),
                torch.from_numpy(self.goal.control[part]),
            )
            for part in _blocks(smooth)
        ]
        self._counts = (self.goal.group[smooth].sum(), self.goal.control[smooth].sum())

    def _smooth_rows(self) -> np.ndarray:
        parameters = sum(tensor.numel() for tensor in self.material.final.values())
        most = max(_FEWEST, _SMOOTH * _SMALL // max(parameters, _SMALL))
        parts = [np.flatnonzero(rows) for rows in (self.goal.group, self.goal.control)]
        # Evenly spaced, not drawn, so that the search is reproducible.
        every = [part[:: max(-(-len(part) // most), 1)] for part in parts]
        return np.unique(np.concatenate(every))

    def _sizes(self) -> np.ndarray:
        """(stages, layers) squared norm of what full removal changes there; of sum 1."""
        sizes = np.zeros(self.shape)
        for row, stage in enumerate(self.stages):
            without = self.material.counterfactual(stage)
            for name, final in self.material.final.items():
                if final.is_floating_point():
                    change = final.double() - without[name].double()
                    column = self.layers.index(self.tensor_layers[name])
                    sizes[row, column] += float(change.square().sum())
        # Stages that changed nothing have no norm to divide by.
        return sizes / (sizes.sum() or 1.0)

    def _weights(self, strengths: Tensor) -> dict[str, Tensor]:
        edited = {}
        for name, final in self.material.final.items():
            if final.is_floating_point():
                column = self.layers.index(self.tensor_layers[name])
                taken = [
                    (self.material.counterfactual(stage)[name], strengths[row, column])
                    for row, stage in enumerate(self.stages)
                ]
                edited[name] = subtracted(name, final, taken)
            else:
                edited[name] = final
        return edited

    def proposed(self, weight: float, price: float, start: np.ndarray) -> np.ndarray:
        """The strengths that minimise the smooth objective."""

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            value, slope = self._objective(flat.reshape(self.shape), weight)
            size = self._shares.ravel() * flat**2
            return value + price * size.sum(), slope.ravel() + 2 * price * (
                self._shares.ravel() * flat
            )

        done = minimize(
            objective,
            start.ravel(),
            jac=True,
            method="L-BFGS-B",
            bounds=[(0.0, 1.0)] * start.size,
            options={"maxiter": _STEPS, "ftol": _FLAT},
        )
        return np.asarray(done.x).reshape(self.shape)

    def _objective(self, strengths: np.ndarray, weight: float) -> tuple[float, np.ndarray]:
        """Weighted mean losses, and their derivatives by the strengths."""
        leaf = torch.tensor(strengths, dtype=torch.float32, requires_grad=True)
        edited = self._weights(leaf)
        moving = {name: tensor for name, tensor in edited.items() if tensor.requires_grad}
        # Cut at the weights: their gradients add up over batches, and the graph behind them, from
        # the strengths, is gone through once.
        cut = {name: tensor.detach().requires_grad_() for name, tensor in moving.items()}
        value = 0.0
        # Running statistics are edited too, and torch's own BatchNorm has no derivative in them.
        with ExplicitBatchNorm(self.model):
            for batch, group, control in self._smooth:
                losses = _losses(self.task, self.model, {**edited, **cut}, batch)
                # By the counts of all blocks, so that blocks add up to the two means.
                share = weight / self._counts[0] * group + (1 - weight) / self._counts[1] * control
                loss = (share * losses).sum()
                loss.backward()
                value += float(loss.detach())
        reached = {name: tensor.grad for name, tensor in cut.items() if tensor.grad is not None}
        torch.autograd.backward([moving[name] for name in reached], list(reached.values()))
        slope = np.zeros(self.shape) if leaf.grad is None else leaf.grad.double().numpy()
        return value, slope

    def measured(self, strengths: np.ndarray) -> Trial:
        """Accuracies of an edit on the whole validation part."""
        answers: list[str] = []
        with torch.inference_mode():
            weights = self._weights(torch.tensor(strengths, dtype=torch.float32))
            for batch in self._measured:
                outputs = _called(self.task, self.model, weights, batch)
                answers += self.task.predictions(outputs).answers
        right = np.asarray(answers, dtype=object) == self.goal.labels
        return Trial(
            strengths,
            float(np.sqrt((self._shares * strengths**2).sum())),
            self.goal.gap(right),
            float(right[self.goal.control].mean()),
        )


def _missing(labels: np.ndarray) -> np.ndarray:
    # Only NaN differs from itself.
    return np.asarray([label is None or label != label for label in labels])


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(rows), BATCH_SIZE):
        yield rows[first : first + BATCH_SIZE]


class _Reading(nn.Module):
    """A model and what a task makes of its outputs, as one module that weights can be given to."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self.task, self.model = task, model

    def forward(self, batch: Any) -> Any:
        return self.task.outputs(self.model, batch)


def _called(task: Task, model: nn.Module, weights: Mapping[str, Tensor], batch: Any) -> Any:
    named = {f"model.{name}": tensor for name, tensor in weights.items()}
    return functional_call(_Reading(task, model), named, (batch,))


def _losses(task: Task, model: nn.Module, weights: Mapping[str, Tensor], batch: Any) -> Tensor:
    """(B,) what to lower: the loss or, without one, the first behaviour, by its sign."""
    kinds = task.behaviour_kinds
    kind = next((kind for kind in kinds if kind.name == "loss"), kinds[0])
    return -kind.sign * task.behaviours(_called(task, model, weights, batch), batch)[kind.name]
