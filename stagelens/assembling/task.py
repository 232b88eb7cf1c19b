"""The task of a checkpoint, from its configuration, and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stagelens.compute.bounded import no_panic
from stagelens.compute.memory import amount
from stagelens.contracts import Task, TaskError
from stagelens.tasks import CausalLM, TextClassification, load_task_class
from stagelens.tasks.tokenizer import tokenizer_assets
from stagelens.tasks.transformer_task import TransformerTask

from .checkpoints import TOKENIZER_FILES, Checkpoint
from .configs import normalised, output_names

_BY_NAME: Mapping[str, type[TransformerTask]] = {
    TextClassification.name: TextClassification,
    CausalLM.name: CausalLM,
}
_LARGEST_TOKENIZER = 256 * 10**6
_MAPPINGS = (
    ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES", TextClassification),
    ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", CausalLM),
)


def task_of(checkpoints: Sequence[Checkpoint], task: Task | str | None) -> Task:
    """The task of the last of these checkpoints.

    Args:
        checkpoints: In the order of training.
        task: A task, its name, or ``package.module:Class``; None to find it.

    Raises:
        TaskError: There is none for this architecture, or it cannot be made from a checkpoint.
    """
    if isinstance(task, Task):
        return task
    last = checkpoints[-1]
    if task is None:
        made: type[Task] = _by_architecture(last)
    else:
        made = _BY_NAME[task] if task in _BY_NAME else load_task_class(task)
    if not issubclass(made, TransformerTask):
        raise TaskError(
            f"{task} cannot be made from a checkpoint folder; derive it from TextClassification "
            "or CausalLM, or make it in Python: stagelens.assemble(..., task=YourTask(...))"
        )
    # As the weights are, whatever config.json says: a cast would change them.
    model = {**normalised(last), "dtype": last.precision}
    assets = _assets(checkpoints)
    if not issubclass(made, TextClassification):
        return made(model, assets=assets)
    return made(output_names(last), model, assets=assets)


def _by_architecture(checkpoint: Checkpoint) -> type[TransformerTask]:
    from transformers.models.auto import modeling_auto

    kind, architecture = checkpoint.config.get("model_type"), checkpoint.architecture
    for mapping, task in _MAPPINGS:
        if architecture and getattr(modeling_auto, mapping).get(kind) == architecture:
            return task
    raise TaskError(
        f"{checkpoint.name}: config.json names the architecture {architecture or None!r}, for "
        "which there is no task; give the folder of a ...ForSequenceClassification or "
        "...ForCausalLM model as the last one, or name the task (--task)"
    )


def find_tokenizer(checkpoints: Sequence[Checkpoint]) -> list[Path]:
    """The tokenizer's files in the last checkpoint that has them; empty if none has."""
    found = (checkpoint.tokenizer_files() for checkpoint in reversed(checkpoints))
    return next(filter(None, found), [])


def _assets(checkpoints: Sequence[Checkpoint]) -> dict[str, bytes]:
    files = find_tokenizer(checkpoints)
    if not files:
        raise TaskError(
            "none of the folders has a tokenizer (tokenizer.json); save it into the last one: "
            "tokenizer.save_pretrained(DIR)"
        )
    return assets_in(files[0].parent)


def assets_in(folder: Path) -> dict[str, bytes]:
    """The tokenizer in a folder as a run keeps it.

    Raises:
        TaskError: It cannot be made.
    """
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if (size := sum(file.stat().st_size for file in files)) > _LARGEST_TOKENIZER:
        raise TaskError(
            f"the tokenizer in {folder} takes {amount(size)}, and at most "
            f"{amount(_LARGEST_TOKENIZER)} are read; give the folder of another checkpoint"
        )
    import transformers

    try:
        # Without the network, and without code that a foreign folder may name.
        with no_panic():
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # a foreign file can make transformers raise anything
        raise TaskError(
            f"the tokenizer in {folder} cannot be made ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); save a fast one there: "
            "tokenizer.save_pretrained(DIR)"
        ) from None
    return tokenizer_assets(tokenizer)
