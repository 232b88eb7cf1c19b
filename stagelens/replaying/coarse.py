"""Coarse steps: several recorded steps merged into one, on a part of the middle one's batch.

A coarse step stands for r consecutive steps. It computes one gradient g, on a chosen part of the
middle step's batch (see :mod:`.coarse_plan`), and moves as the r steps would with that gradient:

- SGD: exactly so, ``v_i = mu v_{i-1} + (1 - damp) g~``, ``theta' = theta - sum_i eta_i v_i``, with
  g~ = g + lam theta;
- Adam, AdamW: ``m' = b1^r m + (1 - b1^r) g``, ``u' = b2^r u + (1 - b2^r) g^2``, counts ``t + r``,
  ``theta' = theta - H mhat / (sqrt(uhat) + eps)``, with decay ``1 - H lam`` for AdamW and H the sum
  of the r learning rates.

- others: their own step at H, which counts once in whatever they average.

For r = 1 and whole batches this is the optimiser's own step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stagelens.compute import devices
from stagelens.contracts import Task
from stagelens.runs.batches import to_device
from stagelens.runs.optimizer_kinds import without_formula
from stagelens.runs.optimizer_set import AnyOptimizer
from stagelens.runs.run import Stage
from stagelens.runs.shards import shared_like
from stagelens.runs.states import (
    OptimizerState,
    TrainingState,
    capture,
    copied,
    load_optimizer,
    model_tensors,
    optimizer_tensors,
)
from stagelens.runs.step_records import MicroBatch, StepRecord

from .coarse_plan import CoarseStep
from .optimizers import build_optimizer, set_group_hyperparameters, update
from .sharded_model import SharedModel
from .stage_model import Share, stage_model
from .step import MainBuffers, StepRules, loss_of, restore_missing
from .training_loss import Passed, loss_of_stage

_TINY = 1e-30


class CoarseModel:
    """A model on its way through a stage in coarse steps.

    Args:
        task: Builds the model.
        stage: Gives loss, optimiser, modes and names.
        state: The training state to start from.
        passed: Where its counterfactual was at boundaries before the stage.
        share: What the processes of the job share: nothing, or the model.
    """

    def __init__(
        self,
        task: Task,
        stage: Stage,
        state: TrainingState,
        passed: Passed | None = None,
        share: Share = "",
    ) -> None:
        self.device, self.rules = devices.computing(), StepRules.of(stage.facts)
        given = (stage, state.model, self.rules, self.device, share)
        self.model, self.shared = stage_model(task, *given)
        self.loss_function = loss_of_stage(task, stage, self.model, passed)
        self.rule = stage.optimizer.name
        self.groups = [group.parameters for group in stage.optimizer.groups]
        self.parameters = dict(self.model.named_parameters())
        self.own: AnyOptimizer | None = None
        self.state: OptimizerState = {}
        if without_formula(stage.optimizer) is not None:
            self.own = build_optimizer(stage.optimizer, self.parameters)
            self.names = {id(parameter): name for name, parameter in self.parameters.items()}
            load_optimizer(self.own, self.names, state.optimizer)
        else:
            self.state = {
                name: {
                    # Copied, as steps change it in place. Adam's count stays on the CPU: it is read
                    # at every step, which would wait for a GPU.
                    key: shared_like(self.parameters[name], value).to(
                        "cpu" if key == "step" else self.device, copy=True
                    )
                    for key, value in tensors.items()
                }
                for name, tensors in state.optimizer.items()
            }
        norms: list[Any] = [m for m in self.model.modules() if _keeps_running_mean(m)]
        self.buffers = MainBuffers(self.model.buffers(), self.rules, self.shared is not None)
        self.norms = [(module, float(module.momentum)) for module in norms]
        self.loss = math.nan

    def gradients(
        self, batches: Sequence[MicroBatch], merged: int, scale: float
    ) -> dict[str, Tensor]:
        """Gradient of the thinned step, after clipping; also moves running statistics.

        Args:
            batches: Micro-batches; their losses are differentiated, each over its divisor.
            merged: How many steps it stands for.
            scale: What the divided losses are multiplied by.

        Returns:
            Parameter name to gradient; absent where there is none.
        """
        for module, momentum in self.norms:
            # r updates with one batch: running' = (1 - m)^r running + (1 - (1 - m)^r) batch.
            module.momentum = 1 - (1 - momentum) ** merged
        self.model.zero_grad(set_to_none=True)
        if self.shared is None:
            self.loss = sum(self._pass(m, scale / self.rules.divisor(m)) for m in batches)
        else:
            self.loss = self._passes_of(self.shared, batches, scale)
        if self.rules.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.rules.clip_norm)
        return {name: p.grad for name, p in self.parameters.items() if p.grad is not None}

    def _pass(self, micro: MicroBatch, factor: float) -> float:
        """One forward and backward pass of a loss times a factor; that product."""
        devices.restore_random(micro.rng, self.device)
        batch = to_device(micro.batch, self.device)
        with self.buffers.of(micro):
            loss = loss_of(self.loss_function, self.model, batch, self.rules) * factor
            found = float(loss.detach())
            loss.backward()
        return found

    def _passes_of(self, shared: SharedModel, batches: Sequence[MicroBatch], scale: float) -> float:
        own: dict[int, float] = {}
        for place, micro in shared.own(batches):
            # Torch takes the mean over processes.
            factor = shared.count * scale / self.rules.divisor(micro)
            loss = self._pass(micro, 0.0 if place is None else factor)
            if place is not None:
                own[place] = loss / shared.count
        return sum(shared.losses(own, len(batches)))

    @torch.no_grad()
    def step(self, coarse: CoarseStep) -> None:
        """One coarse step in place of the recorded steps that it stands for."""
        middle = coarse.middle
        scale = coarse.scale(self.rules.accumulation)
        with torch.enable_grad():
            gradients = self.gradients(coarse.batches, len(coarse.facts), scale)
        # On the scale of StepRecord.loss, so that the two can be compared.
        self.loss /= middle.weight(self.rules.accumulation) if middle.plain else 1.0
        if self.own is not None:
            self._own_step(self.own, coarse, middle)
        else:
            for number, names in enumerate(self.groups):
                options = [record.groups[number] for record in coarse.facts]
                present = [name for name in names if name not in middle.missing]
                self._update(present, gradients, options, middle.groups[number])
        for record in coarse.facts:
            self.loss_function.updated(record.step, self.model)

    def _own_step(self, own: AnyOptimizer, coarse: CoarseStep, middle: StepRecord) -> None:
        trained = [self.parameters[name] for names in self.groups for name in names]
        restore_missing(self.parameters, middle.missing, trained)
        merged = [
            {**group, "lr": math.fsum(float(one.groups[number]["lr"]) for one in coarse.facts)}
            for number, group in enumerate(middle.groups)
        ]
        set_group_hyperparameters(own, merged)
        update(own)

    def _update(
        self,
        names: Sequence[str],
        gradients: Mapping[str, Tensor],
        options: Sequence[Mapping[str, Any]],
        middle: Mapping[str, Any],
    ) -> None:
        rates = [float(option["lr"]) for option in options]
        for name in names:
            theta = self.parameters[name]
            # Not missing in the recorded step: a zero gradient still decays weight and moments.
            gradient = gradients.get(name, torch.zeros_like(theta))
            if self.rule == "SGD":
                self._sgd(name, theta, gradient, rates, middle)
            else:
                self._adam(name, theta, gradient, math.fsum(rates), len(rates), middle)

    def _sgd(
        self,
        name: str,
        theta: Tensor,
        gradient: Tensor,
        rates: Sequence[float],
        options: Mapping[str, Any],
    ) -> None:
        mu, damp = float(options["momentum"]), float(options["dampening"])
        gradient = gradient.add(theta, alpha=float(options["weight_decay"]))
        if mu == 0:
            theta.sub_(gradient, alpha=math.fsum(rates))
            return
        buffer = self.state.get(name, {}).get("momentum_buffer")
        # After i steps v_i = old v + new g; theta moves by -(moved_v v + moved_g g).
        old, new, moved_v, moved_g = 1.0, 0.0, 0.0, 0.0
        for number, rate in enumerate(rates):
            fresh = buffer is None and number == 0  # torch's first buffer is not dampened
            old, new = mu * old, mu * new + (1.0 if fresh else 1 - damp)
            if options["nesterov"]:
                moved_v, moved_g = moved_v + rate * mu * old, moved_g + rate * (1 + mu * new)
            else:
                moved_v, moved_g = moved_v + rate * old, moved_g + rate * new
        theta.sub_(gradient, alpha=moved_g)
        if buffer is None:
            self.state[name] = {"momentum_buffer": gradient * new}
        else:
            theta.sub_(buffer, alpha=moved_v)
            buffer.mul_(old).add_(gradient, alpha=new)

    def _adam(
        self,
        name: str,
        theta: Tensor,
        gradient: Tensor,
        rate: float,
        merged: int,
        options: Mapping[str, Any],
    ) -> None:
        b1, b2 = (float(beta) for beta in options["betas"])
        decay = float(options["weight_decay"])
        if self.rule == "AdamW":
            theta.mul_(1 - rate * decay)
        elif decay:
            gradient = gradient.add(theta, alpha=decay)
        own = self.state.get(name)
        if own is None:
            own = self.state[name] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(theta),
                "exp_avg_sq": torch.zeros_like(theta),
            }
        own["step"] += merged
        m, u, t = own["exp_avg"], own["exp_avg_sq"], float(own["step"])
        m.lerp_(gradient, 1 - b1**merged)
        u.mul_(b2**merged).addcmul_(gradient, gradient, value=1 - b2**merged)
        denominator = u.sqrt().div_(math.sqrt(1 - b2**t)).add_(float(options["eps"]))
        theta.addcdiv_(m, denominator, value=-rate / (1 - b1**t))

    def snapshot(self) -> TrainingState:
        """A copy of the training state as it is now."""
        if self.shared is not None:
            own = self.own
            state = self.state if own is None else optimizer_tensors(own, self.names)
            return self.shared.gathered(state)
        if self.own is not None:
            return capture(self.model, self.own, self.names)
        return TrainingState(
            {name: copied(tensor) for name, tensor in model_tensors(self.model).items()},
            {n: {key: copied(value) for key, value in s.items()} for n, s in self.state.items()},
        )


def _keeps_running_mean(module: nn.Module) -> bool:
    # momentum None means a cumulative average, which has no rate to merge.
    return getattr(module, "running_mean", None) is not None and module.momentum is not None


def transfer(
    recorded: TrainingState,
    factual: TrainingState,
    counterfactual: TrainingState,
    formula: bool = True,
) -> TrainingState:
    """Carry the twins' difference over: recorded - (factual - counterfactual).

    Variances and second moments are carried as ratios, so they stay positive. Without a formula
    for the optimiser, what its state means is not known: the counterfactual twin's is kept, with
    the recorded counts, of which a merged step makes too few.
    """
    model = {
        name: _moved(name, tensor, factual.model[name], counterfactual.model[name])
        for name, tensor in recorded.model.items()
    }
    if not formula:
        counts = {n: _counts(own) for n, own in recorded.optimizer.items()}
        states = counterfactual.optimizer.items()
        return TrainingState(model, {n: {**own, **counts.get(n, {})} for n, own in states})
    optimizer = {
        name: {
            key: _moved(key, tensor, factual.optimizer[name][key], other[key])
            for key, tensor in tensors.items()
        }
        for name, tensors in recorded.optimizer.items()
        if name in factual.optimizer and (other := counterfactual.optimizer.get(name)) is not None
    }
    return TrainingState(model, optimizer)


def _counts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if tensor.ndim == 0}


def _moved(name: str, recorded: Tensor, factual: Tensor, counterfactual: Tensor) -> Tensor:
    # Torch refuses to subtract bool, and uint8 would wrap around.
    if recorded.dtype in (torch.bool, torch.uint8):
        return recorded.clone()
    if name.endswith("running_var") or name == "exp_avg_sq":
        # Bounded, for a factual value that is nearly zero; 0 / 0 becomes 1.
        return recorded * ((counterfactual + _TINY) / (factual + _TINY)).clamp(max=1e3)
    # The same infinity, as in an attention mask, is no difference.
    return recorded - torch.where(factual == counterfactual, 0, factual - counterfactual)
