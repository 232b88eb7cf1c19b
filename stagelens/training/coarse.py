"""Coarse steps: several recorded steps merged into one, on a part of the middle one's batch.

A coarse step stands for r consecutive steps. It computes one gradient g, on a chosen part of the
middle step's batch (see :class:`Thinning`), and moves as the r steps would with that gradient:

- SGD: exactly so, ``v_i = mu v_{i-1} + (1 - damp) g~``, ``theta' = theta - sum_i eta_i v_i``, with
  g~ = g + lam theta;
- Adam, AdamW: ``m' = b1^r m + (1 - b1^r) g``, ``u' = b2^r u + (1 - b2^r) g^2``, counts ``t + r``,
  ``theta' = theta - H mhat / (sqrt(uhat) + eps)``, with decay ``1 - H lam`` for AdamW and H the sum
  of the r learning rates.

For r = 1 and whole batches this is the optimiser's own step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..contracts import Task
from ..runs.batches import batch_size, flatten, to_device
from ..runs.run import Stage
from ..runs.states import TrainingState, load_into, model_tensors
from ..runs.steps import MicroBatch, RecordedSteps, StepRecord
from .replay import StepRules, loss_of, prepare

_TINY = 1e-30


@dataclass(frozen=True)
class Group:
    """The recorded steps ``first`` to ``last`` (exclusive) that one coarse step stands for."""

    first: int
    last: int

    @property
    def merged(self) -> int:
        """How many steps, r."""
        return self.last - self.first

    @property
    def middle(self) -> int:
        """The step whose batch is used."""
        return (self.first + self.last) // 2


def groups_of_equal_rate(rates: Sequence[float], count: int) -> list[Group]:
    """Cut steps into about ``count`` groups of equal summed learning rate.

    What limits merging is the largest sum of a group, so warm-up and decay merge far more than
    the peak.

    Args:
        rates: Learning rate of every step.
        count: Between 1 and the number of steps.
    """
    steps = len(rates)
    count = max(1, min(count, steps))
    # A step without any learning rate still weighs a little, so that every step has a group.
    floor = max(sum(rates), _TINY) * 1e-6 / steps
    total = sum(rates) + floor * steps
    groups: list[Group] = []
    first, summed = 0, 0.0
    for step, rate in enumerate(rates):
        summed += rate + floor
        closed = len(groups) + 1
        if step == steps - 1 or (summed >= total * closed / count - 1e-12 and closed < count):
            groups.append(Group(first, step + 1))
            first = step + 1
    return groups


_ITEMS = "num_items_in_batch"
"""What a ``transformers`` model divides its summed loss by: the labels of the whole step."""
_IGNORED = -100


def take_rows(batch: Any, rows: Sequence[int]) -> Any:
    """The examples ``rows`` of a batch: those rows of every tensor with one row an example.

    A count of labels that the loss is divided by shrinks as the labels do, so that the loss stays
    what it is in size.
    """
    size = batch_size(batch)

    def take(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[list(rows)] if value.ndim and value.shape[0] == size else value
        if isinstance(value, Mapping):
            taken = {key: take(item) for key, item in value.items()}
            if value.get(_ITEMS) is not None and isinstance(value.get("labels"), Tensor):
                taken[_ITEMS] = value[_ITEMS] * _labels(taken["labels"]) / _labels(value["labels"])
            return taken
        if isinstance(value, tuple | list):
            return type(value)(take(item) for item in value)
        return value

    return take(batch)


def _labels(labels: Tensor) -> int:
    """How many there are that a loss is computed from; 1 at least."""
    return max(int((labels != _IGNORED).sum()), 1)


def _identities(batch: Any) -> list[int]:
    """One number per example, equal where an example's tensors are, padding left out of account.

    A text is filled up to the longest of its batch, which is another at every epoch.
    """
    size = batch_size(batch)
    rows: list[list[bytes]] = [[] for _ in range(size)]
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    kept = mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
    _, tensors = flatten(batch)
    for tensor in tensors:
        if tensor.ndim and tensor.shape[0] == size:
            padded = kept is not None and tensor.shape == kept.shape
            for number, values in enumerate(tensor.reshape(size, -1)):
                values = values[kept[number]] if padded and kept is not None else values
                rows[number].append(values.view(torch.uint8).numpy().tobytes())
    return [hash(tuple(row)) for row in rows]


def _size(size: int, share: float) -> int:
    """How many examples to keep: two at least, which batch statistics need."""
    return max(min(size, 2), round(size * share))


class Thinning:
    """Chooses which examples a coarse step keeps, so that over a stage all get their due.

    An example is due its recorded uses, scaled down as the batches are. Of a batch, those that
    have had the least of their due are kept; so what was drawn often is kept often, and chance
    does not choose again.

    Args:
        share: Of the examples, how many are kept.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._due: dict[int, float] = {}

    def keep(self, used: Sequence[MicroBatch], shown: Sequence[MicroBatch]) -> list[MicroBatch]:
        """The examples to keep of one recorded step.

        Args:
            used: All micro-batches of the steps that the coarse step stands for.
            shown: The recorded step's own; fewer of them are kept first, then smaller ones.
        """
        if self._share >= 1:
            return list(shown)
        identities = {id(micro): _identities(micro.batch) for micro in (*used, *shown)}
        count = max(1, round(len(shown) * self._share))
        share = min(1.0, len(shown) * self._share / count)
        sizes = [_size(batch_size(micro.batch), share) for micro in shown[:count]]
        examples = [example for micro in used for example in identities[id(micro)]]
        for example in examples:
            self._due[example] = self._due.get(example, 0.0) + sum(sizes) / len(examples)
        return [
            self._part(micro, identities[id(micro)], size)
            for micro, size in zip(shown, sizes, strict=False)
        ]

    def _part(self, micro: MicroBatch, own: Sequence[int], size: int) -> MicroBatch:
        order = sorted(range(len(own)), key=lambda row: -self._due.get(own[row], 0.0))
        rows = sorted(order[:size])
        for row in rows:
            self._due[own[row]] = self._due.get(own[row], 0.0) - 1
        return MicroBatch(take_rows(micro.batch, rows), micro.rng)


