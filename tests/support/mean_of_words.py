"""A text classifier that is replayed in a second: layers over the mean of pretrained vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

WIDTH = 64


def word_vectors(folder: Path) -> Tensor:
    """(V, 64) an encoder's word vectors along their principal directions, of unit variance.

    Args:
        folder: Of the pretrained encoder.
    """
    stored = load_file(folder / "model.safetensors")
    name = next(name for name in stored if name.endswith("word_embeddings.weight"))
    vectors = stored[name].float()
    vectors = vectors - vectors.mean(0)
    values, directions = torch.linalg.eigh(vectors.T @ vectors)
    vectors = vectors @ directions[:, values.argsort(descending=True)[:WIDTH]]
    return vectors / vectors.std()


def mean_of_words(folder: Path, classes: Sequence[str]) -> nn.Module:
    """A BERT of one layer whose attention begins as a mean over words.

    Word vectors stay as they are; everything behind them is trained.

    Args:
        folder: Of the pretrained encoder.
        classes: Names of the outputs.
    """
    from transformers import BertConfig, BertForSequenceClassification

    vectors = word_vectors(folder)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(vectors),
            hidden_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=WIDTH,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            id2label=dict(enumerate(classes)),
            label2id={name: number for number, name in enumerate(classes)},
            attn_implementation="eager",
        )
    )
    embeddings, attention = model.bert.embeddings, model.bert.encoder.layer[0].attention
    with torch.no_grad():
        embeddings.word_embeddings.weight.copy_(vectors)
        for own in (embeddings.position_embeddings, embeddings.token_type_embeddings):
            own.weight.zero_()
        # Scores of zero weigh all words alike.
        for own in (attention.self.query, attention.self.key):
            own.weight.zero_()
            own.bias.zero_()
        for own in (attention.self.value, attention.output.dense, model.bert.pooler.dense):
            own.weight.copy_(torch.eye(WIDTH))
            own.bias.zero_()
    embeddings.requires_grad_(False)
    return model
