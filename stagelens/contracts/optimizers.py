"""How optimisers are recorded and made again: one rule per class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class OptimizerRule:
    """How the optimisers of one class are recorded, and made again for a replay.

    Whatever the class keeps of a parameter is recorded: tensors, numbers, and what it names here.

    Attributes:
        target: The class, as ``package.module:Class``; its package is imported when it is used.
        hyperparameters: Read per parameter group at every step, as floats; None for everything
            that the class gives its groups, as it is.
        flags: Fixed for a stage; replay passes them to the class as recorded.
        options: As ``flags``, but written down only where they are switched on.
        arguments: Further arguments of the class, to the attribute where the optimiser keeps them
            (``args.optim_bits``), or the key; those that it does not take are left out.
        refused: Options that replay refuses when they are set, to what to do instead.
        state: The keys that it can keep of a parameter; None for any.
        group_state: What a step itself changes in its parameter group, such as a count.
        mode: The entry of a group that says whether parameters hold training or evaluation weights,
            between which ``train()`` and ``eval()`` switch; empty where there is only one set.
        tensors: Class name to target of tensors of its own that it keeps.
        born_with_state: Whether it makes its state when it is made, not at the first step.
        in_lists: Whether ``foreach`` gives the same bits as steps parameter by parameter.
        formula: Whether merged steps and derivatives have a formula of their own.
        unmergeable: Why several steps cannot become one; empty where its own step, at the sum of
            their learning rates, stands for them.
        unmergeable_with: The same of hyperparameters that are set.
    """

    target: str
    hyperparameters: tuple[str, ...] | None = None
    flags: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    arguments: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    state: tuple[str, ...] | None = None
    group_state: tuple[str, ...] = ()
    mode: str = ""
    tensors: Mapping[str, str] = field(default_factory=dict)
    born_with_state: bool = False
    in_lists: bool = False
    formula: bool = False
    unmergeable: str = ""
    unmergeable_with: Mapping[str, str] = field(default_factory=dict)

    @property
    def package(self) -> str:
        """The importable package that the class comes from."""
        return self.target.partition(":")[0].partition(".")[0]


_REFUSED_EVERYWHERE = {
    "maximize": "negate the loss instead",
    "differentiable": "use the default, differentiable=False",
    "capturable": "use the default, capturable=False",
}
_MOMENTS = ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def _torch(name: str, unmergeable: str = "") -> OptimizerRule:
    return OptimizerRule(
        f"torch.optim:{name}", refused=_REFUSED_EVERYWHERE, unmergeable=unmergeable
    )


def _bitsandbytes() -> dict[str, OptimizerRule]:
    kinds = [(name, bits) for name in ("Adam", "AdamW", "Lion", "AdEMAMix") for bits in _BITS]
    names = [f"{paged}{name}{bits}" for name, bits in kinds for paged in ("", "Paged")]
    names += [f"RMSprop{bits}" for bits in _BITS]
    kept = {"min_8bit_size": "args.min_8bit_size", "is_paged": "is_paged"}
    return {
        f"bitsandbytes.{name}": OptimizerRule(
            f"bitsandbytes.optim:{name}",
            # A class that has the number of bits in its name does not take another one.
            arguments=kept if name.endswith("bit") else kept | {"optim_bits": "args.optim_bits"},
            unmergeable=_SIGNS if "Lion" in name else "",
        )
        for name in names
    }


_SIGNS = "it goes by the signs of gradients, which one large step does not average"
_BITS = ("", "8bit", "32bit")

_QUANTISED = {
    "OptimState8bit": "torchao.optim.subclass_8bit:OptimState8bit",
    "OptimState4bit": "torchao.optim.subclass_4bit:OptimState4bit",
    "OptimStateFp8": "torchao.optim.subclass_fp8:OptimStateFp8",
}


def _torchao(name: str) -> OptimizerRule:
    return OptimizerRule(
        f"torchao.optim:{name}",
        arguments={"block_size": "block_size", "bf16_stochastic_round": "bf16_stochastic_round"},
        tensors=_QUANTISED,
    )


def _schedule_free(name: str) -> OptimizerRule:
    return OptimizerRule(
        f"schedulefree:{name}",
        group_state=("k", "weight_sum", "lr_max", "scheduled_lr", "train_mode"),
        mode="train_mode",
        unmergeable="the weight of a step in its average depends on how many steps there were",
    )


_OWN_RATE = "its steps have a size of their own, which a learning rate does not scale"

SUPPORTED_OPTIMIZERS: Mapping[str, OptimizerRule] = {
    "SGD": OptimizerRule(
        "torch.optim:SGD",
        hyperparameters=("lr", "momentum", "dampening", "weight_decay", "nesterov"),
        flags=("foreach", "fused"),
        state=("momentum_buffer",),
        refused=_REFUSED_EVERYWHERE,
        in_lists=True,
        formula=True,
    ),
    "Adam": OptimizerRule(
        "torch.optim:Adam",
        hyperparameters=("lr", "betas", "eps", "weight_decay"),
        flags=("foreach", "fused"),
        options=("amsgrad", "decoupled_weight_decay"),
        state=_MOMENTS,
        refused=_REFUSED_EVERYWHERE,
        in_lists=True,
        formula=True,
    ),
    "AdamW": OptimizerRule(
        "torch.optim:AdamW",
        hyperparameters=("lr", "betas", "eps", "weight_decay"),
        flags=("foreach", "fused"),
        options=("amsgrad",),
        state=_MOMENTS,
        refused=_REFUSED_EVERYWHERE,
        in_lists=True,
        formula=True,
    ),
    "NAdam": _torch("NAdam"),
    "RAdam": _torch("RAdam"),
    "Adamax": _torch("Adamax"),
    "Adagrad": OptimizerRule(
        "torch.optim:Adagrad",
        # It fills its state with the one that it is given, whatever the groups say.
        arguments={"initial_accumulator_value": "defaults.initial_accumulator_value"},
        refused=_REFUSED_EVERYWHERE,
        born_with_state=True,
    ),
    "Adadelta": _torch("Adadelta"),
    "RMSprop": OptimizerRule(
        "torch.optim:RMSprop",
        refused=_REFUSED_EVERYWHERE,
        unmergeable_with={"momentum": "its momentum would last as many times longer"},
    ),
    "Muon": _torch("Muon"),
    "ASGD": _torch("ASGD", "its learning rate is part of its state"),
    "Rprop": _torch("Rprop", _SIGNS),
    "Adafactor": _torch("Adafactor", _OWN_RATE),
    "transformers.Adafactor": OptimizerRule("transformers:Adafactor"),
    **_bitsandbytes(),
    "lion_pytorch.Lion": OptimizerRule(
        "lion_pytorch:Lion",
        # The weight decay is divided by the learning rate that it was made with.
        arguments={"lr": "_init_lr", "decoupled_weight_decay": "decoupled_wd"},
        unmergeable=_SIGNS,
    ),
    "schedulefree.AdamWScheduleFree": _schedule_free("AdamWScheduleFree"),
    "schedulefree.SGDScheduleFree": _schedule_free("SGDScheduleFree"),
    "schedulefree.RAdamScheduleFree": _schedule_free("RAdamScheduleFree"),
    "torchao.AdamW8bit": _torchao("AdamW8bit"),
    "torchao.AdamW4bit": _torchao("AdamW4bit"),
    "torchao.AdamWFp8": _torchao("AdamWFp8"),
    "torchao.Adam8bit": _torchao("Adam8bit"),
    "torchao.Adam4bit": _torchao("Adam4bit"),
    "torchao.AdamFp8": _torchao("AdamFp8"),
}
"""Rules by registered name, those of ``torch.optim`` under the name of their class alone. Further
ones are registered, see :mod:`stagelens.contracts.optimizer_registry`."""
