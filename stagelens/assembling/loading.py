"""Folders whose files hold other tensors than the model has: what transformers makes of them.

Experts that are merged at loading, adapters, quantised weights, pickles: transformers (and PEFT)
build the model, which is saved as it is in memory, and that is what the run takes. One model is in
memory at a time. Folders whose tensors are the model's own never come here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from stagelens.compute import memory
from stagelens.compute.bounded import no_panic
from stagelens.contracts import RunError
from stagelens.runs.streaming import read_header

from .checkpoints import (
    BINS,
    CONFIG_BYTES,
    Checkpoint,
    Place,
    is_sharded,
    open_checkpoint,
    place_of,
    read_json_object,
    whole_checkpoint,
)
from .dequantising import dequantise, expanding, quantised
from .sharded import make_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

ADAPTER = "adapter_config.json"
_WHOLE = ("model*.safetensors", BINS, "adapter_model*")
"""What was made of the parts of a sharded training, or saved beside them."""

_KEPT = ("generation_config.json",)
T = TypeVar("T")


class Loader:
    """Opens checkpoint folders of any kind that transformers and PEFT read.

    Args:
        workshop: Where what was loaded is saved, until the run has taken it.
        allow_bin: Whether pickles of weights may be opened, with ``weights_only=True``.
    """

    def __init__(self, workshop: Path, *, allow_bin: bool = False) -> None:
        self.workshop, self.allow_bin = workshop, allow_bin

    def open(
        self, name: str, path: Path, address: str, earlier: Sequence[Checkpoint]
    ) -> Checkpoint:
        """A checkpoint of any kind.

        Args:
            name: The user's name for it.
            path: Its folder, or what :func:`place_of` finds one in.
            address: How the user named it, such as a hub id.
            earlier: The checkpoints before it, on one of which an adapter lies.

        Raises:
            RunError: It holds no model, or one that cannot be loaded.
        """
        place = place_of(name, path)
        folder = place.folder
        if is_sharded(folder) and not any(any(folder.glob(each)) for each in _WHOLE):
            made = self._gathered(place, earlier)
        elif (folder / ADAPTER).is_file() and not _plain(folder):
            made = self._adapted(place, earlier)
        elif (method := quantised(folder)) is not None and (self.allow_bin or _plain(folder)):
            made = self._dequantised(place, method)
        elif self.allow_bin and not _plain(folder) and any(folder.glob(BINS)):
            made = self._unpickled(place)
        else:
            made = open_checkpoint(name, path)
        return replace(made, address=address)

    def as_loaded(
        self, checkpoint: Checkpoint, note: str, *, rows: int | None = None, dtype: str = ""
    ) -> Checkpoint:
        """A checkpoint again, as its model is in memory.

        Args:
            checkpoint: It holds safetensors.
            note: What people should know about it; "" for nothing.
            rows: How many rows its embeddings keep; None for all.
            dtype: What its weights are cast to; "" for what most of them are.
        """
        options = {"dtype": getattr(torch, dtype or checkpoint.precision)}
        place = Place(checkpoint.name, checkpoint.given, checkpoint.folder, list(checkpoint.notes))
        model = self._whole(place, checkpoint.weights, options)
        if rows is not None:
            model.resize_token_embeddings(rows)
        made = self._saved(place, model, note)
        return replace(made, address=checkpoint.address)

    def _gathered(self, place: Place, earlier: Sequence[Checkpoint]) -> Checkpoint:
        weights = self._new_folder()
        notes = make_whole(place, weights, earlier, allow_bin=self.allow_bin)
        return whole_checkpoint(replace(place, notes=[*place.notes, *notes]), weights)

    def _unpickled(self, place: Place) -> Checkpoint:
        dtype = _reading(place, lambda: _dtype_of_pickles(place.folder))
        model = self._whole(place, place.folder, {"dtype": dtype})
        return self._saved(place, model, "read from pytorch_model.bin, without any code in it")

    def _dequantised(self, place: Place, method: str) -> Checkpoint:
        content = read_json_object(place.folder / "config.json", CONFIG_BYTES)
        own = _reading(place, lambda: expanding(content["quantization_config"]))
        model = self._whole(
            place, place.folder, {"dtype": "auto", **({"quantization_config": own} if own else {})}
        )
        _reading(place, lambda: dequantise(model, expanded=own is not None))
        return self._saved(
            place, model, f"quantised ({method}); what is measured are its dequantised weights"
        )

    def _adapted(self, place: Place, earlier: Sequence[Checkpoint]) -> Checkpoint:
        """An adapter on the checkpoint that it was trained on, merged into it."""
        name, folder = place.name, place.folder
        content = read_json_object(folder / ADAPTER, CONFIG_BYTES)
        named = str(content.get("base_model_name_or_path") or "")
        kind = str(content.get("peft_type") or "adapter")
        if not earlier:
            raise RunError(
                f"{name}: {folder} holds an adapter ({kind}), not a model; give the model that it "
                f"was trained on{f' ({named})' if named else ''} as the first --stage, and the "
                "adapter as the next one"
            )
        under, found = _under(named, earlier)
        if not self.allow_bin and not any(folder.glob("adapter_model*.safetensors")):
            raise RunError(
                f"{name}: {folder} holds its adapter as a pickle; save it with "
                "safe_serialization=True, or allow to open pickles without their code (--allow-bin)"
            )
        model, missing = self._load(
            replace(place, folder=under.weights),
            under.weights,
            {"dtype": getattr(torch, under.precision)},
            _class_under(content, under, folder),
        )
        brought = {each.partition("base_model.model.")[2] for each in _adapter_shapes(folder)}
        if lost := [each for each in missing if each not in brought]:
            raise RunError(
                f"{name}: neither {under.name} nor the adapter in {folder} holds {lost[0]}, which "
                "training drew at random and did not save; name its module in modules_to_save, or "
                "give the merged model: merge_and_unload().save_pretrained(OTHER)"
            )
        merged = _reading(place, lambda: _merged(model, folder, kind))
        note = f"an adapter ({kind}) on {under.name}, merged into it in {under.precision}"
        if not found:
            note += (
                f"; adapter_config.json names {named or 'no model'} as its base, which is none of "
                "the stages, so it is laid on the one before it"
            )
        made = self._saved(place, merged, note)
        return replace(made, under=named, on=under.name)

    def _whole(self, place: Place, source: Path, options: Mapping[str, Any]) -> PreTrainedModel:
        """The model in a folder, every parameter of which is in its files."""
        model, missing = self._load(place, source, options)
        if missing:
            raise RunError(
                f"{place.name}: {source} has no {missing[0]}, which its configuration asks for; "
                "give the folder of a whole model"
            )
        return model

    def _load(
        self,
        place: Place,
        source: Path,
        options: Mapping[str, Any],
        chosen: tuple[Any, Mapping[str, Any]] | None = None,
    ) -> tuple[PreTrainedModel, list[str]]:
        """The model in a folder, and the parameters that its files lack."""
        config = read_json_object(source / "config.json", CONFIG_BYTES)
        auto, more = chosen or (_class_of(config), {})
        size = sum(file.stat().st_size for file in _weight_files(source))
        memory.check(size, f"loading {place.name} ({source})")

        def load() -> tuple[PreTrainedModel, Mapping[str, Any]]:
            made: tuple[PreTrainedModel, Mapping[str, Any]] = auto.from_pretrained(
                str(source),
                local_files_only=True,
                use_safetensors=None if self.allow_bin else True,
                output_loading_info=True,
                **{**options, **more},
            )
            return made

        model, info = _reading(place, load)
        return model, sorted(info["missing_keys"])

    def _saved(self, place: Place, model: PreTrainedModel, note: str) -> Checkpoint:
        """The model as it is in memory, as a checkpoint."""
        weights = self._new_folder()
        _reading(place, lambda: _save(model, weights))
        for name in _KEPT:
            if (file := place.folder / name).is_file():
                (weights / name).write_bytes(file.read_bytes())
        notes = [*place.notes, *([f"{place.name}: {note}"] if note else [])]
        return whole_checkpoint(replace(place, notes=notes), weights)

    def _new_folder(self) -> Path:
        return self.workshop / f"{len(list(self.workshop.iterdir())):02d}"


def _plain(folder: Path) -> bool:
    return any(folder.glob("model*.safetensors")) or any(folder.glob("model*.safetensors.index.*"))


def _weight_files(folder: Path) -> list[Path]:
    return [*folder.glob("*.safetensors")] or [*folder.glob(BINS)]


def _class_of(config: Mapping[str, Any]) -> Any:
    """The class of transformers that a configuration names; never code of the folder's own."""
    import transformers

    named = config.get("architectures")
    found = (
        getattr(transformers, str(named[0]), None) if isinstance(named, list) and named else None
    )
    known = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if known else transformers.AutoModel


