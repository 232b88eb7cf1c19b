"""Comparing checkpoints with the final model: which tensor is which, and what does not fit."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stagelens.contracts import RunError
from stagelens.runs.states import model_tensors, same_values

from .checkpoints import Checkpoint

if TYPE_CHECKING:
    from stagelens.runs.streaming import TensorFacts

_OLD_NAMES = ((".gamma", ".weight"), (".beta", ".bias"))
"""Endings of names in old checkpoints, such as the first BERT models, to those of PyTorch."""


_CLASSIFIER = "ForSequenceClassification"


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
        kind: The class of the module, such as ``BertForSequenceClassification``.
        rename: What ``transformers`` calls the tensors of an older checkpoint today, by their
            names there; of all at once, because some renamings depend on what else there is.
        merges: Whether ``transformers`` makes a tensor of an older name, with others, into another.
    """

    shapes: Mapping[str, tuple[int, ...]]
    own_names: Mapping[str, str]
    fixed: Mapping[str, Tensor]
    body: str
    vocabulary: frozenset[str]
    expendable: tuple[str, ...]
    in_float32: frozenset[str]
    kind: str
    rename: Callable[[Iterable[str]], Mapping[str, str]]
    merges: Callable[[str], bool]

    @classmethod
    def of(cls, module: nn.Module) -> Architecture:
        """Describe a module of ``transformers``."""
        # keep_vars gives the tensors themselves, so that names of a tied weight meet by identity.
        kept = module.state_dict(keep_vars=True)
        own = {id(t): name for name, t in (*module.named_parameters(), *module.named_buffers())}
        tensors = model_tensors(module)
        # T5 has a prefix that none of its tensors begins with.
        prefix = f"{getattr(module, 'base_model_prefix', '')}."
        saved = {name: own[id(tensor)] for name, tensor in kept.items()}
        rename, merges = _conversions(module)
        return cls(
            shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
            own_names=saved,
            fixed={name: t for name, t in tensors.items() if name not in saved.values()},
            body=prefix if any(name.startswith(prefix) for name in tensors) else "",
            vocabulary=frozenset(_vocabulary(module, own)),
            expendable=tuple(getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()),
            in_float32=frozenset(
                part
                for kind in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
                for part in getattr(module, kind, None) or ()
            ),
            kind=type(module).__name__,
            rename=rename,
            merges=merges,
        )

    def located(self, names: Iterable[str]) -> dict[str, str | None]:
        """The tensors of a checkpoint to their names in this model; None for one it lacks.

        In a checkpoint of the body alone, names do not begin with ``bert.``.
        """
        today = {name: _today(name) for name in names}
        renamed = self.rename(today.values())
        return {name: self._own(known, renamed[known]) for name, known in today.items()}

    def _own(self, *known: str) -> str | None:
        both = (name for each in known for name in (each, self.body + each))
        return next((self.own_names[name] for name in both if name in self.own_names), None)

    def is_unused(self, name: str) -> bool:
        """Whether a tensor that is not part of the model can be ignored, such as a mask."""
        fixed = name in self.fixed or self.body + name in self.fixed
        return fixed or any(re.search(pattern, name) for pattern in self.expendable)


def _today(name: str) -> str:
    for ending, today in _OLD_NAMES:
        name = name.removesuffix(ending) + today if name.endswith(ending) else name
    return name


