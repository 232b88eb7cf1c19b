"""One checkpoint folder of ``transformers``: its configuration and its safetensors files."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from stagelens.compute.memory import amount
from stagelens.contracts import RunError, TaskError
from stagelens.runs.schema import check_name
from stagelens.runs.streaming import Gathered, Header, TensorFacts, read_header
from stagelens.tasks.config_limits import check_counts

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""Files that make up a tokenizer of ``transformers``; no model has all of them."""

# The others hold settings, but no vocabulary.
_MAKES_A_TOKENIZER = {"tokenizer.json", "vocab.json", "vocab.txt"} | {
    name for name in TOKENIZER_FILES if name.endswith(".model")
}
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
"""Folders within that of a Trainer."""

_LARGEST_JSON = 64 * 10**6
CONFIG_BYTES = 8 * 10**6
"""What a configuration may take."""

BINS = "pytorch_model*.bin"
"""Pickles of weights."""

ZERO = "*/*model_states.pt"
"""What DeepSpeed writes below a folder, of every process."""

_FSDP = "pytorch_model_fsdp_*"
"""Folders in a Trainer's, with a distributed checkpoint of torch each."""

_POINTER = b"version https://git-lfs"

_NO_MODEL = (
    (
        "model-*-of-*.safetensors",
        f"a shard without {INDEX}",
        "restore the index, or save the model again",
    ),
    (
        "model.*.safetensors",
        "a variant of the weights",
        "save it as the model: from_pretrained(DIR, variant=...).save_pretrained(OTHER)",
    ),
    (
        "pytorch_model_fsdp*_rank*",
        "what one process of a sharded training saved for itself",
        "save the model where it was trained, with use_dcp=True or as a whole",
    ),
    (
        "modules.json",
        "a pipeline of sentence-transformers",
        "give the folder of its transformer, which holds config.json",
    ),
    ("tf_model.h5", "a model of TensorFlow", "convert it: from_pretrained(DIR, from_tf=True)"),
    ("*.gguf", "a file of llama.cpp", "give the model that it was made from"),
)
"""Files that mark a folder without a model to read: what they are, and what to do."""


@dataclass
class Checkpoint:
    """A checkpoint folder that was found and checked; its weights are read when used.

    Attributes:
        name: The user's name for it.
        given: The folder that the user named.
        folder: The folder of the checkpoint: ``given``, or its last ``checkpoint-N``.
        weights: The folder that holds weights and config.json: ``folder``, or where they were
            saved after transformers had loaded it.
        config: What its config.json says.
        shards: Its safetensors files, in order, with their headers.
        notes: What people should know about it.
        address: How the user named it, such as a hub id.
        under: What the configuration of its adapter names as the model beneath; "" without one.
        on: The name of the checkpoint that its adapter was laid on; "" without one.
    """

    name: str
    given: Path
    folder: Path
    weights: Path
    config: Mapping[str, Any]
    shards: Mapping[str, Header]
    notes: list[str] = field(default_factory=list)
    address: str = ""
    under: str = ""
    on: str = ""

    @cached_property
    def tensors(self) -> dict[str, TensorFacts]:
        """Every tensor in the files, by its name there."""
        return {name: t for header in self.shards.values() for name, t in header.tensors.items()}

    @cached_property
    def mapped(self) -> Gathered:
        """The tensors themselves, memory-mapped."""
        return Gathered.of(self.weights / file for file in self.shards)

    @property
    def own(self) -> bool:
        """Whether its weights were saved for this run, and are in nobody else's folder."""
        return self.weights != self.folder

    @property
    def label(self) -> str:
        """The folder as people know it, without the path to it; a hub id with its commit."""
        if self.given.parent.name == "snapshots":  # as in the cache of the hub
            return f"{self.address.removeprefix('hf://')}, commit {self.given.name[:12]}"
        inside = self.folder.name if self.folder != self.given else ""
        # Resolved, because a folder given as "." has no name.
        return "/".join(filter(None, (self.given.resolve().name, inside)))

    @property
    def step(self) -> int | None:
        """N of a folder ``checkpoint-N``."""
        match = CHECKPOINT.fullmatch(self.folder.resolve().name)
        return int(match[1]) if match else None

    @property
    def architecture(self) -> str:
        """The class that its configuration names, such as ``BertModel``; "" if it names none."""
        named = self.config.get("architectures")
        return str(named[0]) if isinstance(named, list) and named else ""

    @property
    def precision(self) -> str:
        """The dtype of most of its weights, for instance ``bfloat16``."""
        sizes: Counter[str] = Counter()
        for facts in self.tensors.values():
            if facts.dtype.is_floating_point:
                sizes[str(facts.dtype).removeprefix("torch.")] += facts.bytes
        return sizes.most_common(1)[0][0] if sizes else "float32"

    @property
    def bytes(self) -> int:
        """Size of the weights."""
        return sum((self.weights / file).stat().st_size for file in self.shards)

    @property
    def folders(self) -> list[Path]:
        """Where files beside the weights may be: a Trainer spreads them over its folders."""
        return list(dict.fromkeys([self.folder, self.given, *_numbered(self.given)[-1:]]))

    def tokenizer_files(self) -> list[Path]:
        """Files of its tokenizer; empty if they are not enough to make one."""
        for folder in self.folders:
            files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
            if any(file.name in _MAKES_A_TOKENIZER for file in files):
                return files
        return []


