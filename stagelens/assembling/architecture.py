"""What the final model is made of, and what its tensors are called in files."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from stagelens.runs.states import model_tensors

from .checkpoints import Checkpoint

_OLD_NAMES = ((".gamma", ".weight"), (".beta", ".bias"))
"""Endings of names in old checkpoints, such as the first BERT models, to those of PyTorch."""


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
        converts: Whether ``transformers`` makes a tensor of a file, often with others, into another
            one when it loads it.
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
    converts: Callable[[str], bool]

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
        rename, converts = _conversions(module)
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
            converts=converts,
        )

    def located(self, names: Iterable[str]) -> dict[str, str | None]:
        """The tensors of a checkpoint to their names in this model; None for one it lacks.

        In a checkpoint of the body alone, names do not begin with ``bert.``.
        """
        # Only what is unknown: some models have a parameter that is really named beta.
        today = {name: name if self._own(name) else _today(name) for name in names}
        renamed = self.rename(today.values())
        return {name: self._own(known, renamed[known]) for name, known in today.items()}

    def _own(self, *known: str) -> str | None:
        both = (name for each in known for name in (each, self.body + each))
        return next((self.own_names[name] for name in both if name in self.own_names), None)

    def most_rows(self, checkpoint: Checkpoint) -> tuple[int, int] | None:
        """Rows of a checkpoint's vocabulary and of this one's, if it has more; None otherwise."""
        for name, own in self.located(checkpoint.tensors).items():
            if own in self.vocabulary:
                had, kept = checkpoint.tensors[name].shape, self.shapes[own]
                if had and had[1:] == kept[1:] and had[0] > kept[0]:
                    return had[0], kept[0]
        return None

    def odd_one(self, checkpoint: Checkpoint) -> str | None:
        """A tensor of another precision than most, which ``transformers`` casts at loading."""
        sizes: Counter[torch.dtype] = Counter()
        located = self.located(checkpoint.tensors)
        known = {n: t for n, t in checkpoint.tensors.items() if located[n] is not None}
        for facts in known.values():
            if facts.dtype.is_floating_point:
                sizes[facts.dtype] += math.prod(facts.shape)
        wanted = sizes.most_common(1)[0][0] if sizes else torch.float32
        for name, facts in known.items():
            parts = str(located[name]).split(".")
            kept = facts.dtype == torch.float32 and self.in_float32.intersection(parts)
            if facts.dtype.is_floating_point and facts.dtype != wanted and not kept:
                return name
        return None

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
    """How ``transformers`` renames the tensors of files, and which of them it makes into others."""
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

    def converts(name: str) -> bool:
        return any(
            each.rename_source_key(today)[1] is not None
            for each in others
            for today in rename([name]).values()
        )

    return rename, converts


def _vocabulary(module: nn.Module, own: Mapping[int, str]) -> set[str]:
    names = set()
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        try:
            layer = getattr(module, getter, lambda: None)()
        except NotImplementedError:  # as of CANINE, which reads characters without a vocabulary
            continue
        for parameter in layer.parameters() if isinstance(layer, nn.Module) else ():
            if id(parameter) in own:
                names.add(own[id(parameter)])
    return names
