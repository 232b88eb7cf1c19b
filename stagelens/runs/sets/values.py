"""What people give as a set's inputs, ids and labels, as one plain value per example."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from PIL import Image

from stagelens.contracts import SetError, Task

from .evaluation_set import few
from .images import as_array


def checked_inputs(
    name: str, images: Any, texts: Any, inputs: Mapping[str, Any] | None
) -> tuple[Literal["image", "text"], tuple[str, ...], Any]:
    """The kind of the inputs, the names of their fields, and one value or tuple per example.

    Raises:
        SetError: Nothing or too much is given, or the parts do not fit together.
    """
    if sum(given is not None for given in (images, texts, inputs)) != 1:
        raise SetError(
            f"set {name!r} needs images or texts, or inputs of several texts; give one of them"
        )
    if inputs is not None:
        return "text", tuple(inputs), _several(name, inputs)
    kind: Literal["image", "text"] = "text" if images is None else "image"
    return kind, (kind,), _single(name, kind, texts if images is None else images)


def _several(name: str, inputs: Mapping[str, Any]) -> list[Any]:
    columns: list[list[Any]] = []
    for field_name, values in inputs.items():
        if not isinstance(field_name, str) or field_name in ("example_id", "label"):
            raise SetError(f"set {name!r}: {field_name!r} is not the name of an input; rename it")
        if isinstance(values, str | bytes):  # else its letters would be taken for the examples
            raise SetError(f"set {name!r} was given a single {field_name}; give a list of them")
        # `value != value` finds NaN of any library; NA first, as it has no truth value.
        listed = [None if value is pd.NA or value != value else value for value in values]
        if columns:
            check_length(name, len(columns[0]), field_name, len(listed))
        columns.append(listed)
    if not columns or not columns[0]:
        raise SetError(f"set {name!r} is empty; an evaluation set needs at least one example")
    return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))


def _single(name: str, kind: Literal["image", "text"], given: Any) -> Any:
    if isinstance(given, str | bytes | Path | Image.Image):
        raise SetError(f"set {name!r} was given a single {kind}; give a list")
    if kind == "image" and hasattr(given, "ndim"):
        try:
            array = as_array(given)
        except ValueError as error:
            raise SetError(f"set {name!r}: images {error}") from None
        # (H, W, C) of a single image looks like H images of W x C pixels; a tiny square does not.
        single = array.ndim == 3 and array.shape[2] in {1, 3, 4} - {array.shape[1]}
        if array.dtype != object and (array.ndim not in (3, 4) or single):
            raise SetError(
                f"set {name!r}: images have the shape {array.shape}; give (N, H, W), (N, H, W, C) "
                "or (N, C, H, W), so images[None] for a single one"
            )
        given = array
    inputs = given if isinstance(given, np.ndarray) else list(given)
    if len(inputs) == 0:
        raise SetError(f"set {name!r} is empty; an evaluation set needs at least one example")
    return inputs


def check_length(name: str, expected: int, what: str, found: int) -> None:
    """Refuse a column whose length is not that of the inputs."""
    if found != expected:
        raise SetError(
            f"set {name!r} has {expected} examples but {found} values of {what}; give one per "
            "example, in the same order"
        )


def _scalars(name: str, what: str, values: Any, count: int, several: bool = False) -> list[Any]:
    """One plain value per example; None if it is missing (None, NaN, NA or "").

    Args:
        name: Of the set.
        what: The values are.
        values: As given.
        count: Number of examples.
        several: Whether a value may be a list, which is then kept.
    """
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    check_length(name, count, what, len(listed))
    plain: list[Any] = []
    for row, value in enumerate(listed):
        if several and isinstance(value, list | tuple | np.ndarray):
            plain.append(np.asarray(value).tolist())
            continue
        value = value[0] if isinstance(value, list) and len(value) == 1 else value  # (N, 1)
        value = value.item() if hasattr(value, "item") else value
        if not pd.api.types.is_scalar(value):
            raise SetError(f"set {name!r}: row {row} of {what} is {value!r}; give one value each")
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # pandas reads integers with gaps as floats
        plain.append(None if pd.isna(value) or value == "" else value)
    return plain


def checked_ids(name: str, ids: Any, count: int) -> list[str]:
    """Ids as text; row numbers if none are given.

    Raises:
        SetError: One is missing, or appears twice.
    """
    if ids is None:
        return [str(row) for row in range(count)]
    given = _scalars(name, "ids", ids, count)
    if None in given:
        raise SetError(f"set {name!r}: row {given.index(None)} has no id; give every example one")
    texts = [str(value) for value in given]
    twice = [text for text, times in Counter(texts).items() if times > 1]
    if twice:
        raise SetError(
            f"set {name!r}: {len(twice)} ids appear more than once ({few(twice)}); ids must "
            "be unique, leave them out to use row numbers"
        )
    return texts


def checked_labels(name: str, task: Task | None, ids: list[str], labels: Any) -> list[str | None]:
    """Labels as the task names them; None for a missing one.

    Raises:
        SetError: The task does not know a label; names the example.
    """
    if labels is None:
        return [None] * len(ids)
    checked: list[str | None] = []
    refused: list[str] = []
    several = task is not None and task.several_labels
    given = _scalars(name, "labels", labels, len(ids), several)
    for key, value in zip(ids, given, strict=True):
        try:
            label = value if task is None or value is None else task.check_label(value)
            checked.append(None if label is None else str(label))
        except ValueError as error:
            refused.append(f"example {key!r}: {error}")
    if refused:
        more = f"; so have {len(refused) - 1:,} more examples" if len(refused) > 1 else ""
        raise SetError(f"set {name!r}: {refused[0]}{more}; correct the labels or leave them empty")
    return checked


def named(fields: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The inputs of one example, from :func:`checked_inputs`, by their names."""
    return dict(zip(fields, value if len(fields) > 1 else (value,), strict=True))


def with_implied_labels(
    task: Task, fields: tuple[str, ...], given: Sequence[Any], labels: list[str | None]
) -> list[str | None]:
    """Labels, with those that inputs imply where none is given.

    Args:
        task: Says what an input implies.
        fields: Names of the inputs.
        given: From :func:`checked_inputs`.
        labels: One per example.
    """
    return [
        task.implied_label(named(fields, value)) if label is None else label
        for label, value in zip(labels, given, strict=True)
    ]