@dataclass(frozen=True)
class Place:
    """Where a checkpoint is.

    Attributes:
        name: The user's name for it.
        given: The folder that the user named.
        folder: That folder, or its last ``checkpoint-N``.
        notes: What people should know about it.
    """

    name: str
    given: Path
    folder: Path
    notes: list[str] = field(default_factory=list)


def place_of(name: str, path: Path) -> Place:
    """Find a checkpoint.

    Args:
        name: The user's name for it, for messages.
        path: The folder. If it holds no weights itself but ``checkpoint-N`` folders, as a Trainer
            writes them, the one with the highest N is taken.

    Raises:
        RunError: There is no such folder.
    """
    given = Path(path).expanduser()
    if not given.is_dir():
        advice = (
            "give the folder that it lies in"
            if given.is_file()
            else "give the folder of a saved model, or the id of one on the hub (hf://OWNER/NAME)"
        )
        raise RunError(f"{name}: {given} is not a folder; {advice}")
    if given.match(_FSDP) and distributed_folder(given) == given:
        given = given.parent  # where what belongs to it lies
    folder, notes = given, []
    inside = _numbered(given)
    if not _has_weights(given) and inside:
        folder = inside[-1]
        if len(inside) > 1:
            others = ", ".join(each.name for each in inside[:-1])
            notes.append(
                f"{name}: ends at {folder.name}; earlier checkpoints are not used ({others})"
            )
    return Place(name, given, folder, notes)


def open_checkpoint(name: str, path: Path) -> Checkpoint:
    """Open a checkpoint folder whose files hold the model's weights: a saved model, or a Trainer's.

    Args:
        name: The user's name for it, for messages.
        path: As for :func:`place_of`.

    Raises:
        RunError: It holds no model, or one that is not safetensors and JSON; names the file and
            says what to do.
    """
    place = place_of(name, path)
    _refuse_others(name, place.folder)
    return whole_checkpoint(place, place.folder)


def whole_checkpoint(place: Place, weights: Path) -> Checkpoint:
    """A checkpoint whose safetensors files and config.json are known to be in a folder.

    Raises:
        RunError: One of them is damaged, missing, or not what its name says.
    """
    name, notes = place.name, list(place.notes)
    config = read_json_object(weights / "config.json", CONFIG_BYTES)
    try:
        check_counts(config)
    except TaskError as error:
        raise RunError(f"{name}: {weights / 'config.json'}: {error}") from None
    if config.get("transformers_weights") not in (None, WEIGHTS):
        raise RunError(
            f"{name}: {weights / 'config.json'} names the weights that transformers reads "
            f"(transformers_weights: {config['transformers_weights']!r}); load the model and save "
            f"it again, which writes {WEIGHTS}"
        )
    shards = _shards(name, weights, notes)
    return Checkpoint(name, place.given, place.folder, weights, config, shards, notes)


def _numbered(folder: Path) -> list[Path]:
    """The ``checkpoint-N`` folders in a folder, sorted by N."""
    found = [(CHECKPOINT.fullmatch(path.name), path) for path in folder.iterdir()]
    steps = [(int(match[1]), path) for match, path in found if match and path.is_dir()]
    return [path for _, path in sorted(steps)]


def _has_weights(folder: Path) -> bool:
    # Pickles count, so that they are refused by name instead of passed over for a checkpoint-N.
    pickles = (path for path in folder.glob("*.bin") if path.name != "training_args.bin")
    return any(folder.glob("*.safetensors")) or any(pickles) or is_sharded(folder)


