"""The task of a checkpoint, from its configuration, and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from stagelens.compute.bounded import no_panic
from stagelens.compute.memory import amount
from stagelens.contracts import Task, TaskError
from stagelens.tasks import load_task_class
from stagelens.tasks.built_in import BUILT_IN
from stagelens.tasks.named_outputs import NamedOutputs
from stagelens.tasks.tokenizer import tokenizer_assets
from stagelens.tasks.transformer_task import TransformerTask
from stagelens.tasks.transformers_image_classification import (
    TransformersImageClassification,
    image_facts,
)

from .checkpoints import TOKENIZER_FILES, Checkpoint
from .configs import normalised, output_names

_LARGEST_TOKENIZER = 256 * 10**6
_LARGEST_PROCESSOR = 10**6
_MAPPINGS = (
    ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES", "text-classification"),
    ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "causal-lm"),
    ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "seq2seq"),
    ("MODEL_FOR_MASKED_LM_MAPPING_NAMES", "masked-lm"),
    ("MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES", "token-classification"),
    ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", "transformers-image-classification"),
)
"""transformers' mappings of configurations to architectures, and the tasks of these."""


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
    name = _by_architecture(last) if task is None else task
    known = BUILT_IN.get(name)
    made = load_task_class(name if known is None else known.target)
    unknown = known is not None and not known.traits.assembled_by_name
    if not issubclass(made, TransformerTask) or unknown:
        raise TaskError(
            f"{task} cannot be made from a checkpoint folder; derive it from TextClassification "
            "or CausalLM, or make it in Python: stagelens.assemble(..., task=YourTask(...))"
        )
    # As the weights are, whatever config.json says: a cast would change them.
    model = {**normalised(last), "dtype": last.precision}
    if issubclass(made, TransformersImageClassification):
        facts = image_facts(SimpleNamespace(**model), _image_processor(checkpoints))
        return made(output_names(last), model, **facts)
    assets = _assets(checkpoints)
    if issubclass(made, NamedOutputs):
        return made(output_names(last), model, assets=assets)
    return made(model, assets=assets)


def _image_processor(checkpoints: Sequence[Checkpoint]) -> SimpleNamespace:
    """What the last ``preprocessor_config.json`` says; read as data, never as code.

    Raises:
        TaskError: There is none, or it is not JSON.
    """
    files = [each.folder / "preprocessor_config.json" for each in reversed(checkpoints)]
    file = next((each for each in files if each.is_file()), None)
    if file is None or file.stat().st_size > _LARGEST_PROCESSOR:
        raise TaskError(
            "none of the folders has an image processor (preprocessor_config.json); save it into "
            "the last one: processor.save_pretrained(DIR)"
        )
    try:
        return SimpleNamespace(**json.loads(file.read_bytes()))
    except (ValueError, TypeError) as error:
        raise TaskError(f"{file} is not a JSON object ({error}); save it again") from None


def _by_architecture(checkpoint: Checkpoint) -> str:
    from transformers.models.auto import modeling_auto

    kind, architecture = checkpoint.config.get("model_type"), checkpoint.architecture
    for mapping, task in _MAPPINGS:
        names = getattr(modeling_auto, mapping).get(kind, ())
        if not architecture or architecture not in ((names,) if isinstance(names, str) else names):
            continue
        if task == "text-classification":
            return _of_a_classifier(checkpoint)
        return task
    raise TaskError(
        f"{checkpoint.name}: config.json names the architecture {architecture or None!r}, for "
        "which there is no task; give the folder of a ...ForSequenceClassification or "
        "...ForCausalLM model as the last one, or name the task (--task)"
    )


def _of_a_classifier(checkpoint: Checkpoint) -> str:
    """The task of a sequence classifier, by what its outputs are."""
    if checkpoint.config.get("problem_type") == "multi_label_classification":
        return "multi-label-classification"
    return "regression" if len(output_names(checkpoint)) == 1 else "text-classification"


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