@dataclass(frozen=True)
class CoarseStep:
    """One coarse step, ready to run.

    Attributes:
        facts: The recorded steps that it stands for, without batches.
        batches: What its gradient is computed from.
        last: Number of the step that follows it.
        examples: How many examples' gradients it costs.
    """

    facts: list[StepRecord]
    batches: list[MicroBatch]
    last: int
    examples: int

    @property
    def middle(self) -> StepRecord:
        """The recorded step in the middle."""
        return self.facts[len(self.facts) // 2]


def coarse_steps(
    steps: RecordedSteps,
    merge: float,
    thin: float,
    kept: Callable[[int], int] = lambda step: step,
) -> Iterator[CoarseStep]:
    """The coarse steps of a stage, in order.

    Args:
        steps: The stage's recorded steps.
        merge: Mean number of steps per group, r >= 1.
        thin: Batches are cut to 1/thin of their examples, q >= 1.
        kept: Step to the nearest step whose batches were kept.
    """
    facts = [steps.facts(number) for number in range(len(steps))]
    rates = [max(float(group["lr"]) for group in record.groups) for record in facts]
    thinning = Thinning(1 / thin)
    for group in groups_of_equal_rate(rates, round(len(steps) / merge)):
        numbers = range(group.first, group.last) if thin > 1 else range(0)
        read = {number: steps[number].batches or [] for number in numbers}
        middle = kept(group.middle)
        shown = read.get(middle) or steps[middle].batches or []
        used = [micro for batches in read.values() for micro in batches] or shown
        batches = thinning.keep(used, shown)
        examples = sum(batch_size(micro.batch) for micro in batches)
        yield CoarseStep(facts[group.first : group.last], batches, group.last, examples)


class CoarseModel:
    """A model on its way through a stage in coarse steps.

    Args:
        task: Builds the model and computes the loss.
        stage: Gives optimiser, modes and names.
        state: The training state to start from.
    """

    def __init__(self, task: Task, stage: Stage, state: TrainingState) -> None:
        facts = stage.facts
        self.task = task
        self.model = task.build_model(facts.build_config)
        load_into(self.model, state.model)
        self.rules = StepRules.of(facts)
        prepare(self.model, self.rules)
        self.rule = stage.optimizer.name
        self.groups = [group.parameters for group in stage.optimizer.groups]
        self.parameters = dict(self.model.named_parameters())
        self.device = next(iter(self.parameters.values())).device
        self.state = {
            name: {key: value.clone() for key, value in tensors.items()}
            for name, tensors in state.optimizer.items()
        }
        norms: list[Any] = [m for m in self.model.modules() if _keeps_running_mean(m)]
        self.norms = [(module, float(module.momentum)) for module in norms]
        self.loss = math.nan

    def gradients(
        self, batches: Sequence[MicroBatch], merged: int, weight: float
    ) -> dict[str, Tensor]:
        """Gradient of the thinned step, after clipping; also moves running statistics.

        Args:
            batches: Micro-batches; their losses are differentiated, each over its divisor.
            merged: How many steps it stands for.
            weight: Sum of the factors of all micro-batches of the step; what is kept of them is
                scaled up to it.

        Returns:
            Parameter name to gradient; absent where there is none.
        """
        for module, momentum in self.norms:
            module.momentum = 1 - (1 - momentum) ** merged
        self.model.zero_grad(set_to_none=True)
        self.loss = 0.0
        factors = [1 / self.rules.divisor(micro) for micro in batches]
        scale = weight / sum(factors)
        for micro, factor in zip(batches, factors, strict=True):
            if "cpu" in micro.rng:
                torch.set_rng_state(micro.rng["cpu"])
            batch = to_device(micro.batch, self.device)
            loss = loss_of(self.task, self.model, batch, self.rules) * (scale * factor)
            self.loss += float(loss.detach())
            loss.backward()
        if self.rules.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.rules.clip_norm)
        return {name: p.grad for name, p in self.parameters.items() if p.grad is not None}

    @torch.no_grad()
    def step(self, coarse: CoarseStep) -> None:
        """One coarse step in place of the recorded steps that it stands for."""
        middle = coarse.middle
        with torch.enable_grad():
            weight = middle.weight(self.rules.accumulation)
            gradients = self.gradients(coarse.batches, len(coarse.facts), weight)
        self.loss /= weight if middle.plain else 1.0
        for number, names in enumerate(self.groups):
            options = [record.groups[number] for record in coarse.facts]
            present = [name for name in names if name not in middle.missing]
            self._update(present, gradients, options, middle.groups[number])

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
        return TrainingState(
            {name: tensor.clone() for name, tensor in model_tensors(self.model).items()},
            {n: {key: value.clone() for key, value in s.items()} for n, s in self.state.items()},
        )


