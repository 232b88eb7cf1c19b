"""What the objectives of all trainers of TRL have in common."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import copy
from types import SimpleNamespace
from typing import Any, ClassVar

from torch import Tensor, nn

from stagelens.contracts import (
    MICRO_BATCHES,
    Objective,
    RecordingError,
    RunError,
    Task,
    imported,
)

from .bare import OneProcess, add_fused_head, as_trained, autocast_of, scalar
from .plain_head import add_plain_head

_EVERY = ("aux_loss_enabled", "router_aux_loss_coef")
"""Attributes that the losses of most trainers read: of mixtures of experts."""


class TrlObjective(Objective):
    """Computes a loss by the ``compute_loss`` of a trainer of TRL.

    The trainer is made without its ``__init__``, and given only what its loss reads: the model,
    recorded settings, and a process to compute in. So the numbers are the library's own. A version
    of TRL that computes otherwise than the recorded one shows at the first replayed step.

    Args:
        trl: The version of TRL that was recorded.
        attributes: Of the trainer, by name; plain JSON.
        arguments: Of its ``args``, by name; plain JSON.
        processes: How many trained, each on micro-batches of its own. Some losses are multiplied by
            it, because gradients are then averaged over them.

    Attributes:
        home: Where the trainer's class is, as ``module:Class``.
        methods: Of the trainer, that its loss is computed by.
        read: Names of attributes that the loss reads, in any version of TRL.
        read_arguments: Names of arguments that it reads.
        counted: Whether what the Trainer counts is an argument of ``compute_loss``.
    """

    fused: bool = True
    """Whether log-probabilities are computed by TRL's fused head."""
    home: ClassVar[str]
    methods: ClassVar[tuple[str, ...]] = ("compute_loss",)
    read: ClassVar[tuple[str, ...]] = _EVERY
    read_arguments: ClassVar[tuple[str, ...]] = ()
    counted: ClassVar[bool] = True

    def __init__(
        self,
        trl: str,
        attributes: Mapping[str, Any],
        arguments: Mapping[str, Any],
        processes: int = 1,
    ) -> None:
        self.trl, self.attributes, self.arguments = trl, dict(attributes), dict(arguments)
        self.processes = processes

    @property
    def settings(self) -> dict[str, Any]:
        own = {"trl": self.trl, "attributes": self.attributes, "arguments": self.arguments}
        return own if self.processes == 1 else {**own, "processes": self.processes}

    def plain(self) -> Objective:
        found = copy(self)
        found.fused = False
        return found

    def add_head(self, model: Any) -> None:
        """Change the model's forward method as the trainer does; by default it does not."""

    def add_log_probabilities(self, model: Any, **options: Any) -> None:
        """Add TRL's head for log-probabilities, or one that is not fused, with its options."""
        (add_fused_head if self.fused else add_plain_head)(model, **options)

    @classmethod
    def of_trainer(cls, trainer: Any) -> Objective | None:
        if not any(kind.__module__.startswith("trl.") for kind in type(trainer).__mro__):
            return None
        known = _class_at(cls.home)
        if not isinstance(trainer, known):
            return None
        cls.check(trainer, known)
        return cls(
            _version(),
            {n: v for n in (*cls.read, *_EVERY) if _plain(v := getattr(trainer, n, ...))},
            {n: v for n in cls.read_arguments if _plain(v := getattr(trainer.args, n, ...))},
            processes=trainer.accelerator.num_processes,
        )

    @classmethod
    def check(cls, trainer: Any, known: type) -> None:
        """Refuse a trainer whose loss is not the known one.

        Raises:
            RecordingError: Says what is different.
        """
        for name in cls.methods:
            if getattr(type(trainer), name, None) is not getattr(known, name, None):
                raise RecordingError(
                    f"{type(trainer).__name__} has a {name} of its own, so that its loss is not "
                    f"that of TRL's {known.__name__}, which replay knows; give the loss as an "
                    "objective of your own, StageRecorderCallback(..., objective=...)"
                )

    def loss(
        self, task: Task, model: nn.Module, batch: Any, references: Mapping[str, nn.Module]
    ) -> Tensor:
        inputs = dict(batch)  # compute_loss adds to it
        dtype = autocast_of(model)
        models = [model, *references.values()]
        trainer = self.bare(model, references)
        with as_trained(models, self.add_head, self.dropout, dtype):
            return scalar(self.compute(trainer, model, inputs))

    def compute(self, trainer: Any, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """What ``compute_loss`` returns."""
        items = inputs.pop("num_items_in_batch", None) if self.counted else None
        if (count := inputs.pop(MICRO_BATCHES, None)) is not None:
            trainer.current_gradient_accumulation_steps = int(count)
        return trainer.compute_loss(model, inputs, num_items_in_batch=items)

    @property
    def dropout(self) -> bool:
        """Whether the trainer leaves dropout on."""
        return not self.arguments.get("disable_dropout", False)

    def bare(self, model: nn.Module, references: Mapping[str, nn.Module]) -> Any:
        """A trainer with what its loss reads, and nothing else.

        Raises:
            RunError: TRL is not installed.
        """
        known = _class_at(self.home)
        device = next(model.parameters()).device
        accumulation = self.arguments.get("gradient_accumulation_steps", 1)
        trainer = object.__new__(known)
        vars(trainer).update(
            model=model,
            ref_model=next(iter(references.values()), None),
            accelerator=OneProcess(device, autocast_of(model), self.processes),
            args=SimpleNamespace(
                **{"gradient_checkpointing_kwargs": None, "max_length": None, **self.arguments},
                device=device,
                n_gpu=1,
                prediction_loss_only=False,
                report_to=[],
                use_liger_kernel=False,
            ),
            state=SimpleNamespace(global_step=0),
            _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
            _total_train_tokens=0,
            _tp_size=1,
            _is_vlm=False,
            get_tp_size=lambda: 1,
            is_deepspeed_enabled=False,
            is_fsdp_enabled=False,
            use_liger_kernel=False,
            current_gradient_accumulation_steps=accumulation,
            **self.attributes,
        )
        return trainer


def refuse(found: Sequence[tuple[str, Any, str]]) -> None:
    """Refuse the first setting that is on.

    Args:
        found: Setting, whether it is on, and why replay cannot do it with what to do instead.

    Raises:
        RecordingError: Names it.
    """
    for setting, on, why in found:
        if on:
            raise RecordingError(f"a trainer of TRL with {setting} cannot be replayed: {why}")


def _plain(value: Any) -> bool:
    """Whether a value is there, and is plain JSON."""
    if value is ...:
        return False
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


def _version() -> str:
    import trl

    return str(trl.__version__)


def _class_at(home: str) -> Any:
    name = home.rpartition(":")[2]
    return imported(
        home,
        lambda why: RunError(
            f"this stage was trained with {name} of the package trl, which cannot be imported here "
            f"({why}); install it, pip install 'stagelens[trl]'"
        ),
    )
