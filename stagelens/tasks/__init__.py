"""What models take as input and what they answer. Tasks are found by their registered name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from stagelens.contracts import Task, TaskError, imported

from .built_in import BUILT_IN, traits

if TYPE_CHECKING:
    from stagelens.tasks.adapters import adapter_config, with_adapter
    from stagelens.tasks.causal_lm import CausalLM
    from stagelens.tasks.image_classification import ImageClassification
    from stagelens.tasks.masked_lm import MaskedLM
    from stagelens.tasks.multi_label_classification import MultiLabelClassification
    from stagelens.tasks.regression import Regression
    from stagelens.tasks.reward_model import RewardModel
    from stagelens.tasks.sentence_embeddings import SentenceEmbeddings
    from stagelens.tasks.seq2seq import Seq2Seq
    from stagelens.tasks.text_classification import TextClassification
    from stagelens.tasks.token_classification import TokenClassification
    from stagelens.tasks.transformers_image_classification import TransformersImageClassification

__all__ = [
    "CausalLM",
    "ImageClassification",
    "MaskedLM",
    "MultiLabelClassification",
    "Regression",
    "RewardModel",
    "SentenceEmbeddings",
    "Seq2Seq",
    "TextClassification",
    "TokenClassification",
    "TransformersImageClassification",
    "adapter_config",
    "find_task",
    "is_installed_class",
    "load_task_class",
    "make_task",
    "traits",
    "why_missing",
    "with_adapter",
]

# Repeated here, since importing the module that builds them loads torch.
IMAGE_MODELS = ("cnn", "mlp")
"""Kinds of models that image classification builds itself."""

_HOMES = {
    "CausalLM": "causal_lm",
    "ImageClassification": "image_classification",
    "Regression": "regression",
    "RewardModel": "reward_model",
    "TextClassification": "text_classification",
    "MaskedLM": "masked_lm",
    "MultiLabelClassification": "multi_label_classification",
    "SentenceEmbeddings": "sentence_embeddings",
    "Seq2Seq": "seq2seq",
    "TokenClassification": "token_classification",
    "TransformersImageClassification": "transformers_image_classification",
    "adapter_config": "adapters",
    "with_adapter": "adapters",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_task_class(target: str) -> type[Task]:
    """The task class that a user names as ``package.module:Class``.

    Raises:
        TaskError: It cannot be imported, or is no task.
    """
    found = imported(
        target,
        lambda why: TaskError(
            f"task {target!r} cannot be imported ({why}); give it as package.module:Class, "
            "with its package on the Python path"
        ),
    )
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise TaskError(f"{target!r} is not a stagelens.Task; derive the class from stagelens.Task")
    return found


def make_task(
    task_class: type[Task], config: Mapping[str, Any], assets: Mapping[str, bytes]
) -> Task:
    """Recreate the task of a run from what the run folder keeps of it.

    Args:
        task_class: From :func:`load_task_class`, or found by its registered name.
        config: As recorded.
        assets: As recorded; passed as the keyword ``assets`` if there are any.

    Raises:
        TaskError: The class does not accept them.
    """
    try:
        # A task that has no assets need not accept the keyword.
        return task_class(**config, **({"assets": assets} if assets else {}))
    except (TypeError, ValueError) as error:
        where = f"{task_class.__module__}:{task_class.__qualname__}"
        raise TaskError(
            f"task {where} does not accept the recorded config ({error}); open the run with the "
            "task, and the version of it, that the run was recorded with"
        ) from None


def why_missing(name: str, config: Mapping[str, Any]) -> str | None:
    """Why what is installed here cannot build a run's models; imports none of it.

    Args:
        name: The run's task, as registered.
        config: As recorded.

    Returns:
        Words that continue "its task ..."; None if nothing is known to be missing.
    """
    if name not in BUILT_IN and not _registered(name):
        return f"{name!r} is not installed here"
    kind = (config.get("model") or {}).get("kind")
    if name == "image-classification" and kind not in IMAGE_MODELS:
        return f"{name!r} was given a model of the user's own, which is code that no run keeps"
    return None


def is_installed_class(kind: type, name: str) -> bool:
    """Whether a class is what :func:`find_task` makes tasks of a registered name from."""
    if name in BUILT_IN:
        return BUILT_IN[name].target == f"{kind.__module__}:{kind.__qualname__}"
    with suppress(TaskError):  # what is registered need not be there
        return any(load_task_class(entry.value) is kind for entry in _registered(name)[:1])
    return False


def _registered(name: str) -> list[EntryPoint]:
    return [entry for entry in entry_points(group="stagelens.tasks") if entry.name == name]


def find_task(
    name: str, config: Mapping[str, Any], assets: Mapping[str, bytes] | None = None
) -> Task:
    """Make the installed task of a registered name.

    Built-in tasks come first; others are found through the entry-point group
    ``stagelens.tasks``. Only installed packages can register there: nothing that a run
    folder names is imported.

    Args:
        name: As registered.
        config: As recorded.
        assets: As recorded; None for none.

    Raises:
        TaskError: No installed task has this name, or it does not accept the config.
    """
    if name in BUILT_IN:
        task_class = load_task_class(BUILT_IN[name].target)
    else:
        found = _registered(name)
        if not found:
            raise TaskError(
                f"task {name!r} is not installed, so models of this run cannot be built; install "
                "the package that registers it, or give it: open_run(path, task=...) or "
                "--task package.module:Class. Stored results can be read without it"
            )
        task_class = load_task_class(found[0].value)
    return make_task(task_class, config, assets or {})