def _conversions(
    module: nn.Module,
) -> tuple[Callable[[Iterable[str]], Mapping[str, str]], Callable[[str], bool]]:
    """How ``transformers`` renames, and which it merges, the tensors of older checkpoints."""
    try:
        from transformers import PreTrainedModel
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming

        own = isinstance(module, PreTrainedModel)
        every = (get_model_conversion_mapping(module) or []) if own else []
    except ImportError:  # before version 5, where a class has patterns of its own
        patterns = getattr(module, "_checkpoint_conversion_mapping", None) or {}
        return lambda names: {
            name: reduce(lambda n, one: re.sub(one[0], one[1], n), patterns.items(), name)
            for name in names
        }, lambda _name: False
    renamings = [each for each in every if isinstance(each, WeightRenaming)]
    # The others merge or split tensors, so a tensor of theirs has no single counterpart.
    others = [each for each in every if not isinstance(each, WeightRenaming)]

    def rename(names: Iterable[str]) -> dict[str, str]:
        # Fresh copies, sorted names: some rename only after they have seen another name first.
        own = deepcopy(renamings)
        return {
            name: reduce(lambda n, one: one.rename_source_key(n)[0], own, name)
            for name in sorted(names)
        }

    def merges(name: str) -> bool:
        return any(
            each.rename_source_key(today)[1] is not None
            for each in others
            for today in rename([name]).values()
        )

    return rename, merges


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
        notes: What people should know about it.
    """

    names: Mapping[str, str]
    rows: Mapping[str, int]
    left_out: list[str]
    notes: list[str] = field(default_factory=list)


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
    left_out: list[str] = []
    foreign: list[str] = []
    located = final.located(checkpoint.tensors)
    other_head = "" if last else _other_head(checkpoint, final)
    for name, facts in checkpoint.tensors.items():
        own = located[name]
        if own is not None and other_head and not own.startswith(final.body):
            foreign.append(name)
            continue
        if own is None:
            if not final.is_unused(name):
                left_out.append(name)
        elif own in names:  # the file holds a shared weight under both of its names
            _check_tied(checkpoint, names[own], name)
        elif _takes(checkpoint, own, name, facts, final, rows, last):
            names[own] = name
        else:
            left_out.append(name)
    notes = []
    if foreign:
        notes.append(
            f"{checkpoint.name}: its head ({', '.join(foreign[:2])}) is that of a {other_head}, "
            "whose outputs are others, so left out"
        )
    _check_complete(checkpoint, names, final, last)
    _check_one_dtype(checkpoint, names, final)
    return Matched(names, rows, left_out, notes)


def _other_head(checkpoint: Checkpoint, final: Architecture) -> str:
    """The class of a checkpoint with another head than the final classifier's; "" otherwise.

    The head of a token classifier has the names and shapes of that of a classifier of texts.
    """
    import transformers

    named = checkpoint.architecture
    known = hasattr(transformers, named) and named.startswith(final.kind.removesuffix(_CLASSIFIER))
    return named if known and named != final.kind and final.kind.endswith(_CLASSIFIER) else ""


_ADAPTED = (".base_layer.", ".lora_A.", ".lora_B.")
"""Parts of names that only a layer with an adapter has."""

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
    adapted = next((n for n in checkpoint.tensors if any(part in n for part in _ADAPTED)), None)
    if adapted is not None:
        raise RunError(
            f"{checkpoint.name}: {adapted} belongs to an adapter that was not merged; merge it, "
            "and save the model: model.merge_and_unload().save_pretrained(DIR)"
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
    if not same_values(checkpoint.mapped, one, checkpoint.mapped, other):
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
    if last and shape[1:] == wanted[1:] and not own.startswith(final.body):
        raise RunError(
            f"{checkpoint.name}: {name} has {shape[0]:,} rows, one per output, but config.json "
            f"asks for {wanted[0]:,} (id2label, num_labels or vocab_size); correct "
            f"{checkpoint.folder / 'config.json'}"
        )
    raise RunError(
        f"{checkpoint.name}: {name} has shape {shape}, but the final model's is {wanted}: this is "
        "another architecture, whose weights cannot be subtracted; give checkpoints of one model"
    )


def _check_prefix(checkpoint: Checkpoint, missing: Sequence[str]) -> None:
    """Refuse names that begin with that of whatever held the model, such as ``model.``."""
    for name in missing[:1]:
        held = next((own for own in checkpoint.tensors if own.endswith(f".{name}")), None)
        if held is not None:
            raise RunError(
                f"{checkpoint.name}: a tensor is named {held}, but transformers looks for {name}, "
                "as where the object that holds the model was saved; save the model itself, with "
                "its save_pretrained(DIR)"
            )


def _check_complete(
    checkpoint: Checkpoint,
    names: Mapping[str, str],
    final: Architecture,
    last: bool,
) -> None:
    missing = [name for name in dict.fromkeys(final.own_names.values()) if name not in names]
    merged = next(filter(final.merges, checkpoint.tensors if missing else ()), None)
    if merged is not None:
        raise RunError(
            f"{checkpoint.name}: transformers merges or splits {merged} when it loads "
            f"{checkpoint.folder}, so it has no counterpart in the model; save the model as it is "
            "in memory: save_pretrained(OTHER, save_original_format=False)"
        )
    # A classifier has a pooler, which a masked language model with the same body lacks.
    body = [
        name
        for name in missing
        if name.startswith(final.body) and not name.startswith(f"{final.body}pooler.")
    ]
    _check_prefix(checkpoint, missing if last else body)
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
    if body:
        raise RunError(
            f"{checkpoint.name}: {checkpoint.folder} has no {body[0]}, which the final model's "
            "body has; restore the folder, or give checkpoints of one model"
        )
