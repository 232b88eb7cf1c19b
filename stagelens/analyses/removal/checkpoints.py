"""Models without a stage, or with less of it, as ordinary checkpoint folders.

Weights are streamed: the states are memory-mapped and the result is written block by block, so a
model far larger than memory can be edited.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagelens.contracts import StageLensError
from stagelens.runs.checking import CheckedAhead
from stagelens.runs.files import new_folder
from stagelens.runs.run import Run

if TYPE_CHECKING:
    from torch import Tensor

    from stagelens.contracts import ProgressCallback
    from stagelens.estimators.subtraction import WithoutStage
    from stagelens.runs.streaming import TensorFacts

    from .edits import EditedWeights


def write_counterfactual(
    run: Run,
    stage: str,
    out: str | Path,
    strength: float = 1.0,
    progress: ProgressCallback | None = None,
) -> Path:
    """Write final - strength * (end of the stage - start of the stage) as a checkpoint folder.

    It is sharded as the final model is, in its dtypes. Of a ``transformers`` model the folder also
    holds its configuration and the tokenizer's files, so that ``from_pretrained`` loads it. Every
    file that is read is checked against its digest meanwhile.

    Args:
        run: The run.
        stage: The stage's name.
        out: A folder that does not exist yet, or holds nothing.
        strength: How much of the stage is taken out, from 0 (nothing) to 1 (all of it).
        progress: Told of every tensor.

    Returns:
        ``out``.

    Raises:
        StageLensError: The strength is none, or the folder holds something.
        RunError: A file of the run is damaged; nothing is written then.
    """
    from stagelens.estimators.subtraction import WithoutStage
    from stagelens.runs.states import load_model

    if not 0 <= strength <= 1:
        raise StageLensError(f"a strength of {strength:g} is not between 0 and 1")
    left_out = run.stage(stage)
    start, end, final = left_out.facts.start, left_out.facts.end, run.last.facts.end
    assert end is not None and final is not None  # of finished stages
    weights = WithoutStage(
        load_model(run.files, final, checked=False),
        load_model(run.files, start, checked=False),
        load_model(run.files, end, checked=False),
        [each.facts.boundary for each in run.stages[left_out.index :]],
        strength,
    )
    shards, beside = _layout(run, weights.final)
    states = [final, *(state for state in (start, end) if state != final)]
    checked = CheckedAhead(run.files, [state.shards for state in states])
    with new_folder(Path(out)) as folder:
        with checked.running():
            _write_weights(shards, weights, folder, progress, checked)
        for name, content in beside.items():
            _write(folder / name, content)
    return Path(out)


def write_edited(
    run: Run,
    weights: EditedWeights,
    folder: Path,
    cards: Mapping[str, bytes],
    progress: ProgressCallback | None = None,
) -> None:
    """Write edited weights as a checkpoint into a folder, see :func:`write_counterfactual`.

    Of a model that is not of ``transformers`` the configuration stands in ``config.json`` too: the
    task's name, and what ``build_model`` takes.

    Args:
        run: The run.
        weights: The edited weights.
        folder: Holds nothing yet.
        cards: Further files, by name: they say how the model was made.
        progress: Told of every tensor.

    Raises:
        StageLensError: The final model is no checkpoint by itself.
    """
    shards, beside = _layout(run, weights.final)
    if "config.json" not in beside:
        task = run.file.task
        model = run.last.facts.build_config or task.config.get("model")
        content = {"task": task.name, "task_config": task.config, "model": model}
        beside = {**beside, "config.json": _json(content)}
    _write_weights(shards, weights, folder, progress)
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
    """What goes into which file, as the final model's own files have it; and what stands beside.

    Raises:
        StageLensError: The final model has an adapter, so it is no checkpoint by itself.
    """
    from stagelens.runs.streaming import TensorFacts, read_header

    facts = run.last.facts
    assert facts.end is not None
    if facts.end.names is not None:
        own_names = {name: own for own, name in facts.end.names.items()}
        shards = {}
        for file in facts.end.shards:
            tensors = read_header(run.files.present(file)).tensors
            kept = {n: _Tensor(own_names[n], tensors[n]) for n in tensors if n in own_names}
            shards[Path(file.path).name] = kept
        beside = {name: run.files.path(file).read_bytes() for name, file in facts.beside.items()}
        filled = {file: kept for file, kept in shards.items() if kept}
        if len(filled) == 1:
            filled = dict(zip(["model.safetensors"], filled.values(), strict=True))
        return filled, beside
    config = facts.build_config or run.file.task.config
    if config.get("peft"):
        raise StageLensError(
            "the final model has an adapter, so it is no checkpoint by itself; merge it before the "
            "last stage, or save it with peft"
        )
    module = run.task.build_model(facts.build_config)
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
    weights: WithoutStage | EditedWeights,
    folder: Path,
    progress: ProgressCallback | None,
    checked: CheckedAhead | None = None,
) -> None:
    """Write the shards, and where there are several, the index of them.

    ``checked`` is waited for where the files that the weights come from are not checked yet.
    """
    from stagelens.runs.streaming import write_tensors

    total = sum(tensor.facts.bytes for shard in shards.values() for tensor in shard.values())
    done = 0
    for number, (file, shard) in enumerate(shards.items()):

        def blocks(name: str, own: Mapping[str, _Tensor] = shard, where: int = number) -> Any:
            nonlocal done
            for block in weights.blocks(own[name].own_name):
                if checked is not None:
                    checked.wait(done / total)
                yield block
                done += block.nbytes
            if progress is not None:
                progress(done / total, f"Writing file {where + 1} of {len(shards)}")

        tensors = {name: tensor.facts for name, tensor in shard.items()}
        with open(folder / file, "xb") as opened:
            write_tensors(opened, tensors, blocks, {"format": "pt"})
            opened.flush()
            os.fsync(opened.fileno())
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
