"""What a task does where its author did not say otherwise: arrays in, numbers or classes out."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .behaviours import Behaviour, Example, Predictions
from .errors import TaskError

if TYPE_CHECKING:
    from torch import Tensor

LOSS = Behaviour("loss", "lower", "", "What training minimised, on this example alone.")

NO_ANSWER = "no answer"
"""The answer of a model whose outputs are not finite; it is never right."""

_POINT_ZERO = re.compile(r"([+-]?\d+)\.0+")
_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def name_of(class_name: str) -> str:
    """The registered name of a class that has none: ``my-ages`` for ``MyAges``."""
    return _CAPITAL.sub("-", class_name).lower()


def config_of(task: Any) -> dict[str, Any]:
    """The arguments of a task's constructor, read from the attributes of the same names.

    Raises:
        TaskError: One is not kept under its name.
    """
    found = {}
    for name, parameter in inspect.signature(type(task)).parameters.items():
        several = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if several or not hasattr(task, name):
            raise TaskError(
                f"task {task.name!r} does not keep the argument {name!r} of its __init__ as an "
                f"attribute, so a run cannot make it again: set self.{name}, or define config"
            )
        found[name] = getattr(task, name)
    return found


def check_class(classes: Sequence[str], label: Any) -> str | None:
    """The name of a class that is given by its name, or by its index as a number or as text.

    Raises:
        ValueError: It is neither.
    """
    if label is None:
        return None
    text = str(label)
    # Names come first: a class may be called "9" and have another index.
    if text in classes:
        return text
    text = text.strip()
    if text in classes:
        return text
    # What pandas makes of whole numbers in a column with gaps: 1.0 for 1.
    whole = _POINT_ZERO.fullmatch(text)
    text = whole[1] if whole else text
    if text in classes:
        return text
    # isdecimal, since isdigit accepts characters that int refuses, such as "²".
    index = int(text) if text.isdecimal() else -1
    if 0 <= index < len(classes):
        return classes[index]
    raise ValueError(f"label {label!r} is not one of the classes {', '.join(classes[:12])}")


def check_number(label: Any) -> str | None:
    """A finite number as text, exact for a float32.

    Raises:
        ValueError: It is not one.
    """
    if label is None:
        return None
    try:
        number = float(label)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"label {label!r} is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"label {label!r} is not a finite number")
    return number_text(number)


def number_text(value: float) -> str:
    """A float32 as text from which it is read again; whole numbers without a point."""
    return f"{value:.9g}"


def collate_arrays(examples: Sequence[Example], classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Images as (B, C, H, W) float32, integers divided by 255, and their (B,) labels.

    Labels are class indices, -1 for none; without classes, numbers, NaN for none.

    Raises:
        TaskError: The examples are not images of one size.
    """
    import numpy as np
    import torch

    images = []
    for example in examples:
        image = np.asarray(example.input.get("image"))
        if image.ndim not in (2, 3):
            raise TaskError("only images are collated by themselves; define collate(examples)")
        scaled = image.astype(np.float32) / (255 if image.dtype.kind in "ui" else 1)
        images.append(np.moveaxis(scaled, 2, 0) if image.ndim == 3 else scaled[None])
        if images[-1].shape != images[0].shape:
            raise TaskError(
                f"example {example.example_id!r} is {images[-1].shape}, but others are "
                f"{images[0].shape} (channels, height, width); give images of one size"
            )
    given = [example.label for example in examples]
    if classes:
        index = {name: number for number, name in enumerate(classes)}
        labels = torch.tensor([-1 if each is None else index[each] for each in given])
    else:
        labels = torch.tensor([math.nan if each is None else float(each) for each in given])
    return torch.from_numpy(np.stack(images)), labels


def example_losses(task: Any, outputs: Any, labels: Tensor) -> Tensor:
    """(B,) losses of the examples that have a label; NaN for others.

    Raises:
        TaskError: The task's ``losses`` does not give one value per example.
    """
    import torch

    known = labels.isfinite() if labels.is_floating_point() else labels >= 0
    known = known.reshape(len(labels), -1).all(1)
    values = torch.full((len(labels),), torch.nan, dtype=torch.float64, device=labels.device)
    if known.any():
        found = task.losses(outputs[known], labels[known])
        if found.shape != (int(known.sum()),):
            raise TaskError(
                f"losses of task {task.name!r} gave the shape {tuple(found.shape)} for "
                f"{int(known.sum())} examples; return one value for each"
            )
        values = values.masked_scatter(known, found.double())
    return values


def answers_of(outputs: Any, classes: Sequence[str]) -> Predictions:
    """The most probable class of each row of logits; without classes, the number of each.

    Raises:
        TaskError: The outputs are neither.
    """
    shape = tuple(getattr(outputs, "shape", ()))
    if not shape or math.prod(shape[1:]) != max(len(classes), 1):
        raise TaskError(
            f"the model gave {type(outputs).__name__} {shape}, which is not "
            f"{f'{len(classes)} logits' if classes else 'one number'} per example; define "
            "predictions(outputs)"
        )
    rows = outputs.reshape(len(outputs), -1).double()
    if not classes:
        values = rows.flatten().tolist()
        answers = [f"{value:.4g}" if math.isfinite(value) else NO_ANSWER for value in values]
        return Predictions(answers, [math.nan] * len(values))
    confidences, best = rows.softmax(1).max(1)
    sure = confidences.tolist()
    named = zip(best.tolist(), sure, strict=True)
    return Predictions([classes[i] if math.isfinite(c) else NO_ANSWER for i, c in named], sure)