def _under(named: str, earlier: Sequence[Checkpoint]) -> tuple[Checkpoint, bool]:
    """The checkpoint that an adapter lies on, and whether its configuration names it."""
    for same in (_same_place, _same_last_part):
        if found := [each for each in earlier if same(named, each)]:
            return found[-1], True
    # Another adapter with the same base lies where that one does.
    for each in earlier:
        if named and each.under == named:
            return next(one for one in earlier if one.name == each.on), False
    return earlier[-1], False


def _same_place(named: str, checkpoint: Checkpoint) -> bool:
    if not named:
        return False
    address = checkpoint.address.removeprefix("hf://")
    same = named in (checkpoint.address, address, address.partition("@")[0])
    return same or Path(named).expanduser().resolve() in (
        checkpoint.given.resolve(),
        checkpoint.folder.resolve(),
    )


def _same_last_part(named: str, checkpoint: Checkpoint) -> bool:
    known = {checkpoint.given.resolve().name, checkpoint.address.partition("@")[0]}
    last = {each.rstrip("/").rpartition("/")[2].casefold() for each in known}
    return bool(named) and named.rstrip("/").rpartition("/")[2].casefold() in last


def _class_under(
    adapter: Mapping[str, Any], under: Checkpoint, folder: Path
) -> tuple[Any, Mapping[str, Any]] | None:
    """For an adapter of a classifier on another model, its class with the adapter's outputs."""
    import transformers

    if adapter.get("task_type") != "SEQ_CLS" or "SequenceClassification" in under.architecture:
        return None
    heads = [
        shape
        for name, shape in _adapter_shapes(folder).items()
        if len(shape) == 2 and not {"lora_A", "lora_B"} & set(name.split("."))
    ]
    return transformers.AutoModelForSequenceClassification, (
        {"num_labels": heads[-1][0]} if heads else {}
    )


