"""Comparing configurations of checkpoints: what transformers makes of them, and what differs."""

from __future__ import annotations

import json
import re
from typing import Any

from stagelens.contracts import RunError
from stagelens.tasks.model_config import with_special_floats

from .checkpoints import Checkpoint

_BOOKKEEPING = re.compile(
    r"drop|_token_id|^initializer|^vocab_size$|^use_cache$|^pretraining_tp$|^classifier_|^summary_"
)
"""Keys of a configuration that do not change what a body with given weights computes."""

_CONTEXT = re.compile(r"^rope_|^max_position_embeddings$|^n_positions$|^n_ctx$|sliding_window$")
"""Keys that a stage may change on purpose: how, and how far, a model sees positions."""


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
    # A head of its own can hold what was shared before it; the other way there is no place for it.
    if one.get("tie_word_embeddings") and not other.get("tie_word_embeddings"):
        differing = [key for key in differing if key != "tie_word_embeddings"]
    said = [f"{key} {_short(one.get(key))} and {_short(other.get(key))}" for key in differing]
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


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def normalised(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint's configuration with every default filled in, as plain JSON.

    Raises:
        RunError: ``transformers`` does not know such a model.
    """
    # Only with the defaults are two files comparable: config.json may leave those out.
    config = with_special_floats(dict(checkpoint.config))
    kind = config.pop("model_type", None)
    try:
        import transformers

        made = transformers.AutoConfig.for_model(kind, **config)
    except Exception as error:  # a foreign configuration can make transformers raise anything
        raise RunError(
            f"{checkpoint.folder / 'config.json'}: transformers cannot make a configuration of it "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from None
    found: dict[str, Any] = json.loads(made.to_json_string(use_diff=False))
    return found


def output_names(checkpoint: Checkpoint) -> list[str]:
    """Names of a classifier's outputs, in their order: ``id2label`` as transformers reads it.

    Raises:
        RunError: Its numbers are not those of outputs.
    """
    labels = {int(number): str(name) for number, name in normalised(checkpoint)["id2label"].items()}
    if sorted(labels) != list(range(len(labels))):
        numbers = ", ".join(map(str, sorted(labels)[:8]))
        raise RunError(
            f"{checkpoint.name}: id2label in {checkpoint.folder / 'config.json'} numbers its "
            f"labels {numbers}, but a model with {len(labels)} labels has the outputs 0 to "
            f"{len(labels) - 1}; correct id2label"
        )
    return [labels[number] for number in range(len(labels))]


def _own_keys(checkpoint: Checkpoint) -> set[str]:
    """Keys that this kind of model adds to what every configuration has."""
    import transformers

    own = type(transformers.AutoConfig.for_model(checkpoint.config["model_type"]))
    return set(own().to_dict()) - set(transformers.PretrainedConfig().to_dict())
