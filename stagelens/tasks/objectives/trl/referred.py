"""Objectives of TRL that hold the model against a reference."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from stagelens.contracts import REFERENCE, Objective, ReferenceModel, Task
from stagelens.tasks.adapters import is_adapted

from .bare import base_of
from .objective import TrlObjective


class Referred(TrlObjective):
    """Holds the model against a reference model, or against itself with its adapter off.

    Where the trainer computed the reference's log-probabilities ahead of the steps, and they are in
    the recorded batches, they are used as they are with the recorded reference, and are computed
    anew with any other, as in a counterfactual.

    Args:
        trl: See :class:`TrlObjective`.
        attributes: As there.
        arguments: As there.
        adapter_off: Whether the reference is the model itself with its adapter off.
        ahead: Digest of the reference's weights where its log-probabilities are in the batches.
        processes: As there.
    """

    def __init__(
        self,
        trl: str,
        attributes: Mapping[str, Any],
        arguments: Mapping[str, Any],
        adapter_off: bool = False,
        ahead: str | None = None,
        processes: int = 1,
    ) -> None:
        super().__init__(trl, attributes, arguments, processes)
        self.adapter_off, self.ahead = adapter_off, ahead
        self._digests: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "adapter_off": self.adapter_off, "ahead": self.ahead}

    @property
    def needed(self) -> bool:
        """Whether the loss has a reference at all."""
        return True

    @property
    def in_batches(self) -> bool:
        """Whether the reference's log-probabilities are in the batches."""
        return bool(self.attributes.get("precompute_ref_logps"))

    @property
    def references(self) -> tuple[str, ...]:
        return (REFERENCE,) if self.needed else ()

    def plain(self) -> Objective:
        found: Any = super().plain()
        # Always computed anew, since a derivative follows what the reference is computed from.
        found.ahead = None if self.ahead is None else ""
        return found

    @classmethod
    def of_trainer(cls, trainer: Any) -> Objective | None:
        found = super().of_trainer(trainer)
        if not isinstance(found, Referred):
            return found
        model = trainer.accelerator.unwrap_model(trainer.model)
        found.adapter_off = trainer.ref_model is None and is_adapted(model)
        if found.needed and found.in_batches:
            found.ahead = _digest_of_reference(trainer, model)
        return found

    def reference_models(self, trainer: Any) -> Mapping[str, ReferenceModel]:
        if self.adapter_off:
            return {REFERENCE: ReferenceModel(adapter_off=True)}
        if trainer.ref_model is None:  # it was the start of the stage, and is let go of
            return {}
        args, synced = trainer.args, getattr(trainer.args, "sync_ref_model", False)
        return {
            REFERENCE: ReferenceModel(
                trainer.accelerator.unwrap_model(trainer.ref_model),
                sync_every=args.ref_model_sync_steps if synced else None,
                sync_mixing=args.ref_model_mixup_alpha if synced else 1.0,
            )
        }

    def loss(
        self, task: Task, model: nn.Module, batch: Any, references: Mapping[str, nn.Module]
    ) -> Tensor:
        # The trainer switches the adapter off itself.
        return super().loss(task, model, batch, {} if self.adapter_off else references)

    def compute(self, trainer: Any, model: nn.Module, inputs: dict[str, Any]) -> Any:
        if self.ahead is not None:
            reference = model if trainer.ref_model is None else trainer.ref_model
            if reference not in self._digests:  # no step moves it
                self._digests[reference] = _digest_of_reference(trainer, model)
            if self._digests[reference] != self.ahead:
                inputs |= self.log_probabilities(trainer, reference, inputs)
        return super().compute(trainer, model, inputs)

    @abstractmethod
    def log_probabilities(
        self, trainer: Any, reference: nn.Module, inputs: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Those of the reference, (B,) or (B, T), as they are named in a batch."""


def _digest_of_reference(trainer: Any, model: nn.Module) -> str:
    """A digest of the weights that a trainer's reference log-probabilities are computed with."""
    if trainer.ref_model is not None:
        return digest_of(trainer.accelerator.unwrap_model(trainer.ref_model))
    # TRL copies an adapter that it goes on training to this name; another one is switched off.
    return digest_of(model, adapters=("ref",))


def digest_of(model: nn.Module, adapters: Collection[str] | None = None) -> str:
    """A digest of a model's weights.

    Args:
        model: With adapters or without.
        adapters: Names of those that count; None for all.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(base_of(model).named_parameters()):
        left_out = adapters is not None and not set(adapters) & set(name.split("."))
        if ".lora_" not in name or not left_out:
            own = weight.detach().cpu().contiguous()
            digest.update(f"{name.replace('.base_layer.', '.')} {own.dtype} {own.shape}".encode())
            digest.update(own.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