def _adapter_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of an adapter; none if they are pickled."""
    headers = map(read_header, sorted(folder.glob("adapter_model*.safetensors")))
    return {name: facts.shape for each in headers for name, facts in each.tensors.items()}


def _merged(model: PreTrainedModel, folder: Path, kind: str) -> PreTrainedModel:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        # Where the stage added tokens, the adapter's folder holds all rows of the embeddings.
        if (rows := _rows_saved(folder)) is not None:
            model.resize_token_embeddings(rows)
        adapted = PeftModel.from_pretrained(model, str(folder), local_files_only=True)
        if not hasattr(adapted, "merge_and_unload"):
            raise ValueError(f"an adapter of kind {kind} cannot be merged into weights")
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    return merged


def _rows_saved(folder: Path) -> int | None:
    ends = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
    found = (shape[0] for name, shape in _adapter_shapes(folder).items() if name.endswith(ends))
    return next(found, None)


def _dtype_of_pickles(folder: Path) -> torch.dtype:
    """The dtype of most weights in pickles, none of which is read."""
    sizes: dict[torch.dtype, int] = {}
    for file in folder.glob(BINS):
        for tensor in torch.load(file, map_location="meta", weights_only=True).values():
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else torch.float32


def _save(model: PreTrainedModel, folder: Path) -> None:
    from transformers import GenerationConfig

    # That of a foreign folder may be one that transformers reads, but refuses to write.
    model.generation_config = GenerationConfig()
    # Without it, what was merged at loading would be split again.
    model.save_pretrained(folder, save_original_format=False)


def _reading(place: Place, work: Callable[[], T]) -> T:
    """Something that transformers or PEFT do, any error of which names the folder.

    Raises:
        RunError: It failed, for whatever reason.
    """
    try:
        # Building a model draws initial values; the caller's random numbers stay as they were.
        with _quiet(), no_panic(), torch.random.fork_rng(devices=[]):
            return work()
    except Exception as error:  # a foreign folder can make transformers raise anything
        if memory.ran_out(error):
            raise
        raise RunError(
            f"{place.name}: {place.folder} cannot be loaded ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]})"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own tables and progress bars: what matters is told by this package."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
