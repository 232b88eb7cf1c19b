"""What the tasks share whose model has one output for each of C named classes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

from torch import nn

from stagelens.contracts import TaskError

from .text_task import TextTask
from .transformer_task import model_facts, plain_config


class NamedOutputs(TextTask):
    """Texts of which a ``transformers`` model gives a number for each of C classes.

    Args:
        classes: Class names, in the order of the model's outputs.
        model: Configuration of the model, ``model.config.to_dict()``; it is kept as plain JSON,
            and the model is made from it alone.
        tokenizer: A fast tokenizer; its files become the task's assets.
        assets: Those files, where there is no tokenizer object.
        max_length: Longer texts are cut to so many tokens; None for what model and tokenizer take.
        attention: The model's ``attn_implementation``; None for transformers' default.
        make_model: Builds a module of your own from ``model``; see :class:`ImageClassification`.
    """

    _problem: ClassVar[str | None]
    """transformers' ``problem_type``, by which a model chooses its loss; None for no choice."""

    def __init__(
        self,
        classes: Sequence[str],
        model: Mapping[str, Any],
        tokenizer: Any = None,
        assets: Mapping[str, bytes] | None = None,
        max_length: int | None = None,
        attention: str | None = None,
        make_model: Callable[[Mapping[str, Any]], nn.Module] | None = None,
    ) -> None:
        self.classes: list[str] = [str(name) for name in classes]
        self._check_classes(model)
        super().__init__(
            self._with_classes(plain_config(model)),
            tokenizer,
            assets,
            max_length,
            attention,
            make_model,
        )

    @abstractmethod
    def _check_classes(self, model: Mapping[str, Any]) -> None:
        """Refuse classes, or a model, that are not the task's.

        Raises:
            TaskError: They are not; says what to change.
        """

    def _with_classes(self, model: dict[str, Any]) -> dict[str, Any]:
        """The configuration with the task's classes, one for each of its outputs."""
        known = model.get("id2label")
        count = len(known) if known else model.pop("num_labels", len(self.classes))
        if count != len(self.classes):
            raise TaskError(
                f"the model has {count} outputs (id2label), but there are {len(self.classes)} "
                "classes; give one class name per output, in their order"
            )
        if known:
            _check_names(known, self.classes)
        return {
            **model,
            # Always set, because a model sets its own problem_type when it first computes a loss:
            # the configuration would differ before and after training.
            **({} if self._problem is None else {"problem_type": self._problem}),
            "id2label": {str(number): name for number, name in enumerate(self.classes)},
            "label2id": {name: number for number, name in enumerate(self.classes)},
        }

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any, *, max_length: int | None = None) -> Self:
        """The task of a model as it is: classes, configuration and attention are read from it.

        Args:
            model: A ``transformers`` model; its classes are ``model.config.id2label``.
            tokenizer: The model's fast tokenizer.
            max_length: Longer texts are cut to this many tokens.

        Raises:
            TaskError: Model and tokenizer do not fit each other, or the task.
        """
        labels = model.config.id2label
        return cls(
            # In the order of the model's outputs.
            [labels[number] for number in sorted(labels)],
            tokenizer=tokenizer,
            max_length=max_length,
            **model_facts(model),
        )

    @property
    def config(self) -> dict[str, Any]:
        """See :class:`~stagelens.contracts.Task`."""
        return {"classes": self.classes, **super().config}


def check_padding(model: Mapping[str, Any]) -> None:
    """Refuse a configuration with which a model cannot tell where a text in a batch ends.

    Raises:
        TaskError: It has no padding token.
    """
    # Models such as GPT-2 give their answer at a text's last token that is not padding.
    if "pad_token_id" in model and model["pad_token_id"] is None:
        raise TaskError(
            "the model has no padding token, so it cannot tell where a text in a batch ends; "
            "set model.config.pad_token_id (for GPT-2, to the tokenizer's eos_token_id)"
        )


def _check_names(id2label: Mapping[Any, str], classes: Sequence[str]) -> None:
    """Refuse names in another order than that of a model's own outputs.

    Raises:
        TaskError: The configuration's numbers are not those of outputs, or its names are others.
    """
    own = {int(number): str(name) for number, name in id2label.items()}
    if sorted(own) != list(range(len(classes))):
        raise TaskError(
            f"the model's id2label has the numbers {', '.join(map(str, sorted(own)[:8]))}, but its "
            f"{len(classes)} outputs are 0 to {len(classes) - 1}; correct model.config.id2label"
        )
    moved = next((n for n, name in own.items() if name in classes and classes[n] != name), None)
    if moved is not None:
        raise TaskError(
            f"the model names its output {moved} {own[moved]!r} (id2label), but classes[{moved}] "
            f"is {classes[moved]!r}; give the classes in the order of the model's outputs"
        )
