"""A stage effect's attribution to pixels or tokens.

For a model f, an input x and a baseline x0, with the switches m of
:mod:`~stagelens.analyses.saliency.switched`, the integrated gradients (Sundararajan, Taly and Yan,
"Axiomatic Attribution for Deep Networks", 2017) of place p are

    a_p(f) = ∫_0^1 ∂f/∂m_p (α, ..., α) dα,        Σ_p a_p(f) = f(x) - f(x0).

with a mean over references where the baseline is several inputs ("expected gradients"; Erion et
al., 2021). They are linear in f. So the map of a stage effect, f - g with g the model without the
stage, is a(f) - a(g), and sums to the effect on the input less that on the baseline. Sums are
checked, and the integral is refined until they hold; every map says in how many steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stagelens.contracts import Behaviour, ProgressCallback, Refused, no_progress
from stagelens.effects.computing import attribute
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.estimators.registry import make_estimator
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.run import Run
from stagelens.runs.states import load_into
from stagelens.trust.verification import trusted

from .map_table import (
    MOST_STEPS,
    NOT_ATTRIBUTED,
    Map,
    check_baseline,
    load_maps,
    map_facts,
    save_maps,
)
from .switched import Baseline, Switched

_FIRST_STEPS = 32
_AGREES = 1e-3
"""The fully switched input has to behave as the plain one, within this share of its value."""


@dataclass(frozen=True)
class StageMaps:
    """Maps of a stage's effect on some examples.

    Attributes:
        maps: In the order of the ids asked for.
        behaviour: Whose effect.
        baseline: What nothing looks like.
        trust: What is known of the counterfactual.
    """

    maps: tuple[Map, ...]
    behaviour: Behaviour
    baseline: str
    trust: StageTrust


def stage_maps(
    run: Run,
    set_name: str,
    stage: str,
    ids: Sequence[str],
    estimator: str,
    settings: Mapping[str, Any] | None = None,
    behaviour: str | None = None,
    baseline: str | None = None,
    progress: ProgressCallback = no_progress,
) -> StageMaps:
    """Where in some examples a stage's effect sits; stored with the run's results.

    The maps are those of the counterfactual's weights; twins have no part in them.

    Args:
        run: The run.
        set_name: One of its evaluation sets.
        stage: The stage that is left out.
        ids: Examples of the set.
        estimator: How the counterfactual is obtained.
        settings: Of the estimator; None for its defaults.
        behaviour: One of the task's; None for its first.
        baseline: One of :data:`~.map_table.BASELINES`; None for the usual one.
        progress: Called as the work proceeds.

    Raises:
        Refused: The estimator cannot give the stage; or the task, the behaviour or an example
            cannot be attributed; says which.
        RunError: The set or the stage is not there.
    """
    task, examples = run.task, run.evaluation_set(set_name)
    kind = _behaviour(run, behaviour)
    ground = check_baseline(task.input_kind, baseline)
    result = attribute(
        run, set_name, estimator, [stage], lambda s, text: progress(0.5 * s, text), settings
    )
    trust = trusted(run, result).trust[stage]
    if trust.trust == "refused":
        raise Refused(f"{stage} by {estimator}: {trust.reason}")
    used = result.facts.settings
    facts = map_facts(run, set_name, estimator, used, stage, kind.name, ground)
    known = load_maps(run, facts, ids)
    # An id may be asked for twice.
    missing = examples.by_id([each for each in dict.fromkeys(ids) if each not in known])
    if missing:
        nothing = Baseline(task, examples, ground)
        inputs = [nothing.switched(each) for each in missing]
        (found,) = counterfactuals(run, make_estimator(estimator, used), [run.stage(stage)])
        assert found.weights is not None, "refused stages end above"
        models = [_frozen(run, weights) for weights in (run.last.end().model, found.weights)]
        made = []
        for number, (example, own) in enumerate(zip(missing, inputs, strict=True)):
            said = f"attributing {stage}, example {number + 1} of {len(missing)}"
            progress(0.5 + 0.5 * number / len(missing), said)
            made.append(attributed(own, example.example_id, models, kind.name))
        save_maps(run, facts, made)
        known |= {each.example_id: each for each in made}
    return StageMaps(tuple(known[each] for each in ids), kind, ground, trust)


def _behaviour(run: Run, name: str | None) -> Behaviour:
    kinds = {k.name: k for k in run.task.behaviour_kinds if k.name not in NOT_ATTRIBUTED}
    if name is not None and name not in kinds:
        raise Refused(
            f"task {run.task.name!r} has no behaviour {name!r} that can be attributed; use "
            f"{', '.join(kinds)}"
        )
    return kinds[name] if name is not None else next(iter(kinds.values()))


def _frozen(run: Run, weights: Mapping[str, Tensor]) -> nn.Module:
    """A model in evaluation mode, with gradients in its inputs only."""
    model = run.task.build_model(run.last.facts.build_config)
    load_into(model, weights)
    return model.eval().requires_grad_(False)


def attributed(
    own: Switched,
    example_id: str,
    models: Sequence[nn.Module],
    behaviour: str,
    most_steps: int = MOST_STEPS,
) -> Map:
    """The maps of two models on one example, with as many steps as their sums need.

    Args:
        own: The example with its switches.
        example_id: Its id.
        models: The final model and the one without the stage, frozen, in evaluation mode.
        behaviour: What is attributed.
        most_steps: Where steps are no longer doubled; see :attr:`Map.holds` for what that means.

    Raises:
        Refused: The example has no such behaviour, or it does not follow from the places alone.
    """
    ends = [_ends(own, example_id, model, behaviour) for model in models]
    # Every reference has an integral of its own, so they divide the steps of one among them.
    steps = [max(_FIRST_STEPS // own.references, 8)] * 2
    maps = [integrated(own, model, behaviour, steps[0]) for model in models]
    inputs, baselines = ((ends[0][n], ends[1][n]) for n in (0, 1))
    while True:
        found = Map(example_id, own.tokens, maps[0], maps[1], inputs, baselines, max(steps))
        # Only the model that is further off is refined: the other one's steps may do.
        worse = int(np.argmax(np.abs(found.gaps)))
        if found.holds or 2 * steps[worse] > most_steps:
            return found
        steps[worse] *= 2
        maps[worse] = integrated(own, models[worse], behaviour, steps[worse])


def _ends(own: Switched, example_id: str, model: nn.Module, behaviour: str) -> tuple[float, float]:
    """The behaviour on the input and on the baseline, where all of it follows the switches."""
    switches, reference = _switches(own, model)
    # With a gradient, to see whether the task computes the behaviour with one at all.
    value = own.values(model, behaviour, switches[:1].requires_grad_(), reference[:1])
    there = float(value.detach())
    if not np.isfinite(there):
        raise Refused(f"example {example_id!r} has no {behaviour}; choose another example")
    if not value.requires_grad:
        raise Refused(
            f"behaviour {behaviour!r} cannot be attributed: the task computes it without "
            "gradients; choose another behaviour, or compute it from the outputs with torch"
        )
    with torch.no_grad():
        plain = own.plain(model, behaviour)
        parts = zip(switches.split(own.rows), reference.split(own.rows), strict=True)
        nothing = torch.cat([own.values(model, behaviour, 0 * s, r) for s, r in parts])
    if abs(plain - there) > _AGREES * max(abs(plain), 1.0):
        raise Refused(
            f"behaviour {behaviour!r} of example {example_id!r} cannot be attributed: it does not "
            "follow from the model's input alone; choose another behaviour"
        )
    return there, float(nothing.double().mean())


def _switches(own: Switched, model: nn.Module) -> tuple[Tensor, Tensor]:
    """(R, P) ones, all of the input from each reference, and (R,) the references."""
    first = next(model.parameters())
    # Half precision would round neighbouring steps of the integral to the same switch.
    kind = torch.float64 if first.dtype == torch.float64 else torch.float32
    size = own.references, int(np.prod(own.shape))
    switches = torch.ones(size, dtype=kind, device=first.device)
    return switches, torch.arange(own.references, device=first.device)


def integrated(own: Switched, model: nn.Module, behaviour: str, steps: int) -> np.ndarray:
    """The integrated gradients of one model, in the shape of the input's places.

    Args:
        own: The example with its switches.
        model: Frozen, in evaluation mode.
        behaviour: What is attributed.
        steps: Of the integral from each reference; the mean over these is returned.
    """
    from captum.attr import IntegratedGradients  # brings matplotlib along

    method = IntegratedGradients(
        lambda switches, reference: own.values(model, behaviour, switches, reference)
    )
    switches, reference = _switches(own, model)
    total = torch.zeros_like(switches[0], dtype=torch.float64)
    for each, of in zip(switches.split(own.rows), reference.split(own.rows), strict=True):
        found = method.attribute(
            each,
            torch.zeros_like(each),
            additional_forward_args=(of,),
            n_steps=steps,
            internal_batch_size=max(own.rows, len(each)),
        )
        total += found.detach().double().sum(0)
    return np.asarray((total / own.references).cpu()).reshape(own.shape)