def _keeps_running_mean(module: nn.Module) -> bool:
    return getattr(module, "running_mean", None) is not None and module.momentum is not None


def transfer(
    recorded: TrainingState, factual: TrainingState, counterfactual: TrainingState
) -> TrainingState:
    """Carry the twins' difference over: recorded - (factual - counterfactual).

    Variances and second moments are carried as ratios, so they stay positive.
    """
    model = {
        name: _moved(name, tensor, factual.model[name], counterfactual.model[name])
        for name, tensor in recorded.model.items()
    }
    optimizer = {
        name: {
            key: _moved(key, tensor, factual.optimizer[name][key], other[key])
            for key, tensor in tensors.items()
        }
        for name, tensors in recorded.optimizer.items()
        if name in factual.optimizer and (other := counterfactual.optimizer.get(name)) is not None
    }
    return TrainingState(model, optimizer)


def _moved(name: str, recorded: Tensor, factual: Tensor, counterfactual: Tensor) -> Tensor:
    if recorded.dtype in (torch.bool, torch.uint8):
        return recorded.clone()
    if name.endswith("running_var") or name == "exp_avg_sq":
        return recorded * ((counterfactual + _TINY) / (factual + _TINY)).clamp(max=1e3)
    return recorded - (factual - counterfactual)
