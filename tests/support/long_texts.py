"""Evaluation sets of language models as people have them: many lengths, shared beginnings."""

from __future__ import annotations

from typing import Any

import numpy as np
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from stagelens.contracts import Example
from stagelens.tasks import CausalLM
from tests.support.small_texts import made

WORDS = 1_000
LONGEST = 1_024


def language_model(hidden: int = 128, layers: int = 4) -> tuple[CausalLM, Any]:
    """A Llama with random values, whose tokens are the words ``w1``, ``w2``, ..."""
    # No word begins with what ends a text: an added token is found inside of words too.
    own = Tokenizer(
        models.WordLevel({"<s>": 0, **{f"w{n}": n for n in range(1, WORDS)}}, unk_token="<s>")
    )
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, eos_token="<s>", bos_token="<s>", unk_token="<s>"
    )
    config = transformers.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=2 * LONGEST,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = made(transformers.AutoModelForCausalLM, config, attention="sdpa")
    return CausalLM.from_model(model, tokenizer), model


def words(random: np.random.Generator, count: int) -> str:
    """So many words, which are as many tokens."""
    return " ".join(f"w{n}" for n in random.integers(1, WORDS, count))


def lengths(random: np.random.Generator, count: int, median: float, sigma: float) -> np.ndarray:
    """Log-normal numbers of tokens, as those of prompts and answers nearly are."""
    found = np.exp(np.log(median) + sigma * random.standard_normal(count))
    return np.clip(np.rint(found), 1, LONGEST).astype(int)


def texts(count: int, median: float = 60, sigma: float = 0.8, seed: int = 0) -> list[Example]:
    """Prompts with one completion each, of log-normal lengths."""
    random = np.random.default_rng(seed)
    both = lengths(random, count, median, sigma), lengths(random, count, median / 6, sigma)
    return [
        Example(str(n), {"prompt": words(random, prompt), "completion": words(random, answer)})
        for n, (prompt, answer) in enumerate(zip(*both, strict=True))
    ]


def choices(
    questions: int, prefix: int = 512, answers: int = 4, median: float = 40, seed: int = 0
) -> list[Example]:
    """Questions behind one few-shot prefix, with several answers to each to choose from."""
    random = np.random.default_rng(seed)
    shown = words(random, prefix)
    sizes = lengths(random, questions, median, 0.6)
    found = []
    for number, size in enumerate(sizes):
        prompt = f"{shown} {words(random, size)}"
        found += [
            Example(f"{number}-{n}", {"prompt": prompt, "completion": words(random, length)})
            for n, length in enumerate(lengths(random, answers, 5, 0.6))
        ]
    return found
