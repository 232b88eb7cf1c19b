"""What the tasks on ``transformers`` models share: the model, the tokenizer, batches of texts.

Models are made from a plain JSON configuration by ``transformers``' own classes: nothing is ever
fetched from a hub, and no code that a configuration names is run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from stagelens.compute.unallocated import parameters_on_meta
from stagelens.contracts import GENERATION, Example, Task, TaskError

from .adapters import with_adapter
from .model_config import checked_attention, own_config, plain_config, with_special_floats
from .model_config import model_facts as model_facts
from .quantising import quantise
from .tokenizer import KeptTokenizer, tokenizer_assets

Batch = dict[str, Tensor]
"""Keyword arguments of a ``transformers`` model, each (B, T) or (B,)."""

IGNORED = -100
"""In ``labels``: no loss here, by the convention of ``transformers``."""

_OFFSET_POSITIONS = frozenset(
    {"camembert", "data2vec-text", "longformer", "mpnet", "roberta", "roberta-prelayernorm"}
    | {"xlm-roberta", "xlm-roberta-xl", "xmod", "ibert", "esm"}
)
"""Model types whose positions start after the padding id, so that they hold fewer than they say."""


class TransformerTask(Task):
    """Base class of the tasks on ``transformers`` models.

    Args:
        model: The configuration of the model, as plain JSON with its ``model_type``.
        tokenizer: A fast tokenizer; its files become the task's assets.
        assets: Those files, where there is no tokenizer object: as a run folder returns them.
        max_length: Longer texts are cut to so many tokens; None for what model and tokenizer take.
        attention: transformers' ``attn_implementation``; None for its default.
        make_model: Builds a module of your own from the configuration. It is code, so no run
            folder can name it: give the task again when you open the run.
    """

    input_kind: ClassVar[Literal["image", "text"]] = "text"
    _auto_class: ClassVar[str]

    def __init__(
        self,
        model: Mapping[str, Any],
        tokenizer: Any = None,
        assets: Mapping[str, bytes] | None = None,
        max_length: int | None = None,
        attention: str | None = None,
        make_model: Callable[[Mapping[str, Any]], nn.Module] | None = None,
    ) -> None:
        self.model = plain_config(model)
        self.attention = checked_attention(attention)
        self.make_model = make_model
        if tokenizer is not None:
            assets = tokenizer_assets(tokenizer)
        self._assets = dict(assets or {})
        self._tokenizer = KeptTokenizer(self._assets) if self._assets else None
        if max_length is not None and (not isinstance(max_length, int) or max_length < 2):
            raise TaskError(
                f"max_length={max_length!r}; give a whole number of at least 2, or None"
            )
        self.max_length = max_length
        self._check_vocabulary()

    @property
    def config(self) -> dict[str, Any]:
        """See :class:`~stagelens.contracts.Task`."""
        return {
            "model": self.model,
            "max_length": self.max_length,
            "attention": self.attention,
        }

    @property
    def assets(self) -> Mapping[str, bytes]:
        """The tokenizer's files."""
        return self._assets

    def keep_generation(self, model: Any) -> None:
        """Keep how a model generates, for programs that read it once it is exported."""
        config = getattr(model, "generation_config", None)
        if config is not None and self._assets:
            self._assets[GENERATION] = config.to_json_string().encode()

    @property
    def tokenizer(self) -> KeptTokenizer:
        """The tokenizer.

        Raises:
            TaskError: The task was made without one.
        """
        if self._tokenizer is None:
            raise TaskError(
                f"this {self.name} task has no tokenizer, so it cannot read texts; make it with "
                "tokenizer=..."
            )
        return self._tokenizer

    def _check_vocabulary(self) -> None:
        size = self.model.get("vocab_size")
        if self._tokenizer is None or not isinstance(size, int):
            return
        # Otherwise the embedding fails in a forward pass, with an error that names no token.
        token, number = self._tokenizer.highest_id
        if number >= size:
            raise TaskError(
                f"the tokenizer does not fit the model: its token {token!r} has the id {number}, "
                f"but the model's vocabulary (vocab_size) has {size} entries; use the model's own "
                "tokenizer, or call model.resize_token_embeddings(len(tokenizer)) before training"
            )

    def build_model(self, config: Mapping[str, Any] | None = None) -> nn.Module:
        """The module of a stage's ``{"model", "attention", "quantised", "peft"}``.

        Args:
            config: The model's configuration and its attention implementation, by default the
                task's own; which layers are 4-bit, and the configuration of a LoRA adapter, by
                default none.

        Raises:
            TaskError: transformers cannot make such a model, or the adapter does not fit it.
        """
        config = {} if config is None else config
        attention = checked_attention(config.get("attention", self.attention))
        module = self._build(plain_config(config.get("model", self.model)), attention)
        if config.get("quantised"):
            quantise(module, config["quantised"])
        return with_adapter(module, config["peft"]) if config.get("peft") else module

    def build_empty(self, config: Mapping[str, Any] | None = None) -> nn.Module:
        """The module with parameters on the ``meta`` device; see :class:`Task`.

        One that code of the user's own makes has values, since that may compute with them.
        """
        usual = type(self).build_model is TransformerTask.build_model
        # Packing computes with values.
        if self.make_model is None and usual and not (config or {}).get("quantised"):
            # A class of transformers may compute with its initial values too.
            with suppress(TaskError), parameters_on_meta():
                module = self.build_model(config)
                if not any(buffer.is_meta for buffer in module.buffers()):
                    return module
        return self.build_model(config)

    def stage_config(self, model: nn.Module) -> dict[str, Any] | None:
        """What differs from the task's own model, and its adapter; see :class:`Task`."""
        # What code of the user's own makes of a configuration is not known.
        known = self.model if self.make_model is None else None
        return own_config(model, known, self.attention) or None

    def _build(self, own: dict[str, Any], attention: str | None) -> nn.Module:
        if self.make_model is not None:
            return self.make_model(own)
        import transformers

        auto = getattr(transformers, self._auto_class)
        given = with_special_floats(own)
        options = {key: value for key, value in given.items() if key != "model_type"}
        try:
            made = transformers.AutoConfig.for_model(own["model_type"], **options)
            chosen = {} if attention is None else {"attn_implementation": attention}
            dtype = made.dtype or torch.float32
            module: nn.Module = auto.from_config(made, dtype=dtype, **chosen)
        except Exception as error:  # whatever a foreign configuration makes transformers raise
            raise TaskError(
                f"transformers cannot make a {own['model_type']!r} model for {self.name} from the "
                f"recorded configuration ({type(error).__name__}: {error}); use the version of "
                "transformers that the run was recorded with, or give the task with make_model=..."
            ) from None
        return module

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """The loss that the model itself computes: ``model(**batch).loss``.

        Raises:
            TaskError: The batch has no labels to compute it from.
        """
        loss: Tensor | None = model(**batch).loss
        if loss is None:
            raise TaskError(
                "the model gave no loss, since the batch has no 'labels'; put them into the batch "
                "(task.batch makes such batches)"
            )
        return loss

    def evaluation_order(self, examples: Sequence[Example]) -> list[int]:
        """The longest texts first, by their characters, which are close enough to tokens here."""
        sizes = [characters(example.input) for example in examples]
        return sorted(range(len(sizes)), key=lambda number: -sizes[number])

    # Texts to batches

    @property
    def longest(self) -> int | None:
        """Most tokens of a text that model and tokenizer take; None if there is no limit."""
        if self.max_length is not None:
            return self.max_length
        config = self.model
        names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
        positions = next((config[n] for n in names if isinstance(config.get(n), int)), None)
        if positions is not None and config["model_type"] in _OFFSET_POSITIONS:
            positions -= int(config.get("pad_token_id") or 0) + 1
        limits = [n for n in (positions, self.tokenizer.longest) if n is not None and n > 0]
        return min(limits, default=None)

    @property
    def _pad_id(self) -> int:
        """What pads a batch: the id that the model knows as padding, if it knows one.

        It is masked from attention, so any id will do for a model that knows none.
        """
        known = self.model.get("pad_token_id")
        # -1 in a configuration says that there is none, and is no row of an embedding.
        if isinstance(known, int) and known >= 0:
            return known
        return self.tokenizer.special_id("pad_token", "eos_token", "unk_token") or 0

    @property
    def _start_id(self) -> int:
        """What stands for a text without any token, and before a first token to be predicted."""
        found = self.tokenizer.special_id("bos_token", "cls_token", "eos_token")
        return self._pad_id if found is None else found

    @property
    def special_ids(self) -> set[int]:
        """Tokens that frame texts and carry no content, as far as the tokenizer knows any."""
        names = ("bos_token", "cls_token", "sep_token", "eos_token", "pad_token")
        known = [self.tokenizer.special_id(name) for name in names]
        return {number for number in known if number is not None}

    def filler(self, name: str) -> int:
        """The token that stands for no word at all.

        Args:
            name: ``"padding"``, ``"mask"`` or ``"unknown"``.

        Raises:
            TaskError: The tokenizer has no such token.
        """
        if name == "padding":
            return self._pad_id
        found = self.tokenizer.special_id({"mask": "mask_token", "unknown": "unk_token"}[name])
        if found is None:
            raise TaskError(f"the tokenizer has no token {name!r} to fill a text with; use padding")
        return found

    def _padded(self, rows: Sequence[Sequence[int]]) -> Batch:
        """Rows of token ids as one batch, padded on the right.

        Positions then count from 0 in every row, which suits models of any kind: nothing is
        generated here, so texts need not end in the same column.
        """
        ids = filled(rows, self._pad_id)
        mask = filled([[1] * len(row) for row in rows], 0)
        return {"input_ids": ids, "attention_mask": mask}


def characters(value: Mapping[str, Any]) -> int:
    """Of all texts of an input, of which one may be a list of words."""
    return sum(
        len(each) if isinstance(each, str) else sum(len(str(word)) + 1 for word in each)
        for each in value.values()
        if each is not None
    )


def checked_texts(what: str, given: Sequence[str]) -> Sequence[str]:
    """Texts for a batch, of which there must be some.

    Raises:
        TaskError: There are none, or a single string stands for them.
    """
    if isinstance(given, str):  # else its letters would be taken for the texts
        raise TaskError(f"{what} is a single text; give a list of them")
    if not len(given):
        raise TaskError(f"{what} is empty; a batch needs at least one example")
    return given


def filled(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of numbers as (B, T), padded on the right with ``value``."""
    tensor = torch.full((len(rows), max(map(len, rows))), value, dtype=torch.int64)
    for number, row in enumerate(rows):
        tensor[number, : len(row)] = torch.tensor(row)
    return tensor


def unpadded(batch: Batch) -> list[list[int]]:
    """The token ids of every row of a batch, without padding."""
    ids = batch["input_ids"]
    mask = batch.get("attention_mask", torch.ones_like(ids)) != 0
    return [row[own].tolist() for row, own in zip(ids, mask, strict=True)]
