"""LoRA adapters in terms of a model's own names, read from the module that is trained."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from stagelens.contracts import RecordingError, TaskError
from stagelens.runs.boundary_facts import LowRank
from stagelens.tasks.adapters import active_adapters, adapter_config, is_adapted

_BASE = "base_model.model."
"""The prefix that ``peft`` gives to the names of the model that it wraps."""

Added = tuple[LowRank, str]
"""An adapter at a weight, and what ``init_lora_weights`` says of its start."""

# The classes whose merge is ``W + scaling * B A``.
_PACKED = ("peft.tuners.lora.bnb", "Linear4bit")
_VARIANTS = ("DoraLinearVariant", "DoraEmbeddingVariant", "DoraConv1dVariant", "DoraConv2dVariant")
_LAYERS = ("Linear", "Embedding", "Conv1d", "Conv2d", "Conv3d")


@dataclass(frozen=True)
class Adapter:
    """Adapters, in names of the model that carries them, without their factors.

    Attributes:
        names: Their own.
        origin: Name to the name, without the adapter, that its value came from when the adapter
            was added. A module that the adapter trains as a whole appears twice.
        left: Name without the adapter to the name here whose value it has when the adapter is
            removed.
        copies: Name of what an adapter trains as a whole to that of its original here.
        terms: Name of a weight to what merging each adapter adds to it, by the adapter's name.
        active: Names of those in use.
        inits: What ``init_lora_weights`` says of each, which a rebuilt model does not know.
    """

    names: tuple[str, ...]
    origin: Mapping[str, str]
    left: Mapping[str, str]
    copies: Mapping[str, str]
    terms: Mapping[str, Mapping[str, LowRank]]
    active: tuple[str, ...]
    inits: Mapping[str, str] = field(compare=False)

    def merging(self, names: Sequence[str]) -> dict[str, LowRank]:
        """Name of a weight to what merging these adapters adds to it, one after another."""
        merged = {}
        for weight, terms in self.terms.items():
            if here := [terms[name] for name in names if name in terms]:
                merged[weight] = here[0].model_copy(update={"then": here[1:]})
        return merged

    def added(self, names: Sequence[str]) -> dict[str, list[Added]]:
        """Name of a weight to those of these adapters that sit on it."""
        found = {
            weight: [(terms[name], self.inits[name]) for name in names if name in terms]
            for weight, terms in self.terms.items()
        }
        return {weight: here for weight, here in found.items() if here}


def read_adapter(model: nn.Module) -> Adapter | None:
    """The LoRA adapters of a model; None if it has none.

    Raises:
        RecordingError: It has adapters that cannot be recorded; says which, and what to do.
    """
    if "peft" not in sys.modules:  # then nothing can have made one
        return None
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    layers = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
    }
    if not is_adapted(model):
        if layers:
            raise RecordingError(
                f"{next(iter(layers))} carries an adapter, but the model is no PeftModel; make it "
                "one with peft.get_peft_model(model, config), and train that"
            )
        return None
    try:
        adapter_config(model)
    except TaskError as error:
        raise RecordingError(str(error)) from None
    return _read(model, layers, model.peft_config, active_adapters(model))


def _read(
    model: nn.Module, layers: Mapping[str, Any], configs: Mapping[str, Any], active: list[str]
) -> Adapter:
    from peft.tuners.lora.layer import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    adapters = tuple(configs)
    tensors: dict[str, Tensor] = {
        # With duplicates: an adapter may sit on any name of a shared tensor.
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    names: dict[int, str] = {}  # a shared tensor keeps its first name, as in states
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), name)
    without: dict[str, str] = {}  # beginning of a name to what it is without the adapter
    copies: dict[str, str] = {}  # beginning of a copy's name to that of the original's
    unused: set[str] = set()  # beginnings of copies that no active adapter trains
    low_rank: dict[str, dict[str, LowRank]] = {}
    factors: set[str | None] = set()
    for path, layer in layers.items():
        if isinstance(layer, ModulesToSaveWrapper):
            original = f"{path}.original_module."
            without[original] = f"{path}."
            for adapter in layer.modules_to_save:
                copy = f"{path}.modules_to_save.{adapter}."
                without[copy], copies[copy] = f"{path}.", original
                unused |= set() if adapter in active else {copy}
        elif isinstance(layer, LoraLayer):
            here = [adapter for adapter in adapters if adapter in layer.scaling]
            _check_layer(path, layer, here if len(adapters) == 1 else [])
            without[f"{path}.base_layer."] = f"{path}."
            terms = {adapter: _term(layer, adapter, names) for adapter in here}
            factors |= {n for term in terms.values() for n in (term.a, term.b, term.magnitude)}
            low_rank[names[id(layer.get_base_layer().weight)]] = terms
        else:
            raise RecordingError(
                f"{path} carries an adapter of kind {type(layer).__name__}, and only LoRA and "
                "modules_to_save can be recorded and replayed; use a plain peft.LoraConfig"
            )
    plain = {
        name: _exchanged(name, without).removeprefix(_BASE)
        for name in names.values()
        if name not in factors
    }
    # The original of a copy can be shared, and then has another name.
    originals = {name: names[id(tensors[_exchanged(name, copies)])] for name in plain}

    def stays(name: str) -> int:
        return 0 if originals[name] == name else 1 if name.startswith(tuple(unused)) else 2

    # A copy and its original share a plain name; the copy in use stays, so it comes last and wins.
    order = sorted(plain, key=stays)
    return Adapter(
        names=adapters,
        origin={name: plain[originals[name]] for name in plain},
        left={plain[name]: name for name in order},
        copies={name: old for name, old in originals.items() if name != old},
        terms=low_rank,
        active=tuple(active),
        inits={
            name: str(getattr(config, "init_lora_weights", True))
            for name, config in configs.items()
        },
    )


def _exchanged(name: str, beginnings: Mapping[str, str]) -> str:
    for beginning, other in beginnings.items():
        if name.startswith(beginning):
            return other + name.removeprefix(beginning)
    return name


def _term(layer: Any, adapter: str, names: Mapping[int, str]) -> LowRank:
    """What merging an adapter adds to a layer's weight."""
    a, b, transposed = _factors(layer, adapter)
    dora = layer.lora_magnitude_vector if adapter in layer.lora_variant else {}
    return LowRank(
        a=names[id(a)],
        b=names[id(b)],
        scaling=float(layer.scaling[adapter]),
        transposed=transposed,
        magnitude=names[id(dora[adapter].weight)] if adapter in dora else None,
    )


