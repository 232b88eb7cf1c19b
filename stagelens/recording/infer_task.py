"""The task of a model that a Trainer trains, read from the model and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stagelens.contracts import RecordingError, Task
from stagelens.runs.lineage import NEWEST
from stagelens.runs.run import open_run
from stagelens.tasks import (
    CausalLM,
    MaskedLM,
    MultiLabelClassification,
    Regression,
    RewardModel,
    Seq2Seq,
    TextClassification,
    TokenClassification,
    TransformersImageClassification,
)
from stagelens.tasks.adapters import is_adapted
from stagelens.tasks.tokenizer import READING, KeptTokenizer
from stagelens.tasks.transformer_task import TransformerTask

BuildConfig = dict[str, Any]

_BY_CLASS: Mapping[str, Any] = {
    "ForCausalLM": CausalLM,
    "LMHeadModel": CausalLM,
    "ForMaskedLM": MaskedLM,
    "ForConditionalGeneration": Seq2Seq,
    "ForTokenClassification": TokenClassification,
    "ForImageClassification": TransformersImageClassification,
    "ForSequenceClassification": TextClassification,
}
"""Suffixes of transformers' class names, and the tasks of such models."""


def infer_task(model: Any, processor: Any, objective: str | None = None) -> TransformerTask:
    """The task of a ``transformers`` model.

    Args:
        model: One of the kinds that StageLens has a task for.
        processor: The Trainer's ``processing_class``: a tokenizer, or an image processor.
        objective: The name of what is minimised, where that is not the model's own loss.

    Raises:
        RecordingError: It is of another kind, or the Trainer has no tokenizer; says what to pass.
        TaskError: Model and tokenizer do not fit each other, or the task.
    """
    # The wrapped model's class name tells the task; a PeftModel's own does not.
    model = model.get_base_model() if is_adapted(model) else model
    name = type(model).__name__
    task = next((task for suffix, task in _BY_CLASS.items() if name.endswith(suffix)), None)
    if task is None or (task is Seq2Seq and not _reads_and_writes_text(model)):
        raise RecordingError(
            f"StageLens does not know which task a {name} is trained for; pass "
            "StageRecorderCallback(..., task=...), a stagelens.Task whose loss(model, batch) takes "
            "the keyword arguments of a forward pass as the batch"
        )
    if processor is None:
        seen = task is TransformersImageClassification
        kind, inputs = ("image processor", "images") if seen else ("tokenizer", "texts")
        raise RecordingError(
            f"the Trainer has no {kind}, without which the run could not read {inputs} later; pass "
            f"Trainer(..., processing_class={kind.replace(' ', '_')}), or "
            "StageRecorderCallback(..., task=...)"
        )
    if task is TextClassification:
        task = _of_a_classifier(model, objective)
    made: TransformerTask = task.from_model(model, processor)
    return made


def _reads_and_writes_text(model: Any) -> bool:
    """Whether a model that generates has a text encoder: some of that name hear, or see."""
    reads = getattr(model, "main_input_name", "input_ids") == "input_ids"
    return reads and bool(model.config.is_encoder_decoder)


def _of_a_classifier(model: Any, objective: str | None) -> Any:
    """The task of a sequence classifier, by what its outputs are, and what they are trained for."""
    if model.config.problem_type == "multi_label_classification":
        return MultiLabelClassification
    if model.config.num_labels > 1:
        return TextClassification
    return RewardModel if objective == "reward" else Regression


def task_of_stage(
    path: Path, model: Any, tokenizer: Any, objective: str | None = None
) -> tuple[Task, BuildConfig | None, str]:
    """The task to record a stage with: the run's own, if the run exists already.

    Args:
        path: The run folder.
        model: As in :func:`infer_task`.
        tokenizer: As in :func:`infer_task`.
        objective: As in :func:`infer_task`.

    Returns:
        The task, the stage's own ``build_config`` where its model is configured differently, and
        how its tokenizer differs in what does not change how texts are read; "" if it does not.

    Raises:
        RecordingError: As in :func:`infer_task`, or the run has another task; names the difference.
    """
    task = infer_task(model, tokenizer, objective)
    if not (path / "run.json").exists():
        return task, None, ""
    known = open_run(path, leaf=NEWEST).task
    _check_same(path, known, task)
    differing = _check_tokenizers(path, known, task) if known.assets else ""
    own = None if known.config["model"] == task.model else {"model": task.model}
    return known, own, differing


def _check_same(path: Path, known: Task, task: Task) -> None:
    differences: list[tuple[str, Any, Any]] = []
    if known.name != task.name:
        differences = [("task", known.name, task.name)]
    else:
        differences = [
            (key, known.config.get(key), value)
            for key, value in task.config.items()
            # The model may be configured otherwise in every stage; build_config then says how.
            if key not in ("model", "attention") and known.config.get(key) != value
        ]
    for key, before, now in differences:
        raise RecordingError(
            f"the model does not continue the run in {path}: its {key} was {before!r} there and is "
            f"{now!r} here; load it as it was in the earlier stages, choose another folder, or "
            "pass the task of the whole run, StageRecorderCallback(..., task=...)"
        )


def _check_tokenizers(path: Path, known: Task, task: TransformerTask) -> str:
    """Keys in which two tokenizers differ without reading a known text otherwise.

    Padding, lengths, special tokens and added ones are facts of a stage.

    Raises:
        RecordingError: They give texts other ids; names a token, or the key that differs.
    """
    before, now = KeptTokenizer(known.assets), task.tokenizer
    advice = (
        "train every stage with the run's tokenizer, choose another folder, or pass the task of "
        "the whole run, StageRecorderCallback(..., task=...)"
    )
    if (moved := before.moved_token(now)) is not None:
        token, old, new = moved
        raise RecordingError(
            f"the tokenizer does not continue the run in {path}: {token!r} had the id {old} there "
            f"and has {new} here; {advice}"
        )
    differing = before.differing(now)
    if reading := [key for key in differing if key in READING]:
        raise RecordingError(
            f"the tokenizer does not continue the run in {path}: its {reading[0]} (tokenizer.json) "
            f"is another here, so that it gives texts other ids; {advice}"
        )
    # The side that is padded changes no text's tokens, and some trainers always set it.
    return ", ".join(differing) if {*differing} - {"padding_side"} else ""
