"""An edit applied: the final weights minus a strength times what a stage is estimated to have done.

With theta the final weights and theta_k the counterfactual without stage k,

    edited = theta - sum over k of s_k (theta - theta_k),    0 <= s_k <= 1,

where a strength may differ from layer to layer. Variances are scaled instead, by
``(theta_k / theta) ** s_k``, so that they stay positive; integers are those of the final model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stagelens.contracts import ProgressCallback, Refused, no_progress
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.estimators.protocol import Counterfactual
from stagelens.estimators.registry import make_estimator
from stagelens.runs.run import Run
from stagelens.runs.scratch import scratch
from stagelens.runs.states import Weights
from stagelens.runs.streaming import (
    Reader,
    Streamed,
    TensorFacts,
    computed,
    facts_of,
    reader_of,
)

from .spec import Edit

_MOST_LAYERS = 48
"""Modules are put together until there are no more layers than this."""


def layers_of(names: Iterable[str]) -> dict[str, str]:
    """Tensor name to its layer: the module that holds it.

    Where there are many modules, as in a transformer, whole blocks are layers: names are cut to
    the longest common depth at which few enough remain.
    """
    modules = {name: name.rpartition(".")[0] or name for name in names}
    deepest = max((module.count(".") + 1 for module in modules.values()), default=1)
    for depth in range(deepest, 0, -1):
        cut = {name: ".".join(m.split(".")[:depth]) for name, m in modules.items()}
        if len(set(cut.values())) <= _MOST_LAYERS:
            break
    return cut


@dataclass(frozen=True)
class Material:
    """What edits are made of: the final weights, and the counterfactuals of some stages."""

    final: Weights
    without: Mapping[str, Counterfactual]

    def counterfactual(self, stage: str) -> Weights:
        """The weights without a stage."""
        weights = self.without[stage].weights
        assert weights is not None, "refused ones are no material"
        return weights


def material(
    run: Run,
    estimator: str,
    settings: Mapping[str, Any] | None,
    stages: Sequence[str],
    progress: ProgressCallback = no_progress,
    *,
    look: bool = True,
) -> Material:
    """Obtain the counterfactuals of some stages.

    Args:
        run: The run.
        estimator: Computes what is not in the run folder yet.
        settings: Of the estimator.
        stages: Their names.
        progress: Called as the work proceeds.
        look: See :func:`~stagelens.estimators.counterfactuals.counterfactuals`.

    Raises:
        Refused: The estimator can give one of them no weights; says why.
        RunError: A stage is not there.
    """
    chosen = [run.stage(name) for name in stages]
    made = make_estimator(estimator, settings)
    found = {c.stage: c for c in counterfactuals(run, made, chosen, progress, look=look)}
    for stage, counterfactual in found.items():
        if counterfactual.weights is None:
            raise Refused(f"{stage} cannot be removed: {counterfactual.trust.reason}")
    return Material(run.last.end().model, found)


class EditedWeights(Streamed):
    """The weights after an edit; a tensor is computed each time that it is asked for."""

    def __init__(self, material: Material, edit: Edit) -> None:
        self.final, self._edit = material.final, edit
        self._without = {stage: material.counterfactual(stage) for stage in edit.strengths}
        self._layers = layers_of(self.final)

    def __iter__(self) -> Iterator[str]:
        return iter(self.final)

    def __len__(self) -> int:
        return len(self.final)

    def __getitem__(self, name: str) -> Tensor:
        taken = self._taken(name)
        if not taken:
            return self.final[name]
        if (stage := _whole(taken)) is not None:
            return self._without[stage][name]
        return computed(self.facts(name), self.reader(name))

    def facts(self, name: str) -> TensorFacts:
        return facts_of(self.final, name)

    def reader(self, name: str) -> Reader:
        taken = self._taken(name)
        if taken and (stage := _whole(taken)) is not None:
            return reader_of(self._without[stage], name)
        final = reader_of(self.final, name)
        if not taken:
            return final
        sources = [self._without[stage] for stage in taken]
        readers = [reader_of(source, name) for source in sources]
        dtypes = [facts_of(source, name).dtype for source in sources]

        def read(start: int, out: Tensor) -> None:
            final(start, out)
            with scratch(len(out), *dtypes) as without:
                for own, values in zip(readers, without, strict=True):
                    own(start, values)
                parts = list(zip(without, taken.values(), strict=True))
                # In double precision, so that the result is rounded once, however many stages.
                out.copy_(subtracted(name, out.double(), parts))

        return read

    def _taken(self, name: str) -> dict[str, float]:
        """Which stages are taken out of a tensor, and how much of each."""
        # Integers, such as counts of batches, cannot be taken out in part.
        if not self.facts(name).dtype.is_floating_point:
            return {}
        strengths = {s: self._edit.strength(s, self._layers[name]) for s in self._without}
        return {stage: strength for stage, strength in strengths.items() if strength}


def _whole(taken: Mapping[str, float]) -> str | None:
    """The stage, if it is the only one and taken out as a whole.

    The result is then its counterfactual itself, without the rounding of a subtraction.
    """
    ((stage, strength), *others) = taken.items()
    return stage if strength == 1 and not others else None


def subtracted(name: str, final: Tensor, taken: Sequence[tuple[Tensor, float | Tensor]]) -> Tensor:
    """One tensor of the final model with parts of stages taken out of it.

    Args:
        name: Its name; variances are recognised by it.
        final: Its value in the final model, floating.
        taken: Per stage its value in the counterfactual, of any floating dtype, and the strength.

    Returns:
        Of the shape and dtype of ``final``; differentiable in strengths that are tensors.
    """
    edited = final
    for without, strength in taken:
        without = without.to(final.dtype)
        if name.endswith("running_var"):
            # A power of the ratio is positive at every strength; a difference may not be.
            ratio = without / final
            usable = torch.isfinite(ratio) & (ratio > 0)
            edited = edited * torch.where(usable, ratio, 1.0) ** strength
        else:
            edited = edited - strength * (final - without)
    return edited