def _check_layer(path: str, layer: Any, needed: list[str]) -> None:
    """Refuse a LoRA layer whose merging is neither LoRA's nor DoRA's, or that is not in use."""
    kind = type(layer)
    where = path.removeprefix(_BASE)
    # Layers of quantised weights are classes of other modules of peft. Of 4-bit ones the adapter is
    # replayed, and merging it is told: the weights would be packed anew.
    plain = kind.__module__ == "peft.tuners.lora.layer" and kind.__name__ in _LAYERS
    if not plain and (kind.__module__, kind.__name__) != _PACKED:
        raise RecordingError(
            f"the adapter on {where} is a {kind.__module__}.{kind.__name__} (a quantised or "
            "special layer), whose merge cannot be replayed; load the base model unquantised, "
            "and target linear, embedding and convolution layers"
        )
    variants = [type(variant).__name__ for variant in layer.lora_variant.values()]
    if variant := next((name for name in variants if name not in _VARIANTS), None):
        raise RecordingError(
            f"the adapter on {where} is a {variant}, a variant of LoRA that cannot be recorded and "
            "replayed; use a plain peft.LoraConfig (with use_dora, if you like)"
        )
    off = layer.disable_adapters or any(name not in layer.active_adapters for name in needed)
    if layer.merged or off:
        raise RecordingError(
            f"the adapter on {where} is merged in place or disabled, so it is not trained; call "
            "model.unmerge_adapter() or model.enable_adapter_layers() before the stage, or "
            "model = model.merge_and_unload()"
        )


def _factors(layer: Any, adapter: str) -> tuple[Tensor, Tensor, bool]:
    """A, B, and whether the weight is (in, out)."""
    if adapter in layer.lora_embedding_A:
        return layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter], True
    a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    # GPT-2's Conv1D holds its weight as (in, out), which peft calls fan_in_fan_out.
    return a, b, bool(getattr(layer, "fan_in_fan_out", False))
