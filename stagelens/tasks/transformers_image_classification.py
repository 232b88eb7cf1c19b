"""Image classification by models of ``transformers``: an image in, one of C classes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from torch import Tensor, nn

from stagelens.contracts import Example, Predictions, TaskError

from .classification import CLASSIFIER_BEHAVIOURS
from .image_classification import ImageClassification
from .transformer_task import Batch, TransformerTask, model_facts


class TransformersImageClassification(TransformerTask):
    """Images of one size, classified by ``AutoModelForImageClassification``, such as a ViT.

    A batch is a dictionary of the model's keyword arguments: ``pixel_values`` (B, C, H, W), scaled
    and standardised, and ``labels`` (B,).

    Args:
        classes: Class names, in the order of the model's outputs.
        model: Configuration of the model, ``model.config.to_dict()``; it is kept as plain JSON,
            and the model is made from it alone.
        image_shape: (channels, height, width) that the model takes.
        scale: Divides the pixels of integer images; float images are taken as they are.
        mean: Subtracted per channel after scaling.
        std: Divided by per channel after that.
        attention: The model's ``attn_implementation``; None for transformers' default.
        make_model: Builds a module of your own from ``model``; see :class:`ImageClassification`.

    Example:
        >>> task = TransformersImageClassification.from_model(model, processor) # doctest: +SKIP
        >>> loss = task.loss(model, {"pixel_values": pixels, "labels": labels})
    """

    name: ClassVar[str] = "transformers-image-classification"
    behaviour_kinds = CLASSIFIER_BEHAVIOURS
    input_kind: ClassVar[Literal["image", "text"]] = "image"
    _auto_class = "AutoModelForImageClassification"

    def __init__(
        self,
        classes: Sequence[str],
        model: Mapping[str, Any],
        image_shape: Sequence[int],
        scale: float = 255.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        attention: str | None = None,
        make_model: Callable[[Mapping[str, Any]], nn.Module] | None = None,
    ) -> None:
        # Images are read as those of any classifier; only the model is another.
        self._images = ImageClassification(classes, image_shape, {}, scale, mean, std)
        self.classes = self._images.classes
        self.image_shape = self._images.image_shape
        self.scale = self._images.scale
        super().__init__(
            {**model, **self._named(model)}, attention=attention, make_model=make_model
        )

    def _named(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """The keys that name the task's classes, one for each output of the model."""
        count = len(model.get("id2label") or self.classes)
        if count != len(self.classes):
            raise TaskError(
                f"the model has {count} outputs (id2label), but there are {len(self.classes)} "
                "classes; give one class name per output, in their order"
            )
        return {
            # Always set, because a model sets its own when it first computes a loss.
            "problem_type": "single_label_classification",
            "id2label": {str(number): name for number, name in enumerate(self.classes)},
            "label2id": {name: number for number, name in enumerate(self.classes)},
        }

    @classmethod
    def from_model(cls, model: Any, processor: Any) -> Self:
        """The task of a model as it is, with images as its processor makes them.

        Args:
            model: A ``transformers`` model; its classes are ``model.config.id2label``.
            processor: The model's image processor, for the size, scale, mean and deviation of
                images.

        Raises:
            TaskError: They do not say which size images have.
        """
        labels = model.config.id2label
        return cls(
            [labels[number] for number in sorted(labels)],
            **model_facts(model),
            **image_facts(model.config, processor),
        )

    @property
    def config(self) -> dict[str, Any]:
        """See :class:`~stagelens.contracts.Task`."""
        own = self._images.config
        return {
            **{name: own[name] for name in ("classes", "image_shape", "scale", "mean", "std")},
            "model": self.model,
            "attention": self.attention,
        }

    def check_input(self, value: Mapping[str, Any]) -> str | None:
        """Refuse an image of another size; see :meth:`ImageClassification.check_input`.

        Raises:
            ValueError: It has another size or number of channels than the model takes.
        """
        return self._images.check_input(value)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Examples to (B, C, H, W) images and (B,) class indices.

        Raises:
            TaskError: An image has another size or number of channels; names the example.
        """
        images, labels = self._images.collate(examples)
        return {"pixel_values": images, "labels": labels}

    def examples(self, batch: Batch) -> list[Example] | None:
        """Images with the pixels that they had before scaling; see :class:`Task`."""
        if "labels" not in batch:
            return None
        return self._images.examples((batch["pixel_values"], batch["labels"]))

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, C) logits; images are given in the model's own precision."""
        pixels = batch["pixel_values"].to(next(model.parameters()).dtype)
        logits: Tensor = model(pixel_values=pixels).logits
        return logits

    def behaviours(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Margin, loss and probability of the label; see :func:`classifier_behaviours`."""
        return self._images.behaviours(outputs, (batch["pixel_values"], batch["labels"]))

    def predictions(self, outputs: Tensor) -> Predictions:
        """The most probable class of each image."""
        return self._images.predictions(outputs)


def image_facts(config: Any, processor: Any) -> dict[str, Any]:
    """Size, scale, mean and deviation of the images that a processor makes.

    Raises:
        TaskError: Neither says how large images are.
    """
    crops = getattr(processor, "do_center_crop", False) and getattr(processor, "crop_size", None)
    size = crops or getattr(processor, "size", None) or {}
    own = getattr(config, "image_size", None)
    sides = [size[name] for name in ("height", "width") if name in size]
    if not sides:
        sides = [own, own] if isinstance(own, int) else list(own or ())
    if len(sides) != 2:
        raise TaskError(
            "neither the image processor nor the model's configuration says how large images are; "
            "make the task with image_shape=(channels, height, width)"
        )
    standard = getattr(processor, "do_normalize", False)
    factor = getattr(processor, "rescale_factor", None)
    scaled = getattr(processor, "do_rescale", True)
    return {
        "image_shape": (int(getattr(config, "num_channels", 3)), *map(int, sides)),
        "scale": round(1 / factor, 6) if scaled and factor else 255.0 if scaled else 1.0,
        "mean": list(processor.image_mean) if standard else None,
        "std": list(processor.image_std) if standard else None,
    }
