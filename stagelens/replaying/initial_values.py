"""Initial values of parameters that a boundary made, drawn anew as they were drawn.

How a head or an adapter was initialised is not recorded. What a new model of the task begins with
is tried first, then the normal and the uniform distribution around 0 that fit the recorded values;
where none of these can have given them (a Kolmogorov-Smirnov test), they stay as recorded.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from stagelens.contracts import Task
from stagelens.runs.run import Stage
from stagelens.runs.states import Weights, capture, same_tensor

_UNLIKELY = 1e-3
"""A distribution that gives such values more rarely is not that of an initialisation."""
_FEWEST = 1000
"""Values that can tell new weights from trained ones."""
_FACTORS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
"""In the names of an adapter's two factors."""
_MOST = 20_000
"""Values of a tensor that are looked at."""


@dataclass
class DrawnValues:
    """Initial values of a stage's new parameters.

    Attributes:
        values: By name; those that are no matter of chance are missing.
        kept: Names of those that cannot be drawn.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)


def drawn_values(task: Task, stage: Stage, seed: int) -> DrawnValues:
    """Draw the values of the parameters and buffers that are new at a stage's start.

    Args:
        task: Builds the model.
        stage: Not the first.
        seed: Of the draw.
    """
    found = DrawnValues()
    names = stage.facts.boundary.new
    if not names:
        return found
    recorded = stage.start().model
    fresh, other = (_fresh(task, stage, each) for each in (seed, seed + 1))
    computed, together = _of_adapters(stage, recorded)
    for name in names:
        own = recorded[name]
        if name in computed:
            continue
        if name in together:
            found.kept.append(name)
            continue
        if not own.is_floating_point() or bool((own == own.reshape(-1)[:1]).all()):
            continue  # a constant
        usual = fresh.get(name)
        if usual is not None and same_tensor(usual, own) and same_tensor(other[name], own):
            continue  # follows from the architecture
        generator = torch.Generator().manual_seed(seed + len(found.values))
        drawn = _like(own, usual, generator)
        if drawn is None:
            found.kept.append(name)
        else:
            found.values[name] = drawn
    return found


def drawn_base(task: Task, stage: Stage, seed: int) -> Weights | None:
    """Other weights to begin with, where those recorded are a new model's; None where they are not.

    Trained weights have another distribution than new ones. Of fewer than 1,000 values this does
    not show reliably, and they are taken to be no matter of chance.

    Args:
        task: Builds the model.
        stage: The first.
        seed: Of the draw.
    """
    start = stage.start()
    recorded, fresh = start.model, _fresh(task, stage, seed)
    if start.optimizer or fresh.keys() != recorded.keys():
        return None
    compared = 0
    for name, own in recorded.items():
        other = fresh[name]
        if own.dtype != other.dtype or own.shape != other.shape:
            return None
        if same_tensor(own, other):
            continue
        if not own.is_floating_point():
            return None
        if stats.ks_2samp(_sample(own), _sample(other)).pvalue < _UNLIKELY / len(recorded):
            return None
        compared += own.numel()
    return fresh if compared >= _FEWEST else None


def too_few_to_tell(stage: Stage) -> bool:
    """Whether a first stage began with too few values to tell a new model from a trained one."""
    return sum(each.numel() for each in stage.start().model.values()) < _FEWEST


def _of_adapters(stage: Stage, recorded: Weights) -> tuple[set[str], set[str]]:
    """Parameters of adapters that are not drawn one by one.

    Returns:
        Those that a boundary computes from the weights beneath, so that they are no chance; and
        those that belong together in a way which other values would break: factors whose product
        was taken out of the weight beneath, or is zero although neither of them is.
    """
    computed, together = set[str](), set[str]()
    for start in (start for starts in stage.facts.boundary.started.values() for start in starts):
        factors = {start.term.a, start.term.b}
        if start.term.magnitude is not None:
            computed.add(start.term.magnitude)
        if start.kind == "kept":
            together |= factors
        elif start.kind != "plain":
            computed |= factors
    new = set(stage.facts.boundary.new) - computed
    for name in new:
        pair = next((name.replace(a, b) for a, b in _FACTORS if a in name), "")
        if pair in new and _cancel(recorded[name], recorded[pair]):
            together |= {name, pair}
    return computed, together


def _cancel(a: Tensor, b: Tensor) -> bool:
    """Whether the product of two factors is zero and neither of them is."""
    if min(a.dim(), b.dim()) < 2:
        return False
    first, second = (each.detach().double().flatten(1) for each in (a, b))
    if second.shape[1] != first.shape[0]:
        return False
    size = float(second.norm() * first.norm())
    return size > 0 and float((second @ first).norm()) < 1e-5 * size


def _fresh(task: Task, stage: Stage, seed: int) -> Weights:
    """Weights of a newly built model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return capture(task.build_model(stage.facts.build_config), None, {}).model


def _like(own: Tensor, fresh: Tensor | None, generator: torch.Generator) -> Tensor | None:
    """Other values of the same distribution; None where it cannot be told."""
    values = _sample(own)
    if fresh is not None and fresh.shape != own.shape:
        fresh = None
    if fresh is not None and stats.ks_2samp(values, _sample(fresh)).pvalue > _UNLIKELY:
        return fresh.to(own.dtype)
    scale, most = float(np.sqrt(np.mean(values**2))), float(np.abs(values).max())
    if stats.kstest(values, stats.norm(0, scale).cdf).pvalue > _UNLIKELY:
        drawn = torch.randn(own.shape, generator=generator, dtype=torch.float64) * scale
        return drawn.to(own.dtype)
    if stats.kstest(values, stats.uniform(-most, 2 * most).cdf).pvalue > _UNLIKELY:
        drawn = torch.rand(own.shape, generator=generator, dtype=torch.float64)
        return ((2 * drawn - 1) * most).to(own.dtype)
    return None


def _sample(tensor: Tensor) -> np.ndarray:
    flat = tensor.detach().double().reshape(-1)
    return flat[:: max(len(flat) // _MOST, 1)].cpu().numpy()
