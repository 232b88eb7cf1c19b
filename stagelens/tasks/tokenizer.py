"""A tokenizer as a run folder keeps it: made again from bytes alone, without any code.

``tokenizer.json`` is what the ``tokenizers`` library reads and writes; ``tokenizer_config.json``
holds the facts that it lacks, under the names that ``transformers`` uses. So ``transformers`` can
read the two files as a tokenizer as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import tokenizers

from stagelens.compute.bounded import NoAnswer, bounded, no_panic
from stagelens.contracts import CHAT_TEMPLATE, Example, TaskError

T = TypeVar("T")

TOKENIZER, FACTS = "tokenizer.json", "tokenizer_config.json"
_SPECIAL = (
    *("bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "pad_token", "mask_token"),
)
READING = ("model", "normalizer", "pre_tokenizer", "post_processor")
"""Parts of a tokenizer that decide which ids a text of known tokens gets."""
_SETTINGS = ("version", "truncation", "padding")

# transformers writes int(1e30) for a tokenizer without a limit.
_UNLIMITED = 10**6
"""A ``model_max_length`` of this or more means that there is no limit."""

_UNKNOWN = 8
"""Most unknown pieces of a text that are named."""
PATIENCE = 30
"""Seconds for one text, and one more for every so many characters:"""
_CHARACTERS = 50_000


def tokenizer_assets(tokenizer: Any) -> dict[str, bytes]:
    """The files from which a fast tokenizer of ``transformers`` is made again.

    Args:
        tokenizer: With a ``backend_tokenizer`` of the ``tokenizers`` library.

    Raises:
        TaskError: It has none (a "slow" tokenizer, written in Python).
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise TaskError(
            f"tokenizer {type(tokenizer).__name__} is a slow one, written in Python, which a run "
            "folder cannot keep; give a fast one, as AutoTokenizer.from_pretrained(...) makes for "
            "most models, or convert it: PreTrainedTokenizerFast(tokenizer_object="
            "transformers.convert_slow_tokenizer.convert_slow_tokenizer(tokenizer))"
        )
    # A copy, because the last call of the tokenizer may have left padding and truncation on,
    # which are not to be kept, but are not ours to switch off either.
    own = tokenizers.Tokenizer.from_str(backend.to_str())
    own.no_padding()
    own.no_truncation()
    facts: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name in _SPECIAL:
        token = getattr(tokenizer, name, None)
        if token is not None:
            facts[name] = str(token)
    facts["model_input_names"] = list(tokenizer.model_input_names)
    facts["padding_side"] = tokenizer.padding_side
    if tokenizer.model_max_length < _UNLIMITED:
        facts["model_max_length"] = int(tokenizer.model_max_length)
    template = getattr(tokenizer, "chat_template", None)
    return {
        # Named templates, of which there are several, are not kept: tools take the one there is.
        **({CHAT_TEMPLATE: template.encode()} if isinstance(template, str) else {}),
        TOKENIZER: own.to_str().encode(),
        # Sorted, because a run recognises its task by the digests of its assets.
        FACTS: (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode(),
    }


class TextError(TaskError):
    """A text of a batch cannot be made into tokens.

    Args:
        number: Of the text, from 0.
        why: The message continues "row 0 of the batch ...".
    """

    def __init__(self, number: int, why: ValueError) -> None:
        super().__init__(f"row {number} of the batch {why}")
        self._number, self._why = number, why

    def of(self, examples: Sequence[Example]) -> TaskError:
        """The same about the example whose text it is."""
        return TaskError(f"example {examples[self._number].example_id!r} {self._why}")


@dataclass(frozen=True)
class Encoded:
    """One text as tokens.

    Attributes:
        ids: (T,) token ids.
        types: (T,) segment ids, as BERT's ``token_type_ids``.
        put: (T,) 1 for what the tokenizer adds around the text, 0 for the text itself.
        words: (T,) the number of the word that a token is part of, -1 for what is added; empty
            where the text was not given as words.
    """

    ids: list[int]
    types: list[int]
    put: list[int]
    words: list[int] = field(default_factory=list)

    @property
    def put_before(self) -> int:
        """How many tokens the tokenizer adds before the text."""
        return _leading(self.put)

    def cut(self, length: int) -> Encoded:
        """At most ``length`` tokens: cuts the end of the text, not what was added after it."""
        if len(self.ids) <= length:
            return self
        # At least one token is left before what was added behind.
        behind = min(_leading(self.put[::-1]), length - 1)
        first, last = length - behind, len(self.ids) - behind
        rows = (self.ids, self.types, self.put, self.words)
        return Encoded(*([*row[:first], *row[last:]] for row in rows))


def _leading(put: list[int]) -> int:
    return next((number for number, own in enumerate(put) if not own), len(put))


class KeptTokenizer:
    """A tokenizer made from its assets.

    Attributes:
        facts: The content of ``tokenizer_config.json``.
        longest: Its ``model_max_length``; None for no limit.

    Raises:
        TaskError: An asset is missing, or not what its name says.
    """

    def __init__(self, assets: Mapping[str, bytes]) -> None:
        for name in (TOKENIZER, FACTS):
            if name not in assets:
                raise TaskError(
                    f"the task's assets lack {name}, so its tokenizer cannot be made; give the "
                    "assets of a task that has a tokenizer, or tokenizer=..."
                )
        self._digest = hashlib.sha256(assets[TOKENIZER]).hexdigest()
        try:
            with no_panic():
                self._backend = tokenizers.Tokenizer.from_str(assets[TOKENIZER].decode())
        except Exception as error:  # the library raises nothing narrower
            raise TaskError(f"asset {TOKENIZER} is not a tokenizer ({error}); restore it") from None
        try:
            self.facts: dict[str, Any] = dict(json.loads(assets[FACTS]))
        except (ValueError, TypeError) as error:
            raise TaskError(f"asset {FACTS} is not a JSON object ({error}); restore it") from None
        self.longest: int | None = self.facts.get("model_max_length")

    @cached_property
    def highest_id(self) -> tuple[str, int]:
        """The token with the highest id, and that id."""
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        return max(vocabulary.items(), key=lambda pair: pair[1])

    def moved_token(self, other: KeptTokenizer) -> tuple[str, int, int] | None:
        """The first token with another id in ``other``, and both ids; None if there is none.

        Tokens that only one of them has do not count: a stage may add some.
        """
        known = other._backend.get_vocab(with_added_tokens=True)
        own = self._backend.get_vocab(with_added_tokens=True)
        moved = [(n, token) for token, n in own.items() if known.get(token, n) != n]
        if not moved:
            return None
        number, token = min(moved)
        return token, number, known[token]

    def tokens_beyond(self, other: KeptTokenizer) -> dict[str, int]:
        """Tokens that ``other`` does not have, with their ids, in the order of these."""
        known = other._backend.get_vocab(with_added_tokens=True)
        own = self._backend.get_vocab(with_added_tokens=True)
        beyond = [(number, token) for token, number in own.items() if token not in known]
        return {token: number for number, token in sorted(beyond)}

    def differing(self, other: KeptTokenizer) -> list[str]:
        """Keys of ``tokenizer.json`` and ``tokenizer_config.json`` in which two differ."""
        parts = tuple(json.loads(each._backend.to_str()) for each in (self, other))
        return [
            key
            for one, two in (parts, (self.facts, other.facts))
            for key in dict.fromkeys([*one, *two])
            if key not in _SETTINGS and one.get(key) != two.get(key)
        ]

    def special_id(self, *names: str) -> int | None:
        """Id of the first of these special tokens (``"bos_token"``) that exists; else None."""
        for name in names:
            token = self.facts.get(name)
            number = None if token is None else self._backend.token_to_id(token)
            if number is not None:
                return int(number)
        return None

    def encode(self, text: str, *, special: bool = True) -> Encoded:
        """A text as tokens, with what the tokenizer adds around it unless ``special`` is False.

        Raises:
            ValueError: The tokenizer fails on it, or takes too long; the message continues
                "example 'x' ...".
        """
        found = self._encoded(text, len(text), special)
        return Encoded(found.ids, found.type_ids, found.special_tokens_mask)

    def unknown_note(self, text: str) -> str:
        """Which pieces of a text it has no token for, each once, in words; empty where none.

        Raises:
            ValueError: As in :meth:`encode`.
        """
        pieces = list(dict.fromkeys(text[start:end] for start, end in self.unknown_spans(text)))
        if not pieces:
            return ""
        more = len(pieces) - _UNKNOWN
        words = ", ".join(f"“{piece}”" for piece in pieces[:_UNKNOWN])
        return f"unknown to the tokenizer, so all alike to the model: {words}" + (
            f" and {more:,} more" if more > 0 else ""
        )

    def unknown_spans(self, text: str) -> list[tuple[int, int]]:
        """Where pieces of a text begin and end for which there is no token, in its characters.

        A model reads all of them as one and the same token. Tokenizers that fall back to bytes know
        every text.

        Raises:
            ValueError: As in :meth:`encode`.
        """
        number = self.special_id("unk_token")
        if number is None:
            return []
        found = self._encoded(text, len(text), False)
        return [span for id, span in zip(found.ids, found.offsets, strict=True) if id == number]

    def encode_words(self, words: Sequence[str]) -> Encoded:
        """Words as tokens, each of which belongs to one word, with what is added around a text.

        Raises:
            ValueError: As in :meth:`encode`.
        """
        found = self._encoded(list(words), sum(map(len, words)), True)
        numbers = [-1 if word is None else word for word in found.word_ids]
        return Encoded(found.ids, found.type_ids, found.special_tokens_mask, numbers)

    def _encoded(self, text: str | list[str], characters: int, special: bool) -> Any:
        try:
            return self._within(
                # Of one text: alone among the library's calls, those of batches release the lock.
                lambda: self._backend.encode_batch(
                    [text],
                    is_pretokenized=isinstance(text, list),
                    add_special_tokens=special,
                )[0],
                PATIENCE + characters // _CHARACTERS,
            )
        except NoAnswer as error:
            raise ValueError(
                f"cannot be made into tokens: the tokenizer {error}; leave the text out, or use "
                "the tokenizer that the model was trained with"
            ) from None

    def decode(self, ids: list[int], *, special: bool = True) -> str:
        """The text of some tokens; special tokens are left out unless ``special``.

        Raises:
            TaskError: The tokenizer fails on them, or takes too long.
        """
        return self._decoded([ids], special)[0]

    def pieces(self, ids: list[int]) -> list[str]:
        """The text of each token in its place; together they are roughly the text.

        Raises:
            TaskError: The tokenizer fails on them, or takes too long.
        """
        single = self._decoded([[own] for own in ids], True)
        # A token can begin with a space that is only decoded after another token.
        pairs = self._decoded(
            [ids[max(place - 1, 0) : place + 1] for place in range(len(ids))], True
        )
        pieces = []
        for before, alone, both in zip(["", *single], single, pairs, strict=False):
            pieces.append(both[len(before) :] if both.startswith(before) else alone)
        return pieces

    def _decoded(self, rows: list[list[int]], special: bool) -> list[str]:
        try:
            return self._within(
                lambda: self._backend.decode_batch(rows, skip_special_tokens=not special),
                PATIENCE + sum(map(len, rows)) // _CHARACTERS,
            )
        except NoAnswer as error:
            raise TaskError(
                f"tokens cannot be made into text: the tokenizer {error}; use the tokenizer that "
                "the model was trained with"
            ) from None

    def _within(self, work: Callable[[], T], seconds: int) -> T:
        return bounded(work, seconds, self._digest)
