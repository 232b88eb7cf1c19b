"""Edited and counterfactual models as ordinary checkpoint folders.

Weights are streamed: the states are read and the result is written block by block, so a model far
larger than memory can be edited.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagelens.contracts import StageLensError
from stagelens.runs.run import Run

if TYPE_CHECKING:
    from torch import Tensor

    from stagelens.contracts import ProgressCallback
    from stagelens.runs.states import Weights
    from stagelens.runs.streaming import TensorFacts


def write_checkpoint(
    run: Run,
    final: Weights,
    weights: Weights,
    folder: Path,
    cards: Mapping[str, bytes],
    not_finite: Callable[[], object],
    progress: ProgressCallback | None = None,
) -> None:
    """Write weights as a checkpoint into a folder.

    It has the shards and dtypes of the final model. For a ``transformers`` model the folder also
    holds its configuration and the tokenizer's files, so that ``from_pretrained`` loads it; for
    any other, ``config.json`` holds the task's name and what ``build_model`` takes.

    Args:
        run: The run.
        final: Its final model's weights.
        weights: Those to write, of the same names, shapes and dtypes.
        folder: Holds nothing yet.
        cards: Further files, by name: they say how the model was made.
        not_finite: Called once if a weight is NaN or infinite; may raise.
        progress: Called as weights are written.

    Raises:
        StageLensError: The final model is not a checkpoint by itself.
    """
    shards, beside = _layout(run, final)
    if "config.json" not in beside:
        task = run.file.task
        model = run.last.facts.build_config or task.config.get("model")
        content = {"task": task.name, "task_config": task.config, "model": model}
        beside = {**beside, "config.json": _json(content)}
    _write_weights(shards, weights, folder, not_finite, progress)
    for name, data in {**beside, **cards}.items():
        _write(folder / name, data)


@dataclass(frozen=True)
class _Tensor:
    """A tensor to write: its name in the module, and what it is in the file."""

    own_name: str
    facts: TensorFacts


_Shards = Mapping[str, Mapping[str, _Tensor]]
"""File name to tensors by their names there."""


def _layout(run: Run, final: Mapping[str, Tensor]) -> tuple[_Shards, dict[str, bytes]]:
    """Which tensors go into which file, as in the final model's own; and the files beside them.

    Raises:
        StageLensError: The final model has an adapter, so it is not a checkpoint by itself.
    """
    from stagelens.runs.streaming import TensorFacts, read_header

    facts = run.last.facts
    assert facts.end is not None
    # A run assembled from checkpoints keeps their files, and the names in them.
    if facts.end.names is not None:
        own_names = {name: own for own, name in facts.end.names.items()}
        shards = {}
        for file in facts.end.shards:
            tensors = read_header(run.files.present(file)).tensors
            kept = {n: _Tensor(own_names[n], tensors[n]) for n in tensors if n in own_names}
            shards[Path(file.path).name] = kept
        beside = {name: run.files.path(file).read_bytes() for name, file in facts.beside.items()}
        filled = {file: kept for file, kept in shards.items() if kept}
        # Without an index, weights are looked for under this name only.
        if len(filled) == 1:
            filled = dict(zip(["model.safetensors"], filled.values(), strict=True))
        return filled, beside
    config = facts.build_config or run.file.task.config
    if config.get("peft"):
        raise StageLensError(
            "the final model has an adapter, so it is not a checkpoint by itself; merge it before "
            "the last stage, or save it with peft"
        )
    module = run.task.build_empty(facts.build_config)
    kept = {
        name: _Tensor(name, TensorFacts(tensor.dtype, tuple(tensor.shape)))
        for name, tensor in final.items()
        if name in module.state_dict()  # without the buffers that a module makes by itself
    }
    model = config.get("model", run.file.task.config.get("model"))
    if not isinstance(model, Mapping) or "model_type" not in model:
        return {"model.safetensors": kept}, {}
    named = {**model, "architectures": [type(module).__name__]}
    return {"model.safetensors": kept}, {"config.json": _json(named), **run.task_assets()}


def _write_weights(
    shards: _Shards,
    weights: Weights,
    folder: Path,
    not_finite: Callable[[], object],
    progress: ProgressCallback | None,
) -> None:
    """Write the shards and, where there are several, their index."""
    from stagelens.runs.streaming import reader_of
    from stagelens.runs.tensor_files import Source, write_files

    files = {
        folder / file: {
            name: Source(tensor.facts, partial(reader_of, weights, tensor.own_name))
            for name, tensor in shard.items()
        }
        for file, shard in shards.items()
    }
    total = sum(tensor.facts.bytes for shard in shards.values() for tensor in shard.values())
    done = 0

    def written(number: int, size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(done / total, f"Writing file {number + 1} of {len(files)}")

    # Without the entry "format", from_pretrained refuses the file. Files are flushed, since the
    # folder is renamed at the end: a crash after that must not leave empty ones in it.
    write_files(files, {"format": "pt"}, not_finite, written)
    if len(shards) > 1:
        places = {name: file for file, shard in shards.items() for name in shard}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        _write(folder / "model.safetensors.index.json", _json(index))


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
