"""A text-classification model as a scorer: how probable one of its classes is for an answer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from stagelens.contracts import TaskError
from stagelens.contracts.scorer import Answered, Scorer

_ROWS = 64


def classifier(
    model: str,
    label: str,
    better: Literal["higher", "lower"] = "higher",
    with_prompt: bool = False,
) -> Scorer:
    """The probability of a class, by a model in a folder of this machine.

    Args:
        model: A folder that ``save_pretrained`` wrote, with its tokenizer; nothing is fetched, and
            no code of it is run.
        label: Name of one of its classes.
        better: Whether more of it is better.
        with_prompt: Whether it reads the prompt before the answer, as a pair of texts.

    Raises:
        TaskError: There is no such folder, model or class.
    """
    folder = Path(model)
    if not (folder / "config.json").is_file():
        raise TaskError(
            f"{model} has no config.json, so it is no model's folder; give one that "
            "save_pretrained wrote"
        )

    @cache
    def loaded() -> tuple[Any, Any, int]:
        return _loaded(folder, label)

    def scores(answered: Sequence[Answered]) -> list[float]:
        network, tokenizer, number = loaded()
        found: list[float] = []
        for start in range(0, len(answered), _ROWS):
            rows = answered[start : start + _ROWS]
            texts = [[one.prompt for one in rows]] if with_prompt else []
            found += _chances(network, tokenizer, [*texts, [one.answer for one in rows]], number)
        return found

    return Scorer(
        "classifier",
        None,
        better,
        description=f"Probability of {label!r}, by the classifier in {folder.name}.",
        # By content: another model in the same folder gives other numbers.
        settings={"model": _sha256(folder), "label": label, "with_prompt": with_prompt},
        score_many=scores,
    )


def _loaded(folder: Path, label: str) -> tuple[Any, Any, int]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    known: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **known)
        network = AutoModelForSequenceClassification.from_pretrained(
            folder, use_safetensors=True, **known
        )
    except Exception as error:  # whatever a foreign folder makes transformers raise
        raise TaskError(
            f"{folder} is no text classifier ({type(error).__name__}: {error}); give a folder that "
            "save_pretrained of a model for sequence classification and of its tokenizer wrote"
        ) from None
    classes = {name: int(number) for number, name in network.config.id2label.items()}
    if label not in classes:
        raise TaskError(
            f"the classifier in {folder} has no class {label!r}; it has {', '.join(classes)}"
        )
    return network.eval(), tokenizer, classes[label]


def _chances(network: Any, tokenizer: Any, texts: list[list[str]], number: int) -> list[float]:
    import torch

    batch = tokenizer(*texts, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        logits = network(**batch).logits.double()
    # Several classes at once, or a single output, have a probability each.
    alone = logits.shape[1] == 1 or network.config.problem_type == "multi_label_classification"
    chances = logits.sigmoid() if alone else logits.softmax(1)
    return [float(chance) for chance in chances[:, number]]


def _sha256(folder: Path) -> str:
    """Over everything in a model's folder that its answers depend on."""
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in (".json", ".safetensors", ".txt", ".model"):
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            whole.update(f"{path.name}\0{found}\0".encode())
    return whole.hexdigest()
