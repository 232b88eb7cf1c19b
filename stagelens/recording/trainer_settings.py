"""Settings of transformers' Trainer that a recording has to know or to refuse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from stagelens.contracts import RecordingError

if TYPE_CHECKING:
    from transformers import TrainerState, TrainingArguments


@dataclass(frozen=True)
class TrainerSettings:
    """What is declared to the recorder.

    Attributes:
        optimizer: Torch's own, without the wrapper that accelerate puts around it.
        clip_norm: Largest total norm of the gradients; None where nothing is clipped.
        accumulation: Micro-batches per update; the last update of an epoch may have fewer.
        problem: What replay does not reproduce of the settings, if anything.
    """

    optimizer: torch.optim.Optimizer
    clip_norm: float | None
    accumulation: int
    problem: RecordingError | None = None
    kernels: tuple[str, ...] = ()

    @classmethod
    def read(cls, args: TrainingArguments, state: TrainerState, optimizer: Any) -> TrainerSettings:
        """Those of a Trainer whose training begins.

        Raises:
            RecordingError: Not even the boundaries of such a training can be had; names the
                setting.
        """
        for setting, found, why in _without_boundaries(args, state):
            if found:
                raise _error(setting, why)
        refused = [
            _error(setting, why) for setting, found, why in _refused(args, optimizer) if found
        ]
        return cls(
            optimizer=getattr(optimizer, "optimizer", optimizer),
            # The Trainer does not clip where max_grad_norm is 0.
            clip_norm=args.max_grad_norm if args.max_grad_norm > 0 else None,
            accumulation=args.gradient_accumulation_steps,
            problem=next(iter(refused), None),
            kernels=tuple(name for name, used in _kernels(args) if used),
        )


_Rows = list[tuple[str, Any, str]]
"""Setting, whether it is on, and why it is refused with what to do instead."""


def _error(setting: str, why: str) -> RecordingError:
    return RecordingError(f"a Trainer with {setting} cannot be recorded: {why}")


def _without_boundaries(args: TrainingArguments, state: TrainerState) -> _Rows:
    """Settings with which no process has one model whose training goes from a start to an end."""
    return [
        ("deepspeed", args.deepspeed, "it trains partitioned weights; train without it"),
        ("fsdp", args.fsdp, "it trains partitioned weights; train without"),
        (
            "auto_find_batch_size",
            args.auto_find_batch_size,
            "it may restart training from weights that were already trained; set "
            "per_device_train_batch_size",
        ),
        (
            "a hyperparameter search",
            state.is_hyper_param_search,
            "its trials do not follow one another as stages do; record the training that uses what "
            "it found",
        ),
    ]


def _kernels(args: TrainingArguments) -> list[tuple[str, bool]]:
    """What computes passes in place of the model's own code, and whether it is on."""
    return [
        ("torch.compile", bool(args.torch_compile)),
        ("Liger kernels", bool(args.use_liger_kernel)),
    ]


def _refused(args: TrainingArguments, optimizer: Any) -> _Rows:
    """Settings that cost a stage its replay."""
    scaler = getattr(optimizer, "scaler", None)
    return [
        (
            "several devices",
            args.n_gpu > 1,
            "gradients are summed over them in an order that a replay on a single device does not "
            "have; make one device visible (CUDA_VISIBLE_DEVICES=0)",
        ),
        (
            "fp16",
            scaler is not None and scaler.is_enabled(),
            "it scales losses by factors that change during training, and skips updates; "
            "use bf16=True, or float32",
        ),
    ]