def is_sharded(folder: Path) -> bool:
    """Whether a folder holds a model in parts, as a sharded training saves it."""
    return distributed_folder(folder) is not None or any(folder.glob(ZERO))


def distributed_folder(folder: Path) -> Path | None:
    """The distributed checkpoint of a model that a folder is, or holds as a Trainer's does."""
    for each in (folder, *sorted(folder.glob(_FSDP))):
        if (each / ".metadata").is_file() and any(each.glob("*.distcp")):
            return each
    return None


def _refuse_others(name: str, folder: Path) -> None:
    """Refuse what is no whole model in safetensors; says what it is, and what to do."""
    there = (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()
    if (folder / "adapter_config.json").is_file():
        raise RunError(
            f"{name}: {folder} holds an adapter beside {WEIGHTS}, which from_pretrained adds to "
            "it; if it is merged already, remove adapter_config.json; otherwise move the adapter "
            "into a folder of its own, and give that as the next stage"
        )
    if there:
        return
    if any(folder.glob(BINS)):
        raise RunError(
            f"{name}: {folder} holds pytorch_model.bin, a pickle, which may hold code; if you "
            "trust where it is from, allow to open it without running any (--allow-bin), or "
            "convert it: from_pretrained(DIR).save_pretrained(OTHER) writes safetensors"
        )
    for pattern, what, advice in _NO_MODEL:
        if (found := next(iter(sorted(folder.glob(pattern))), None)) is not None:
            raise RunError(
                f"{name}: {folder} holds neither {WEIGHTS} nor {INDEX}, but {found.name}, {what}; "
                f"{advice}"
            )
    raise RunError(
        f"{name}: {folder} holds neither {WEIGHTS} nor {INDEX}; give the folder that "
        "save_pretrained or a Trainer wrote"
    )


def read_json_object(path: Path, most: int = _LARGEST_JSON) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: The file.
        most: Bytes that it may have.

    Raises:
        RunError: It is missing, larger, or does not hold an object.
    """
    try:
        # Before it is read: a foreign file may have any size.
        if path.stat().st_size > most:
            raise RunError(f"{path} is larger than {amount(most)}, so it is not what its name says")
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{path} is missing; give the folder of a saved model") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read ({error}); save the model again") from None
    if not isinstance(content, dict):
        raise RunError(f"{path} does not hold a JSON object; save the model again")
    return content


def _shards(name: str, folder: Path, notes: list[str]) -> dict[str, Header]:
    """The safetensors files with their headers: those that ``from_pretrained`` would read."""
    index = folder / INDEX
    if (folder / WEIGHTS).is_file():
        # The single file wins there, however new the index of shards beside it is.
        if index.is_file():
            notes.append(f"{name}: {index.name} is left over: transformers reads {WEIGHTS} alone")
        return {WEIGHTS: _header(folder, WEIGHTS)}
    places = read_json_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise RunError(f"{index}: weight_map: missing or no object; save the model again")
    files = sorted({_checked_file(index, tensor, file) for tensor, file in places.items()})
    shards = {file: _header(folder, file) for file in files}
    found = [(tensor, file) for file, header in shards.items() for tensor in header.tensors]
    # A tensor that only one of them knows, or that two files hold, would be lost without a word.
    if sorted(found) != sorted(places.items()):
        wrong = min(set(found) ^ set(places.items()))
        raise RunError(
            f"{index} and the files that it names differ in tensor {wrong[0]!r} of {wrong[1]}; "
            "restore the folder, or save the model again"
        )
    return shards


def _checked_file(index: Path, tensor: str, file: Any) -> str:
    """A file that an index names, which has to be beside it."""
    try:
        if not isinstance(file, str) or not file.endswith(".safetensors"):
            raise ValueError(f"{file!r} is not the name of a safetensors file")
        return check_name(file)  # allows no slash, so the file is beside the index
    except ValueError as error:
        raise RunError(f"{index}: weight_map.{tensor}: {error}; it is not opened") from None


def _header(folder: Path, file: str) -> Header:
    path = folder / file
    if not path.is_file():
        raise RunError(f"{path} is missing; restore it, or save the model again")
    with open(path, "rb") as content:
        if content.read(len(_POINTER)) == _POINTER:
            raise RunError(
                f"{path} is a pointer of Git LFS instead of the weights; fetch them: git lfs pull"
            )
    return read_header(path)
