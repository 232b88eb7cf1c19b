"""Distributed checkpoints of torch, as FSDP writes them: ``.metadata`` and ``__N_M.distcp``.

Each file holds a part of every tensor. torch itself puts them together, one tensor at a time. Only
the index is read here: torch unpickles it, which would run whatever code is in it.
"""

from __future__ import annotations

import math
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from stagelens.compute.memory import amount
from stagelens.contracts import RunError
from stagelens.runs.streaming import TensorFacts

INDEX = ".metadata"
_MOST_INDEX_BYTES = 10**9
_OPTIMIZERS = ("optimizer", "optim", "optimizers")
_PART = re.compile(r"[\w-]+\.distcp")


def open_distributed(
    name: str, folder: Path
) -> tuple[Mapping[str, TensorFacts], Callable[[str], Tensor]]:
    """The model in a distributed checkpoint: what its tensors are, and a way to read each.

    Args:
        name: The user's name for it, for messages.
        folder: Holds ``.metadata`` and the parts.

    Raises:
        RunError: It is damaged, asks for code, or holds no model, or more than one.
    """
    reader = _Reader(folder)
    found = _model_of(name, folder, reader.index)
    facts = {each: reader.facts(key) for each, key in found.items()}
    return facts, lambda each: reader.tensor(found[each])


class _Reader(FileSystemReader):
    """torch's own reader of a distributed checkpoint, with an index in which no code can run."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        self.index = _read_index(folder)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        assert self.index.storage_meta is not None
        self.index.storage_meta.load_id = self.load_id
        return self.index

    def facts(self, key: str) -> TensorFacts:
        """What a tensor is, from the index alone."""
        stored = self.index.state_dict_metadata[key]
        assert isinstance(stored, TensorStorageMetadata)
        return TensorFacts(stored.properties.dtype, tuple(stored.size))

    def tensor(self, key: str) -> Tensor:
        """One tensor, put together from its parts."""
        facts = self.facts(key)
        whole = torch.empty(facts.shape, dtype=facts.dtype)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that no process group is there, at every call
                dcp.load({key: whole}, storage_reader=self, no_dist=True)
        except CheckpointException as error:  # around whatever a damaged file made torch raise
            reason, _ = next(iter(error.failures.values()))
            raise RunError(
                f"{self.folder}: {key} cannot be read ({type(reason).__name__}: "
                f"{' '.join(str(reason).split())[:200]}); restore the folder"
            ) from None
        return whole


def _model_of(name: str, folder: Path, index: Metadata) -> dict[str, str]:
    """The model's tensors in a checkpoint: name in the model to key in the checkpoint."""
    groups: dict[tuple[Any, ...], dict[str, str]] = {}
    paths = index.planner_data or {}
    for key, stored in index.state_dict_metadata.items():
        if isinstance(stored, TensorStorageMetadata):
            # As it was nested before torch made one key of it: ("model", "lm_head.weight").
            *above, own = paths.get(key, (key,))
            groups.setdefault(tuple(above), {})[str(own)] = key
    models = {at: own for at, own in groups.items() if not set(at) & set(_OPTIMIZERS)}
    if len(models) > 1:
        models = {at: own for at, own in models.items() if "model" in at}
    if len(models) != 1:
        said = ", ".join(
            ".".join(map(str, at)) or "tensors without a name" for at in sorted(groups, key=str)
        )
        raise RunError(
            f"{name}: {folder} holds {said or 'no tensors'}, not one model; give the folder that "
            "the model was saved into, such as pytorch_model_fsdp_0"
        )
    return next(iter(models.values()))


def _read_index(folder: Path) -> Metadata:
    """The index of a distributed checkpoint, rebuilt from nothing but numbers and names.

    Raises:
        RunError: It is damaged, or names anything else than what torch writes into one.
    """
    path = folder / INDEX
    try:
        if path.stat().st_size > _MOST_INDEX_BYTES:
            raise ValueError(f"larger than {amount(_MOST_INDEX_BYTES)}")
        with open(path, "rb") as file:
            read = _Unpickler(file).load()
        return _as_index(folder, read)
    except RunError:
        raise
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise RunError(
            f"{path} is no index of a distributed checkpoint ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); restore the folder"
        ) from None


