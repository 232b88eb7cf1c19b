"""Image classification: images in, one of C classes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from stagelens.contracts import Example, Predictions, Task, TaskError

from .classification import (
    CLASSIFIER_BEHAVIOURS,
    NO_LABEL,
    class_names,
    classifier_behaviours,
    classifier_predictions,
)

_LARGE = 16
"""Floats beyond it are hardly scaled or standardised pixels, so that people should know of them."""


class ImageClassification(Task):
    """Images of one size, classified; a batch is ``(images, labels)``.

    Args:
        classes: Class names, in the order of the model's outputs.
        image_shape: (channels, height, width) that the model takes.
        model: Configuration of the module. Built in are ``{"kind": "cnn", "channels": [16, 32],
            "strides": [1, 2], "hidden": 64, "dropout": 0.0, "batch_norm": False}`` and
            ``{"kind": "mlp", "hidden": [128, 64], "dropout": 0.0}``. With ``make_model`` it is
            whatever that takes.
        scale: Divides the pixels of integer images; float images are taken as they are.
        mean: Subtracted per channel after scaling.
        std: Divided by per channel after that.
        make_model: Builds a module of your own from ``model``. It is code, so no run folder can
            name it: give the task again when you open the run, ``open_run(path, task=task)``.

    Example:
        >>> task = ImageClassification(classes=["cat", "dog"], image_shape=(1, 8, 8))
        >>> images = torch.zeros(3, 1, 8, 8)
        >>> task.loss(task.build_model(), (images, torch.tensor([0, 1, 1]))).shape
        torch.Size([])
    """

    name: ClassVar[str] = "image-classification"
    behaviour_kinds = CLASSIFIER_BEHAVIOURS
    input_kind: ClassVar[Literal["image", "text"]] = "image"
    image_shape: tuple[int, ...]

    def __init__(
        self,
        classes: Sequence[str],
        image_shape: Sequence[int],
        model: Mapping[str, Any] | None = None,
        scale: float = 255.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        make_model: Callable[[Mapping[str, Any]], nn.Module] | None = None,
    ) -> None:
        self.classes = [str(name) for name in classes]
        if len(set(self.classes)) != len(self.classes) or not self.classes:
            raise TaskError(
                "classes must be distinct names, at least one; rename the repeated ones"
            )
        if len(image_shape) != 3 or not all(int(size) > 0 for size in image_shape):
            raise TaskError(f"image_shape is {image_shape}; give (channels, height, width)")
        self.image_shape = tuple(int(size) for size in image_shape)
        self.model = dict(model) if model is not None else {"kind": "own" if make_model else "cnn"}
        self.scale = float(scale)
        self.mean = list(mean) if mean is not None else None
        self.std = list(std) if std is not None else None
        self.make_model = make_model

    @property
    def config(self) -> dict[str, Any]:
        """See :class:`~stagelens.contracts.Task`."""
        return {
            "classes": self.classes,
            "image_shape": list(self.image_shape),
            "model": self.model,
            "scale": self.scale,
            "mean": self.mean,
            "std": self.std,
        }

    def build_model(self, config: Mapping[str, Any] | None = None) -> nn.Module:
        """The module of ``config``, by default of the task's own ``model``.

        Raises:
            TaskError: The configuration is of no built-in kind and there is no ``make_model``.
        """
        config = self.model if config is None else config
        if self.make_model is not None:
            return self.make_model(config)
        builder = _BUILDERS.get(str(config.get("kind")))
        if builder is None:
            raise TaskError(
                "this run's model is built by code of your own; give it again: "
                "open_run(path, task=ImageClassification(..., make_model=your_function)), or "
                "--task package.module:Class for a class that derives from ImageClassification"
            )
        options = {key: value for key, value in config.items() if key != "kind"}
        try:
            return builder(self.image_shape, len(self.classes), **options)
        except TypeError as error:
            raise TaskError(f"model configuration {dict(config)}: {error}") from None

    def check_input(self, value: Mapping[str, Any]) -> str | None:
        """Refuse an image of another size, or of more bits than the task scales.

        Returns:
            A note on an image that is partly transparent, where the task takes no alpha, or of
            floats that look like whole numbers up to 255.

        Raises:
            ValueError: It has another size or number of channels than the task takes, or more
                than 8 bits and values above the task's ``scale``.
        """
        image = np.asarray(value["image"])
        self._pixels(image)
        # Of 8 bits, white is 255 whatever the task divides by.
        wide = image.dtype.kind in "ui" and image.dtype.itemsize > 1
        if wide and (highest := int(image.max())) > max(self.scale, 255):
            bits = 8 * image.dtype.itemsize
            raise ValueError(
                f"has {bits}-bit values up to {highest:,}, but the task divides whole numbers by "
                f"{self.scale:g} (its scale); convert the images to 8 bits, or make the task with "
                "the scale that training used"
            )
        if self._drops_alpha(image) and (image[:, :, 3] < 255).any():
            return "partly transparent, of which only the colours are read"
        if image.dtype.kind == "f" and np.abs(image).max() > _LARGE:
            return f"with floats beyond {_LARGE}, which are not divided by the scale"
        return None

    def _drops_alpha(self, image: np.ndarray) -> bool:
        """Whether this is the RGBA of a file, for a task without transparency."""
        rgba = image.ndim == 3 and image.shape[2] == 4 and image.dtype == np.uint8
        return rgba and self.image_shape[0] in (1, 3)

    def collate(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Examples to (B, C, H, W) images and (B,) class indices.

        Raises:
            TaskError: An image has another size or number of channels; names the example.
        """
        images = []
        for example in examples:
            try:
                images.append(self._pixels(example.input["image"]))
            except ValueError as error:
                raise TaskError(f"example {example.example_id!r} {error}") from None
        index = {name: number for number, name in enumerate(self.classes)}
        labels = [NO_LABEL if e.label is None else index[e.label] for e in examples]
        return torch.from_numpy(np.stack(images)), torch.tensor(labels, dtype=torch.int64)

    def _pixels(self, image: Any) -> np.ndarray:
        image = np.asarray(image)
        if image.ndim == 2:
            image = image[:, :, None]
        channels = self.image_shape[0]
        if self._drops_alpha(image):
            image = image[:, :, :3]  # as convert("RGB") does, with which most pipelines read files
        # Many files hold grey images as RGB; equal channels can be dropped without loss.
        if channels == 1 and image.shape[2] == 3 and (image == image[:, :, :1]).all():
            image = image[:, :, :1]
        if channels == 3 and image.shape[2] == 1:
            image = np.repeat(image, 3, axis=2)
        pixels = np.moveaxis(image, 2, 0)
        if pixels.shape != self.image_shape:
            advice = f"give images of {channels} channel{'s' * (channels > 1)}"
            if pixels.shape[1:] != self.image_shape[1:]:
                advice = "resize the images first"
            raise ValueError(
                f"is {pixels.shape[0]} x {pixels.shape[1]} x "
                f"{pixels.shape[2]} (channels, height, width), but the task takes "
                f"{' x '.join(map(str, self.image_shape))}; {advice}"
            )
        scaled = pixels.astype(np.float32)
        if np.issubdtype(image.dtype, np.integer):
            scaled = scaled / np.float32(self.scale)
        # In float32, because lists become float64 arrays, and would make float64 of the images.
        if self.mean is not None:
            scaled = scaled - np.asarray(self.mean, np.float32)[:, None, None]
        if self.std is not None:
            scaled = scaled / np.asarray(self.std, np.float32)[:, None, None]
        return scaled

    def examples(self, batch: tuple[Tensor, Tensor]) -> list[Example] | None:
        """Images with the pixels that they had before scaling; see :class:`Task`."""
        images, labels = batch
        if images.ndim != 4:
            return None
        pixels = images.detach().cpu().double().numpy()
        if self.std is not None:
            pixels = pixels * np.asarray(self.std)[:, None, None]
        if self.mean is not None:
            pixels = pixels + np.asarray(self.mean)[:, None, None]
        # Images of 8 bits come back exactly: in float32 they are off by far less than
        # the tolerance. Float images were never scaled.
        whole = np.round(pixels * self.scale)
        if (
            np.abs(pixels * self.scale - whole).max(initial=0) < 1e-3
            and 0 <= whole.min(initial=0) <= whole.max(initial=0) <= 255
        ):
            pixels = whole.astype(np.uint8)
        pixels = np.moveaxis(pixels, 1, 3)
        shown = pixels[..., 0] if pixels.shape[3] == 1 else pixels
        names = class_names(self.classes, labels)
        return [
            Example(str(number), {"image": image}, name)
            for number, (image, name) in enumerate(zip(shown, names, strict=True))
        ]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy of the batch."""
        images, labels = batch
        return nn.functional.cross_entropy(model(images), labels)

    def outputs(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """(B, C) logits; images are given in the model's own precision."""
        parameter = next(model.parameters(), None)
        images = batch[0] if parameter is None else batch[0].to(parameter.dtype)
        logits: Tensor = model(images)
        return logits

    def behaviours(self, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Margin, loss and probability of the label; see :func:`classifier_behaviours`."""
        return classifier_behaviours(outputs, batch[1])

    def predictions(self, outputs: Tensor) -> Predictions:
        """The most probable class of each example."""
        return classifier_predictions(outputs, self.classes)


def _cnn(
    image_shape: tuple[int, int, int],
    classes: int,
    channels: Sequence[int] = (16, 32),
    strides: Sequence[int] = (1, 2),
    hidden: int = 64,
    dropout: float = 0.0,
    batch_norm: bool = False,
) -> nn.Module:
    layers: list[nn.Module] = []
    before, height, width = image_shape
    if len(channels) != len(strides):
        raise TaskError(
            f"{len(channels)} channels but {len(strides)} strides; give one stride per convolution"
        )
    for after, stride in zip(channels, strides, strict=True):
        layers.append(nn.Conv2d(before, after, 3, stride=stride, padding=1))
        # A 3 x 3 convolution with padding 1 leaves ceil(size / stride).
        height, width = -(-height // stride), -(-width // stride)
        if batch_norm:
            layers.append(nn.BatchNorm2d(after))
        layers.append(nn.GELU())
        before = after
    layers += [nn.Flatten(), nn.Linear(before * height * width, hidden), nn.GELU()]
    if dropout:
        layers.append(nn.Dropout(dropout))
    layers.append(nn.Linear(hidden, classes))
    return nn.Sequential(*layers)


def _mlp(
    image_shape: tuple[int, int, int],
    classes: int,
    hidden: Sequence[int] = (128, 64),
    dropout: float = 0.0,
) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    before = image_shape[0] * image_shape[1] * image_shape[2]
    for after in hidden:
        layers += [nn.Linear(before, after), nn.GELU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        before = after
    layers.append(nn.Linear(before, classes))
    return nn.Sequential(*layers)


_BUILDERS: Mapping[str, Callable[..., nn.Module]] = {"cnn": _cnn, "mlp": _mlp}
