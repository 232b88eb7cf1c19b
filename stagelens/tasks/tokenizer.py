"""A tokenizer as a run folder keeps it: made again from bytes alone, without any code.

``tokenizer.json`` is what the ``tokenizers`` library reads and writes; ``tokenizer_config.json``
holds the facts that it lacks, under the names that ``transformers`` uses. So ``transformers`` can
read the two files as a tokenizer as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import tokenizers

from stagelens.contracts import TaskError

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
    return {
        TOKENIZER: own.to_str().encode(),
        # Sorted, because a run recognises its task by the digests of its assets.
        FACTS: (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode(),
    }


@dataclass(frozen=True)
class Encoded:
    """One text as tokens.

    Attributes:
        ids: (T,) token ids.
        types: (T,) segment ids, as BERT's ``token_type_ids``.
        put: (T,) 1 for what the tokenizer adds around the text, 0 for the text itself.
    """

    ids: list[int]
    types: list[int]
    put: list[int]

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
        return Encoded(*([*row[:first], *row[last:]] for row in (self.ids, self.types, self.put)))


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
        try:
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
        """A text as tokens, with what the tokenizer adds around it unless ``special`` is False."""
        encoding = self._backend.encode(text, add_special_tokens=special)
        return Encoded(encoding.ids, encoding.type_ids, encoding.special_tokens_mask)

    def decode(self, ids: list[int], *, special: bool = True) -> str:
        """The text of some tokens; special tokens are left out unless ``special``."""
        return str(self._backend.decode(ids, skip_special_tokens=not special))

    def pieces(self, ids: list[int]) -> list[str]:
        """The text of each token in its place; together they are roughly the text."""
        pieces = []
        for place, own in enumerate(ids):
            alone = self.decode(ids[place - 1 : place]) if place else ""
            both = self.decode(ids[max(place - 1, 0) : place + 1])
            # A token can begin with a space that is only decoded after another token.
            pieces.append(both[len(alone) :] if both.startswith(alone) else self.decode([own]))
        return pieces
