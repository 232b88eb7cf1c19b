"""The ``Task`` protocol: what a model takes as input and what it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from . import task_defaults
from .behaviours import Behaviour, Example, Predictions, TokenValues
from .errors import TaskError

if TYPE_CHECKING:
    import torch
    from torch import nn

CHAT_TEMPLATE, GENERATION = "chat_template.jinja", "generation_config.json"
BESIDE = frozenset({CHAT_TEMPLATE, GENERATION})
"""Assets that no number depends on: they are for other programs that read an exported model."""


@dataclass(frozen=True)
class TaskTraits:
    """What pages ask about a task, known without importing it.

    Attributes:
        input_kind: What an example's input is.
        input_forms: The combinations of fields that make up an example, the usual one first.
        has_token_values: Whether behaviours can be given per token.
        continues_text: Whether an answer is the most probable next token, which counts as neither
            right nor wrong.
        assembled_by_name: Whether checkpoint folders can be assembled into a run of the task
            given only its name.
        typed_label: Whether the label of an example of one's own is typed: it is not one of a
            list of classes.
        several_labels: Whether a label is a list, of classes or of tags.
        has_maps: Whether an effect can be attributed to the pixels or tokens of an input.
    """

    input_kind: Literal["image", "text"]
    input_forms: tuple[tuple[str, ...], ...]
    has_token_values: bool = False
    continues_text: bool = False
    assembled_by_name: bool = False
    typed_label: bool = False
    several_labels: bool = False
    has_maps: bool = True


class Task(ABC):
    """A model's inputs and answers: the one class to write for a model of your own.

    Two methods are required, ``build_model`` and ``losses``; the rest has defaults, which suit
    images whose labels are numbers or, where ``classes`` are named, classes. A batch is then
    ``(images, labels)``, and a behaviour is the loss of each example. Whatever does not fit can be
    defined: a task with batches or losses of its own defines ``loss`` and ``behaviours`` instead
    of ``losses``.

    ``config`` must be plain JSON, because the run folder stores it beside ``name``, and
    ``type(task)(**task.config)`` has to make the same task again. A run folder never names code: a
    task is found by ``name`` among the installed ones (entry-point group ``stagelens.tasks``), or
    given by the user.

    Attributes:
        name: As registered, and as stored in run folders; by default the class's, ``my-ages`` for
            ``MyAges``.
        classes: Names of classes, in the order of the model's outputs; none where labels are
            numbers.
        behaviour_kinds: What ``behaviours`` returns, the most informative one first.
        input_kind: What an example's input is; an image by default.
        input_fields: Names in ``Example.input``; by default the kind itself.
        takes_labels: Whether behaviours are about an example's label.
        several_labels: Whether a label is a list, of classes or of tags.
        takes_words: Whether a text may be given as the list of its words, which blanks then join.
        has_token_values: Whether ``token_values`` is implemented.
        has_maps: Whether an effect can be attributed to the pixels or tokens of an input.
        image_shape: (channels, height, width) of the images that it takes; None if it takes any
            size, or no images.
    """

    name: ClassVar[str]
    classes: Sequence[str] = ()
    behaviour_kinds: ClassVar[tuple[Behaviour, ...]] = (task_defaults.LOSS,)
    input_kind: ClassVar[Literal["image", "text"]] = "image"
    input_fields: ClassVar[tuple[str, ...]] = ("image",)
    takes_labels: ClassVar[bool] = True
    several_labels: ClassVar[bool] = False
    takes_words: ClassVar[bool] = False
    has_token_values: ClassVar[bool] = False
    has_maps: ClassVar[bool] = True
    image_shape: tuple[int, ...] | None = None
    _unnamed: ClassVar[bool] = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = vars(cls)
        if "name" in own:
            cls._unnamed = False
        elif cls._unnamed:
            cls.name = task_defaults.name_of(cls.__name__)
        kind = cls.input_kind
        if "input_kind" in own and "input_fields" not in own and kind not in cls.input_fields:
            cls.input_fields = (kind,)

    @property
    def config(self) -> dict[str, Any]:
        """Keyword arguments, as plain JSON, that recreate this task.

        By default the constructor's arguments, read from the attributes of the same names.

        Raises:
            TaskError: One is not kept so.
        """
        return task_defaults.config_of(self)

    @property
    def assets(self) -> Mapping[str, bytes]:
        """Small files, by name, that the task needs to be recreated: a tokenizer, say.

        A run folder keeps them, and passes them back as the keyword ``assets`` beside ``config``.
        They are data: never code, never pickled. Two that differ in :data:`BESIDE` alone are one.
        """
        return {}

    @abstractmethod
    def build_model(self, config: Mapping[str, Any] | None = None) -> nn.Module:
        """Make the module; its weights do not matter, since recorded states are loaded into it.

        Args:
            config: A stage's own model configuration, if it differs from the task's (a head
                that appears later, say); None for the task's own.
        """

    def build_empty(self, config: Mapping[str, Any] | None = None) -> nn.Module:
        """``build_model`` for recorded states; parameters may be on the ``meta`` device."""
        return self.build_model(config)

    def stage_config(self, model: nn.Module) -> dict[str, Any] | None:
        """What ``build_model`` takes to make a stage's model, read from the model being trained.

        A ``build_config`` that the recorder was given goes on top of it.

        Returns:
            Plain JSON; None, the default, for the task's own model.
        """
        return None

    def collate(self, examples: Sequence[Example]) -> Any:
        """Make one batch of examples of an evaluation set, as ``loss`` and ``outputs`` take it.

        By default (B, C, H, W) images, of which whole numbers are divided by 255, and (B,) labels:
        class indices, -1 for none; or without ``classes`` numbers, NaN for none.

        Raises:
            TaskError: The examples cannot be put into one batch.
        """
        return task_defaults.collate_arrays(examples, self.classes)

    def evaluation_order(self, examples: Sequence[Example]) -> Sequence[int] | None:
        """The order in which examples are best measured; what is measured keeps its own.

        Examples that stand side by side share a batch, so texts of one length belong together,
        which saves padding.

        Args:
            examples: N of an evaluation set.

        Returns:
            The numbers 0 to N - 1, each once; None, the default, for the order that they have.
        """
        return None

    def losses(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """The loss of each example, (B,); training minimises its mean.

        Args:
            outputs: What the model gives for the first element of a batch, (B, ...).
            labels: Its second element, (B, ...); none of them is missing.
        """
        raise TaskError(
            f"task {self.name!r} does not say what training minimises; define losses(outputs, "
            "labels), or both loss(model, batch) and behaviours(outputs, batch)"
        )

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """The training loss of one batch, a scalar that the training loop calls backward on."""
        return self.losses(model(batch[0]), batch[1]).mean()

    def loss_terms(self, batch: Any) -> float | None:
        """How many terms a batch's loss is the mean of, for batches that processes share.

        Returns:
            None, the default: one per example. 0 if it is a sum, so that the losses of parts of
            a batch simply add up.
        """
        return None

    def behaviours(self, outputs: Any, batch: Any) -> dict[str, torch.Tensor]:
        """Values (B,) of each behaviour, by its name; NaN for an example without a label.

        By default the loss of each example.
        """
        return {task_defaults.LOSS.name: task_defaults.example_losses(self, outputs, batch[1])}

    def predictions(self, outputs: Any) -> Predictions:
        """The model's answers for a batch: by default the most probable class, or the number.

        Raises:
            TaskError: The outputs are neither logits of ``classes`` nor one number each.
        """
        return task_defaults.answers_of(outputs, self.classes)

    def outputs(self, model: nn.Module, batch: Any) -> Any:
        """Forward pass for evaluation; by default the model on the batch's first element."""
        return model(batch[0])

    def examples(self, batch: Any) -> Sequence[Example] | None:
        """The examples of a training batch, for people to look at; roughly undoes ``collate``.

        Args:
            batch: As ``loss`` takes it.

        Returns:
            B examples in the batch's order, or one for each of its ``documents``, with the input
            and the label that the model was given; their ids mean nothing. None, the default, if
            the task cannot recover them.
        """
        return None

    def row_examples(self, batch: Any) -> Sequence[int] | None:
        """The training example, counted from 0, that each row of a batch belongs to.

        A row is what the model takes along the first dimension.

        Args:
            batch: As ``loss`` takes it.

        Returns:
            None, the default: each row is an example by itself.
        """
        return None

    def documents(self, batch: Any) -> torch.Tensor | None:
        """The training example that each token of a batch belongs to, where rows hold several.

        Its loss is then that over its tokens, as labels of what comes before them.

        Args:
            batch: As ``loss`` takes it; a dictionary with ``labels`` (B, T), -100 for none.

        Returns:
            (B, T) numbers from 0 over the batch, -1 for padding; None, the default, where each row
            is at most one example.
        """
        return None

    def coupling(self, batch: Any) -> str | None:
        """How the loss of a batch compares its examples with one another.

        Args:
            batch: As ``loss`` takes it.

        Returns:
            A sentence without its end; None, the default, where the loss is a sum over examples, as
            a mean over them or over their tokens is. Only then they have contributions.
        """
        return None

    def check_label(self, label: Any) -> str | None:
        """The name used in tables for a label in a file; None if the label is missing.

        By default one of ``classes``; without them a number, or any text where ``predictions`` are
        the task's own.

        Raises:
            ValueError: The label is not one of the task's; the message lists those.
        """
        if self.classes:
            return task_defaults.check_class(self.classes, label)
        if not self.labels_are_answers:
            return task_defaults.check_number(label)
        return None if label is None else str(label)

    @property
    def labels_are_answers(self) -> bool:
        """Whether an answer that equals the label is right, and any other wrong.

        Where it is not so, as for numbers, there is no accuracy, and tables show labels as
        ``target``. So by default where there are no ``classes`` and no ``predictions`` of one's
        own.
        """
        return bool(self.classes) or type(self).predictions is not Task.predictions

    def implied_label(self, value: Mapping[str, Any]) -> str | None:
        """The label of an example that a file gives without one; None, the default, for none.

        Args:
            value: As ``Example.input`` has it.
        """
        return None

    def check_input(self, value: Mapping[str, Any]) -> str | None:
        """Check an input before it enters an evaluation set.

        Args:
            value: As ``Example.input`` has it.

        Returns:
            What a person should know about it, for instance ``"cut to 512 tokens"``; None if all
            is well.

        Raises:
            ValueError: The task cannot take it; the message continues "example 'x' ...".
        """
        return None

    def token_values(self, outputs: Any, batch: Any) -> list[TokenValues]:
        """Every text of a batch, token by token, with the model's value for each.

        The stage effect on a token is the difference of two models' values.

        Raises:
            NotImplementedError: The task has none (``has_token_values`` is False).
        """
        raise NotImplementedError(f"task {self.name!r} has no values per token")