class _Inert:
    """Stands in for a class of the index: takes what the pickle gives it, and does nothing."""

    def __init__(self, *given: Any) -> None:
        self.given = given

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self.given = tuple(state)


_CLASSES = {
    ("torch.distributed.checkpoint.metadata", each)
    for each in (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    )
} | {("torch.distributed.checkpoint.filesystem", "_StorageInfo")}


class _Unpickler(pickle.Unpickler):
    """Reads an index, and refuses whatever else a pickle can name.

    Every class is a new one that does nothing, so that a pickle cannot change torch's own either.
    """

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) in _CLASSES:
            return type(name, (_Inert,), {})
        if (module, name) == ("torch", "Size"):
            return partial(_size)  # not the function itself, whose attributes can be set
        if module == "torch" and isinstance(kind := getattr(torch, name, None), torch.dtype):
            return kind
        if name == "_get_layout" or module.partition(".")[0] == "pathlib":
            return type(name, (_Inert,), {})  # how a tensor lay in memory, where it was saved
        if (module, name) == ("builtins", "getattr"):  # how Python 3.11.0 names an enumeration
            return type(name, (_Inert,), {})
        raise RunError(
            f"the index of a distributed checkpoint ({INDEX}) names {module}.{name}, which "
            "torch never writes into one and which may run code; it is not opened"
        )


def _size(numbers: Any) -> torch.Size:
    return torch.Size([_whole(each) for each in numbers])


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**60:
        raise ValueError(f"{value!r} is no size")
    return value


def _kind(value: Any) -> str:
    return type(value).__name__ if isinstance(value, _Inert) else ""


def _as_index(folder: Path, read: Any) -> Metadata:
    """Torch's own index, of what one was read as."""
    if _kind(read) != "Metadata":
        raise ValueError("it holds something else")
    stored = {
        str(key): _as_stored(str(key), each) for key, each in read.state_dict_metadata.items()
    }
    places = dict(_as_place(folder, index, each) for index, each in read.storage_data.items())
    paths = getattr(read, "planner_data", None) or {}
    return Metadata(
        state_dict_metadata=stored,
        planner_data={str(key): tuple(path) for key, path in paths.items()},
        storage_data=places,
        storage_meta=StorageMeta(),
        version=getattr(read, "version", None),
    )


def _as_stored(key: str, read: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if _kind(read) == "BytesStorageMetadata":
        return BytesStorageMetadata()
    if _kind(read) != "TensorStorageMetadata":
        raise ValueError(f"{key} is no tensor")
    (dtype, *_), size = read.properties.given, _size(read.size)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{key} has no dtype")
    parts = [ChunkStorageMetadata(_size(each.offsets), _size(each.sizes)) for each in read.chunks]
    # torch would leave what no part covers as it finds it in memory.
    if sum(math.prod(each.sizes) for each in parts) != math.prod(size):
        raise ValueError(f"the parts of {key} do not make it whole")
    return TensorStorageMetadata(TensorProperties(dtype=dtype), size, parts)


def _as_place(folder: Path, index: Any, read: Any) -> tuple[MetadataIndex, _StorageInfo]:
    """Where a part of a tensor lies: in a file of the folder, within its length."""
    file, start, length = str(read.relative_path), _whole(read.offset), _whole(read.length)
    if not _PART.fullmatch(file):
        raise ValueError(f"{file!r} is not the name of a part beside it")
    if getattr(read, "transform_descriptors", None):
        raise ValueError(f"{index.fqn} is compressed, which is not read")
    if start + length > (folder / file).stat().st_size:
        raise ValueError(f"{file} is cut short")
    offset = getattr(index, "offset", None)
    key = MetadataIndex(str(index.fqn), None if offset is None else _size(offset))
    return key, _StorageInfo(file, start, length)
