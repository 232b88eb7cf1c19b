"""Folders of sharded trainings: FSDP's, which torch puts together, and DeepSpeed's, by its own."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stagelens.compute import memory
from stagelens.compute.memory import amount
from stagelens.contracts import RunError
from stagelens.runs.streaming import TensorFacts
from stagelens.runs.tensor_files import write_tensors

from .checkpoints import CHECKPOINT, WEIGHTS, ZERO, Checkpoint, Place, distributed_folder

_DEEPSPEED_STATE = (
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
)
"""Classes in DeepSpeed's pickles: numbers of its own, and no code."""


def make_whole(
    place: Place, weights: Path, earlier: Sequence[Checkpoint], *, allow_bin: bool
) -> list[str]:
    """Write a sharded model as ``from_pretrained`` reads one.

    Args:
        place: Where it is.
        weights: The folder to make.
        earlier: The checkpoints before it.
        allow_bin: Whether pickles may be opened, without any code in them.

    Returns:
        What people should know about it.

    Raises:
        RunError: It cannot be made whole here; says what to do.
    """
    name, folder = place.name, place.folder
    weights.mkdir()
    notes = [f"{name}: {_take_config(place, weights, earlier)}"]
    if (parts := distributed_folder(folder)) is not None:
        from .distributed import open_distributed  # here, as torch.distributed takes its time

        _write(name, weights, *open_distributed(name, parts))
        notes.append(f"{name}: put together from the parts of a sharded training")
    else:
        _write_zero(name, folder, weights, allow_bin)
        notes.append(f"{name}: put together by DeepSpeed, in the float32 that it was trained in")
    return [note for note in notes if not note.endswith(": ")]


def _write(
    name: str, weights: Path, facts: Mapping[str, TensorFacts], read: Callable[[str], Tensor]
) -> None:
    """Write a model as safetensors, holding one tensor at a time."""
    size, free = sum(each.bytes for each in facts.values()), shutil.disk_usage(weights).free
    if size > free:
        raise RunError(
            f"{name} takes {amount(size)} as a whole, but only {amount(free)} are free beside the "
            "run; choose another place for it"
        )
    # Larger numbers first, as safetensors itself writes them, so that each begins aligned.
    order = sorted(facts, key=lambda each: (-facts[each].dtype.itemsize, each))
    with open(weights / WEIGHTS, "wb") as file:
        write_tensors(
            file, {each: facts[each] for each in order}, lambda n: [read(n)], {"format": "pt"}
        )


def _take_config(place: Place, weights: Path, earlier: Sequence[Checkpoint]) -> str:
    """Copy config.json, which a Trainer of FSDP leaves out; says where it is from, if elsewhere."""
    folders = [place.folder, place.given]
    if CHECKPOINT.fullmatch(place.given.name):
        folders.append(place.given.parent)
    known = [(folder, "") for folder in folders]
    known += [(e.weights, f"without config.json, so that of {e.name} is taken") for e in earlier]
    for folder, note in known:
        if (file := folder / "config.json").is_file():
            shutil.copyfile(file, weights / file.name)
            return note
    raise RunError(
        f"{place.name}: {place.folder} has no config.json, as a sharded training saves none; copy "
        "that of the model that was trained there, and its tokenizer"
    )


def _write_zero(name: str, folder: Path, weights: Path, allow_bin: bool) -> None:
    """DeepSpeed's own way from its checkpoints to whole tensors; no code in its pickles runs."""
    known = find_spec("deepspeed") is not None
    if not (known and allow_bin):
        script = folder / "zero_to_fp32.py"
        run = [str(script)] if script.is_file() else ["-m", "deepspeed.utils.zero_to_fp32"]
        # Without --safe_serialization, which fails where weights are tied.
        command = shlex.join(["python", *run, str(folder), str(folder)])
        raise RunError(
            f"{name}: {folder} holds a checkpoint of DeepSpeed, in pickles; "
            + ("" if known else f"where DeepSpeed is installed, run {command}, then ")
            + "give this folder again, and allow to open pickles without their code (--allow-bin)"
        )
    size = sum(file.stat().st_size for file in folder.glob(ZERO))
    memory.check(size, f"putting {name} together ({folder})")
    try:
        with _without_code(), _silent():
            own = importlib.import_module("deepspeed.utils.zero_to_fp32")
            tensors = own.get_fp32_state_dict_from_zero_checkpoint(str(folder), lazy_mode=True)
            facts = {n: TensorFacts(each.dtype, tuple(each.shape)) for n, each in tensors.items()}
            _write(name, weights, facts, lambda each: tensors[each].contiguous())
    except Exception as error:  # a foreign folder can make DeepSpeed raise anything
        if memory.ran_out(error) or isinstance(error, RunError):
            raise
        raise RunError(
            f"{name}: DeepSpeed cannot put {folder} together ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]})"
        ) from None


@contextlib.contextmanager
def _without_code() -> Iterator[None]:
    """Everything that is unpickled, is with ``weights_only=True``, whatever the caller asks for."""
    key = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(key)
    os.environ[key] = "1"
    try:
        with torch.serialization.safe_globals(_known_state()):
            yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


def _known_state() -> list[Any]:
    found = []
    for module, name in _DEEPSPEED_STATE:
        with contextlib.suppress(ImportError, AttributeError):
            found.append(getattr(importlib.import_module(module), name))
    return found


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
