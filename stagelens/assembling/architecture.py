"""Comparing checkpoints with the final model: which tensor is which, and what does not fit."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stagelens.contracts import RunError
from stagelens.runs.states import model_tensors, same_tensor

from .checkpoints import Checkpoint

if TYPE_CHECKING:
    from stagelens.runs.streaming import TensorFacts

_OLD_NAMES = ((".gamma", ".weight"), (".beta", ".bias"))
"""Endings of names in old checkpoints, such as the first BERT models, to those of PyTorch."""

_BOOKKEEPING = re.compile(
    r"drop|_token_id|^initializer|^vocab_size$|^use_cache$|^pretraining_tp$|^classifier_|^summary_"
)
"""Keys of a configuration that do not change what a body with given weights computes."""

_CONTEXT = re.compile(r"^rope_|^max_position_embeddings$|^n_positions$|^n_ctx$|sliding_window$")
"""Keys that a stage may change on purpose: how, and how far, a model sees positions."""


@dataclass(frozen=True)
class Architecture:
    """What the final model is made of.

    Attributes:
        shapes: Parameter or buffer to its shape; shared ones appear once.
        own_names: Every name in its state_dict, to the name in ``shapes``.
        fixed: Buffers that its state_dict lacks: the architecture determines them.
        body: What names of the body begin with, such as ``bert.``; the rest is a head. Empty if
            everything is body.
        vocabulary: Parameters that have one row per token.
        expendable: Patterns of names that may be missing from a module without harm.
        in_float32: Modules whose tensors may stay in float32 while the rest is in half precision.
        rename: What ``transformers`` calls a tensor today, by its name in an older checkpoint.
    """

    shapes: Mapping[str, tuple[int, ...]]
    own_names: Mapping[str, str]
    fixed: Mapping[str, Tensor]
    body: str
    vocabulary: frozenset[str]
    expendable: tuple[str, ...]
    in_float32: frozenset[str]
    rename: Callable[[str], str]

    @classmethod
    def of(cls, module: nn.Module) -> Architecture:
        """Describe a module of ``transformers``."""
        # keep_vars gives the tensors themselves, so that names of a tied weight meet by identity.
        kept = module.state_dict(keep_vars=True)
        own = {id(t): name for name, t in (*module.named_parameters(), *module.named_buffers())}
        tensors = model_tensors(module)
        prefix = getattr(module, "base_model_prefix", "")
        saved = {name: own[id(tensor)] for name, tensor in kept.items()}
        return cls(
            shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
            own_names=saved,
            fixed={name: t for name, t in tensors.items() if name not in saved.values()},
            body=f"{prefix}." if prefix else "",
            vocabulary=frozenset(_vocabulary(module, own)),
            expendable=tuple(getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()),
            in_float32=frozenset(
                part
                for kind in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
                for part in getattr(module, kind, None) or ()
            ),
            rename=_renaming(module),
        )

    def own_name(self, name: str) -> str | None:
        """The name in the final model of a checkpoint's tensor; None if it is not part of it.

        In a checkpoint of the body alone, names do not begin with ``bert.``.
        """
        for ending, today in _OLD_NAMES:
            name = name.removesuffix(ending) + today if name.endswith(ending) else name
        for known in (name, self.rename(name)):
            own = self.own_names.get(known) or self.own_names.get(self.body + known)
            if own is not None:
                return own
        return None

    def is_unused(self, name: str) -> bool:
        """Whether a tensor that is not part of the model can be ignored, such as a mask."""
        fixed = name in self.fixed or self.body + name in self.fixed
        return fixed or any(re.search(pattern, name) for pattern in self.expendable)


def _renaming(module: nn.Module) -> Callable[[str], str]:
    """How ``transformers`` renames the tensors of an older checkpoint of this model."""
    try:
        from transformers import PreTrainedModel
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming

        if not isinstance(module, PreTrainedModel):
            return str  # a module of one's own, which transformers renames nothing of
    except ImportError:  # before version 5, where a class has patterns of its own
        patterns = getattr(module, "_checkpoint_conversion_mapping", None) or {}
        return lambda name: reduce(lambda n, one: re.sub(one[0], one[1], n), patterns.items(), name)
    # Other conversions merge or split tensors, so a tensor of theirs has no single counterpart.
    every = get_model_conversion_mapping(module) or []
    renamings = [each for each in every if isinstance(each, WeightRenaming)]
    return lambda name: reduce(lambda n, one: one.rename_source_key(n)[0], renamings, name)


def _vocabulary(module: nn.Module, own: Mapping[int, str]) -> set[str]:
    names = set()
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        layer = getattr(module, getter, lambda: None)()
        for parameter in layer.parameters() if isinstance(layer, nn.Module) else ():
            if id(parameter) in own:
                names.add(own[id(parameter)])
    return names


@dataclass(frozen=True)
class Matched:
    """A checkpoint's state in the final model's terms.

    Attributes:
        names: The final model's name to the checkpoint's.
        rows: For tensors with fewer rows than in the final model, how many they have.
        left_out: Tensors of the checkpoint that the final model lacks, or has in another shape.
    """

    names: Mapping[str, str]
    rows: Mapping[str, int]
    left_out: list[str]


def match(checkpoint: Checkpoint, final: Architecture, *, last: bool) -> Matched:
    """Find every tensor of a checkpoint in the final model.

    Args:
        checkpoint: The checkpoint to compare.
        final: The final model.
        last: Whether this is the last checkpoint, which has to be complete.

    Raises:
        RunError: A tensor is missing or of another shape, and is not a head or vocabulary that
            changed; names it. Nothing is ever broadcast.
    """
    _check_unwrapped(checkpoint)
    names: dict[str, str] = {}
    rows: dict[str, int] = {}
    left_out = []
    for name, facts in checkpoint.tensors.items():
        own = final.own_name(name)
        if own is None:
            if not final.is_unused(name):
                left_out.append(name)
        elif own in names:  # the file holds a shared weight under both of its names
            _check_tied(checkpoint, names[own], name)
        elif _takes(checkpoint, own, name, facts, final, rows, last):
            names[own] = name
        else:
            left_out.append(name)
    _check_complete(checkpoint, names, final, last)
    _check_one_dtype(checkpoint, names, final)
    return Matched(names, rows, left_out)


_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DataParallel or DistributedDataParallel",
    "_fsdp_wrapped_module.": "FSDP",
}
"""What names begin with where a wrapper was saved instead of the model inside it."""


def _check_unwrapped(checkpoint: Checkpoint) -> None:
    for prefix, wrapper in _WRAPPERS.items():
        if any(name.startswith(prefix) for name in checkpoint.tensors):
            raise RunError(
                f"{checkpoint.name}: names of its tensors begin with {prefix!r}, as where the "
                f"wrapper of {wrapper} was saved; transformers would not load them. Save the model "
                "inside it: accelerate's unwrap_model(model).save_pretrained(DIR)"
            )


def _check_one_dtype(checkpoint: Checkpoint, names: Mapping[str, str], final: Architecture) -> None:
    """Refuse mixed precision: transformers casts such weights when it loads them.

    Raises:
        RunError: Some tensors have another dtype than most; names one.
    """
    sizes: Counter[torch.dtype] = Counter()
    for name in names.values():
        facts = checkpoint.tensors[name]
        if facts.dtype.is_floating_point:
            sizes[facts.dtype] += math.prod(facts.shape)
    wanted = sizes.most_common(1)[0][0] if sizes else torch.float32
    for own, name in names.items():
        dtype = checkpoint.tensors[name].dtype
        kept = dtype == torch.float32 and final.in_float32.intersection(own.split("."))
        if dtype.is_floating_point and dtype != wanted and not kept:
            raise RunError(
                f"{checkpoint.name}: {name} is {str(dtype).removeprefix('torch.')}, but most "
                f"weights in {checkpoint.folder} are {str(wanted).removeprefix('torch.')}; save "
                f"the model in one dtype: AutoModel.from_pretrained(DIR, dtype={wanted})"
                ".save_pretrained(OTHER) (with the class that config.json names)"
            )


def _check_tied(checkpoint: Checkpoint, one: str, other: str) -> None:
    """Two tensors that the final model shares have to hold the same values."""
    if not same_tensor(checkpoint.mapped[one], checkpoint.mapped[other]):
        raise RunError(
            f"{checkpoint.name}: {one} and {other} differ, but the final model shares them (tied "
            "weights); give checkpoints that all share them, or all do not"
        )


def _takes(
    checkpoint: Checkpoint,
    own: str,
    name: str,
    facts: TensorFacts,
    final: Architecture,
    rows: dict[str, int],
    last: bool,
) -> bool:
    """Whether a tensor is that of the final model; notes in ``rows`` if it has fewer rows."""
    shape, wanted = facts.shape, final.shapes[own]
    if shape == wanted:
        return True
    if not last and own in final.vocabulary and shape[1:] == wanted[1:]:
        if shape[0] < wanted[0]:
            rows[own] = shape[0]  # new tokens are added at the end, so old rows stay in place
            return True
        raise RunError(
            f"{checkpoint.name}: {name} has {shape[0]:,} rows, but only {wanted[0]:,} in the last "
            "checkpoint: a vocabulary that shrinks cannot be traced. Give the folders in the "
            "order of training"
        )
    if not last and not own.startswith(final.body):
        return False  # a head of other classes, which the final model lacks
    raise RunError(
        f"{checkpoint.name}: {name} has shape {shape}, but the final model's is {wanted}: this is "
        "another architecture, whose weights cannot be subtracted; give checkpoints of one model"
    )


def _check_complete(
    checkpoint: Checkpoint,
    names: Mapping[str, str],
    final: Architecture,
    last: bool,
) -> None:
    missing = [name for name in dict.fromkeys(final.own_names.values()) if name not in names]
    if last and missing:
        raise RunError(
            f"{checkpoint.name}: {checkpoint.folder} has no {missing[0]}, which its configuration "
            "asks for; give the folder of a whole model"
        )
    if not any(name.startswith(final.body) for name in names):
        found = next(iter(checkpoint.tensors), "nothing")
        raise RunError(
            f"{checkpoint.name}: none of its tensors ({found}, ...) is one of the final model's "
            f"body ({final.body}...): another architecture; give checkpoints of one model"
        )
    for name in missing:
        # A classifier has a pooler, which a masked language model with the same body lacks.
        if name.startswith(final.body) and not name.startswith(f"{final.body}pooler."):
            raise RunError(
                f"{checkpoint.name}: {checkpoint.folder} has no {name}, which the final model's "
                "body has; restore the folder, or give checkpoints of one model"
            )


def compare_configs(earlier: Checkpoint, last: Checkpoint) -> list[str]:
    """Compare two configurations.

    Returns:
        Sentences on differences that are harmless, but change what a stage effect means.

    Raises:
        RunError: They describe different architectures; names the keys and their values.
    """
    one, other = (normalised(each) for each in (earlier, last))
    if one["model_type"] != other["model_type"]:
        raise RunError(
            f"{earlier.name} is a {one['model_type']!r} model and {last.name} a "
            f"{other['model_type']!r} model; give checkpoints of one model"
        )
    # Every configuration has this key, yet it decides which tensors the model shares.
    keys = _own_keys(last) | {"tie_word_embeddings"}
    keys = {key for key in keys if not _BOOKKEEPING.search(key)}
    differing = [key for key in sorted(keys) if one.get(key) != other.get(key)]
    said = [f"{key} {one.get(key)!r} and {other.get(key)!r}" for key in differing]
    harmful = [text for key, text in zip(differing, said, strict=True) if not _CONTEXT.search(key)]
    if harmful:
        raise RunError(
            f"{earlier.name} and {last.name} have different architectures, whose weights cannot be "
            f"subtracted: {'; '.join(harmful)} (config.json); give checkpoints of one model"
        )
    return [
        f"{earlier.name} and {last.name} differ in {text} (config.json); every boundary is "
        f"measured with the configuration of {last.name}"
        for text in said
    ]


def normalised(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint's configuration with every default filled in, as plain JSON.

    Raises:
        RunError: ``transformers`` does not know such a model.
    """
    # Only with the defaults are two files comparable: config.json may leave those out.
    config = dict(checkpoint.config)
    kind = config.pop("model_type", None)
    try:
        import transformers

        made = transformers.AutoConfig.for_model(kind, **config)
    except Exception as error:  # a foreign configuration can make transformers raise anything
        raise RunError(
            f"{checkpoint.folder / 'config.json'}: transformers cannot make a configuration of it "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from None
    found: dict[str, Any] = made.to_dict()
    return found


def _own_keys(checkpoint: Checkpoint) -> set[str]:
    """Keys that this kind of model adds to what every configuration has."""
    import transformers

    own = type(transformers.AutoConfig.for_model(checkpoint.config["model_type"]))
    return set(own().to_dict()) - set(transformers.PretrainedConfig().to_dict())
