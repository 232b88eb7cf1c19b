"""The optimisers that can be recorded, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class OptimizerRule:
    """How one of torch's optimisers is recorded.

    Attributes:
        hyperparameters: Read per parameter group at every step.
        flags: Fixed for a stage; replay passes them to torch as recorded.
        state: Keys of the per-parameter state that replay restores.
        refused: Options that replay refuses when they are set, to what to do instead.
    """

    hyperparameters: tuple[str, ...]
    flags: tuple[str, ...]
    state: tuple[str, ...]
    refused: Mapping[str, str]


_REFUSED_EVERYWHERE = {
    "maximize": "negate the loss instead",
    "differentiable": "use the default, differentiable=False",
    "capturable": "use the default, capturable=False",
}

SUPPORTED_OPTIMIZERS: Mapping[str, OptimizerRule] = {
    "SGD": OptimizerRule(
        hyperparameters=("lr", "momentum", "dampening", "weight_decay", "nesterov"),
        flags=("foreach", "fused"),
        state=("momentum_buffer",),
        refused=_REFUSED_EVERYWHERE,
    ),
    "Adam": OptimizerRule(
        hyperparameters=("lr", "betas", "eps", "weight_decay"),
        flags=("foreach", "fused"),
        state=("step", "exp_avg", "exp_avg_sq"),
        refused={
            **_REFUSED_EVERYWHERE,
            "amsgrad": "use amsgrad=False",  # its running maximum is not in ``state``
            "decoupled_weight_decay": "use torch.optim.AdamW",  # AdamW's rule under Adam's name
        },
    ),
    "AdamW": OptimizerRule(
        hyperparameters=("lr", "betas", "eps", "weight_decay"),
        flags=("foreach", "fused"),
        state=("step", "exp_avg", "exp_avg_sq"),
        refused={**_REFUSED_EVERYWHERE, "amsgrad": "use amsgrad=False"},
    ),
}
"""Rules by class name in ``torch.optim``. Anything else is refused when a stage starts."""
