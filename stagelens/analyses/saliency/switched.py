"""Inputs whose places, pixels or tokens, are each switched from a baseline to what they are.

With a switch m_p from 0 to 1 at every place p, an image is x0 + m (x - x0), and a text has the
input embeddings e0 + m (e - e0). So one gradient, with respect to m, is what integrated gradients
need for images and texts alike, already summed over channels or over the embedding's dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from itertools import cycle, islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from stagelens.contracts import Example, Refused, Task
from stagelens.runs.batches import to_device
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.tasks.transformer_task import TransformerTask

from .map_table import REFERENCES

_PIXELS_NAME = "pixel_values"
"""What models of transformers call images."""
_MOST_IMAGES = 1000
"""Images of a set over which its lowest and highest value and its mean are taken."""
_PIXELS = 1 << 18
"""Pixels, over all rows, that pass through a model at once with gradients; and tokens:"""
_TOKENS = 1 << 11


class Switched(Protocol):
    """One example with a switch at every place.

    Attributes:
        shape: Of a map: (H, W) pixels or (T,) tokens; P places in all.
        tokens: (T,) printable pieces; None for an image.
        references: R, how many inputs make up the baseline.
        rows: Rows of switches that pass through a model at once.
    """

    shape: tuple[int, ...]
    tokens: tuple[str, ...] | None
    references: int
    rows: int

    def values(
        self, model: nn.Module, behaviour: str, switches: Tensor, reference: Tensor
    ) -> Tensor:
        """(B,) the behaviour with (B, P) switches; differentiable.

        Args:
            model: Frozen, in evaluation mode.
            behaviour: One of the task's.
            switches: (B, P).
            reference: (B,) which input of the baseline each row comes from.
        """
        ...

    def plain(self, model: nn.Module, behaviour: str) -> float:
        """The behaviour on the example itself."""
        ...


class _Repeated:
    """One example as a batch of any size."""

    def __init__(self, task: Task, example: Example) -> None:
        self.task, self.example = task, example
        # On the object, not the method, whose cache would outlive its examples.
        self.batch = lru_cache(maxsize=2)(self._batch)  # sizes are few: full batches, and a rest

    def _batch(self, count: int, device: torch.device) -> Any:
        return to_device(self.task.collate([self.example] * count), device)

    def plain(self, model: nn.Module, behaviour: str) -> float:
        batch = self.batch(1, next(model.parameters()).device)
        return float(self.task.behaviours(self.task.outputs(model, batch), batch)[behaviour])


class Pixels(_Repeated):
    """An image; its baseline is one or several images of the same shape."""

    shape: tuple[int, ...]
    tokens: tuple[str, ...] | None = None

    def __init__(self, task: Task, example: Example, baseline: Sequence[Example]) -> None:
        super().__init__(task, example)
        self.image = _pixels(task, task.collate([example]))
        self.ground = _pixels(task, task.collate(list(baseline)))
        self.shape = tuple(self.image.shape[-2:])
        self.references = len(self.ground)
        self.rows = max(_PIXELS // self.image.numel(), 1)

    def values(
        self, model: nn.Module, behaviour: str, switches: Tensor, reference: Tensor
    ) -> Tensor:
        """See :class:`Switched`."""
        device = switches.device
        ground = self.ground.to(device)[reference]
        each = switches.reshape(len(switches), *[1] * (self.image.ndim - 3), *self.shape)
        pixels = ground + each * (self.image.to(device) - ground)
        batch = self.batch(len(switches), device)
        # A new one, because the cached batch is used again.
        if isinstance(batch, dict):
            batch = {**batch, _PIXELS_NAME: pixels}
        else:
            batch = type(batch)((pixels, *batch[1:]))
        return self.task.behaviours(self.task.outputs(model, batch), batch)[behaviour]


def _pixels(task: Task, batch: Any) -> Tensor:
    """(B, ..., H, W) the images of a batch."""
    # Not isinstance: a named tuple is not built from a sequence, as values() would.
    images = batch[0] if type(batch) in (tuple, list) and batch else None
    if type(batch) is dict:
        images = batch.get(_PIXELS_NAME)
    if not isinstance(images, Tensor) or images.ndim < 3 or not images.is_floating_point():
        raise Refused(
            f"task {task.name!r} cannot be attributed to pixels: the first element of its batches "
            "is not a float tensor (B, ..., height, width); let its collate give (images, ...)"
        )
    return images if images.dtype == torch.float64 else images.float()


class Tokens(_Repeated):
    """A text; in its baseline all tokens are others, except those that frame the text.

    The model is given the same token ids throughout, so masks, labels and positions stay what they
    are; what its embedding layer gives for them is switched.

    Args:
        task: Reads the text.
        example: The text.
        fillers: One or several rows of token ids that fill its places; repeated where a row is
            shorter than the text.
    """

    task: TransformerTask

    def __init__(
        self, task: TransformerTask, example: Example, fillers: Sequence[Sequence[int]]
    ) -> None:
        # Places are those of one text, so of a pair the rejected text is left out.
        kept = {field: text for field, text in example.input.items() if field != "rejected"}
        super().__init__(task, replace(example, input=kept))
        rows = task.collate([self.example])["input_ids"]
        if len(rows) > 1:
            raise Refused(
                f"example {example.example_id!r} cannot be attributed to tokens, because its model "
                f"reads it {len(rows)} times, each time with another token masked; choose a text "
                "with masks"
            )
        ids = rows[0]
        special = torch.isin(ids, torch.tensor(sorted(task.special_ids)))
        self.ground = ids.repeat(len(fillers), 1)
        for row, filler in zip(self.ground, fillers, strict=True):
            row[~special] = torch.tensor(list(islice(cycle(filler), int((~special).sum()))))
        self.shape: tuple[int, ...] = (len(ids),)
        self.tokens: tuple[str, ...] | None = tuple(task.tokenizer.pieces(ids.tolist()))
        self.references = len(fillers)
        self.rows = max(_TOKENS // len(ids), 1)

    def values(
        self, model: nn.Module, behaviour: str, switches: Tensor, reference: Tensor
    ) -> Tensor:
        """See :class:`Switched`."""
        batch = self.batch(len(switches), switches.device)
        with self._embedded(model, switches, reference):
            outputs = self.task.outputs(model, batch)
        return self.task.behaviours(outputs, batch)[behaviour]

    @contextmanager
    def _embedded(self, model: nn.Module, switches: Tensor, reference: Tensor) -> Iterator[None]:
        """The model with its embeddings switched, row after row in the order of the batch."""
        fillers, seen = self.ground.to(switches.device)[reference], 0

        def switch(layer: nn.Module, inputs: tuple[Any, ...], embedded: Tensor) -> Tensor:
            nonlocal seen
            rows = slice(seen, seen := seen + len(embedded))
            # forward() alone, because calling the layer would run this hook again.
            ground: Tensor = layer.forward(fillers[rows])
            # Switches are float32 where the model is in half precision.
            return (ground + switches[rows, :, None] * (embedded - ground)).to(embedded.dtype)

        hook = self._layer(model).register_forward_hook(switch)
        try:
            yield
        finally:
            hook.remove()

    def _layer(self, model: nn.Module) -> nn.Module:
        find = getattr(model, "get_input_embeddings", None)
        layer = None if find is None else find()
        if not isinstance(layer, nn.Module):
            raise Refused(
                f"the model of task {self.task.name!r} cannot be attributed to tokens, because it "
                "has no get_input_embeddings(); let make_model give a transformers model"
            )
        return layer


class Baseline:
    """What nothing looks like, for any example of a set.

    Args:
        task: Reads inputs.
        examples: The set.
        name: One of the names in :data:`~stagelens.analyses.saliency.map_table.BASELINES`.

    Raises:
        Refused: The task is one whose inputs cannot be switched, or the set has no such baseline.
        TaskError: The tokenizer has no such token.
    """

    def __init__(self, task: Task, examples: EvaluationSet, name: str) -> None:
        self.task = task
        self.values: list[np.ndarray] = []
        self.fillers: list[list[int]] = []
        if not task.has_maps:
            raise Refused(
                f"task {task.name!r} cannot be attributed to the tokens of a text, because its "
                "models read several texts of an example"
            )
        if task.input_kind == "image":
            self.values = _images(examples, name)
        elif not isinstance(task, TransformerTask):
            raise Refused(
                f"task {task.name!r} cannot be attributed to tokens, because what it embeds is its "
                "own; derive it from stagelens.tasks.TextClassification or CausalLM"
            )
        elif name == "others":
            bodies = [_body(task, example) for example in _sample(examples, REFERENCES)]
            # The texts drawn may all be empty.
            self.fillers = [body for body in bodies if body] or [[task.filler("padding")]]
        else:
            self.fillers = [[task.filler(name)]]

    def switched(self, example: Example) -> Switched:
        """An example with switches between this baseline and itself.

        Raises:
            Refused: The task's batches do not show where the image is.
        """
        if isinstance(self.task, TransformerTask) and self.task.input_kind == "text":
            return Tokens(self.task, example, self.fillers)
        image = np.asarray(example.input["image"])
        grounds = [
            np.broadcast_to(value, image.shape).astype(image.dtype)
            for value in self.values
            # Images of another size cannot be its baseline; a single value can, at any size.
            if value.ndim == 0 or value.shape == image.shape
        ]
        if not grounds:
            raise Refused(
                f"example {example.example_id!r} has another size than the baseline; choose the "
                "baseline black or white"
            )
        inputs = [replace(example, input={**example.input, "image": each}) for each in grounds]
        return Pixels(self.task, example, inputs)


def _sample(examples: EvaluationSet, count: int) -> list[Example]:
    """Some examples of a set, drawn at random, but the same ones every time."""
    ids = examples.table([])["example_id"].to_numpy()
    drawn = np.random.default_rng(0).choice(len(ids), min(len(ids), count), replace=False)
    return examples.by_id(ids[drawn].tolist())


def _body(task: TransformerTask, example: Example) -> list[int]:
    ids: list[int] = task.collate([example])["input_ids"][0].tolist()
    return [number for number in ids if number not in task.special_ids]


def _images(examples: EvaluationSet, name: str) -> list[np.ndarray]:
    """A baseline of images by name, in the range of values of the set's files."""
    drawn = _sample(examples, REFERENCES if name == "others" else _MOST_IMAGES)
    images = [np.asarray(example.input["image"]) for example in drawn]
    if name == "others":
        return images
    if name != "mean":
        return [np.min(list(map(np.min, images))) if name == "black"
                else np.max(list(map(np.max, images)))]  # fmt: skip
    if len({image.shape for image in images}) > 1:
        raise Refused(
            f"set {examples.name!r} has no mean image, because its images differ in size; choose "
            "the baseline black or white"
        )
    mean: np.ndarray = np.mean(images, axis=0, dtype=float)
    # Casting to integers would cut the fraction off.
    return [np.round(mean) if images[0].dtype.kind in "ui" else mean]
