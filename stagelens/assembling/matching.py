"""Comparing checkpoints with the final model: which tensor is which, and what does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stagelens.contracts import RunError
from stagelens.runs.states import same_values

from .architecture import Architecture
from .checkpoints import Checkpoint

if TYPE_CHECKING:
    from stagelens.runs.streaming import TensorFacts

_CLASSIFIER = "ForSequenceClassification"


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
    if (untied := _untied(checkpoint, names, rows, final)) is not None:
        notes.append(
            f"{checkpoint.name}: {untied} is tied to the embeddings there, and has values of its "
            "own in the final model"
        )
    if foreign:
        notes.append(
            f"{checkpoint.name}: its head ({', '.join(foreign[:2])}) is that of a {other_head}, "
            "whose outputs are others, so left out"
        )
    _check_complete(checkpoint, names, final, last)
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
    grows = own in final.vocabulary and shape[1:] == wanted[1:] and shape[0] < wanted[0]
    if not last and grows:
        rows[own] = shape[0]  # new tokens are added at the end, so old rows stay in place
        return True
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


def _untied(
    checkpoint: Checkpoint, names: dict[str, str], rows: dict[str, int], final: Architecture
) -> str | None:
    """Give a head that a checkpoint shares with its embeddings their values; None if there is none.

    A file holds tied weights once, so nothing in it bears the head's name.
    """
    if not checkpoint.config.get("tie_word_embeddings", True):
        return None
    missing = [each for each in final.vocabulary if each not in names and each in final.shapes]
    for head in missing:
        for other in final.vocabulary & names.keys():
            if final.shapes[other] == final.shapes[head]:
                names[head] = names[other]
                if other in rows:
                    rows[head] = rows[other]
                return head
    return None


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
