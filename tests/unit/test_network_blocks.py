"""Blocks of a model: every tensor in one of them, named as people call them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from stagelens.analyses.network.block_table import Block
from stagelens.analyses.network.blocks import blocks_of, forward_order
from stagelens.contracts import Example
from stagelens.runs.states import model_tensors
from stagelens.tasks import CausalLM, ImageClassification, TextClassification
from stagelens.tasks.adapters import with_adapter
from tests.support.small_texts import bert, bert_tokenizer, gpt, gpt_tokenizer


def found(model: nn.Module) -> list[Block]:
    """Blocks in the order of the modules."""
    order = {path: number for number, (path, _) in enumerate(model.named_modules())}
    names = list(model_tensors(model))
    blocks = blocks_of(model, names, order)
    assert sorted(name for block in blocks for name in block.tensors) == sorted(names)
    return blocks


def kinds(blocks: Sequence[Block]) -> list[tuple[str, str]]:
    return [(block.name, block.kind) for block in blocks]


def test_a_transformer_has_attention_mlp_and_norms_by_layer() -> None:
    assert kinds(found(bert(bert_tokenizer()))) == [
        ("embedding", "embedding"),
        ("layer 0 attention", "attention"),
        ("layer 0 norms", "norm"),
        ("layer 0 MLP", "MLP"),
        ("layer 1 attention", "attention"),
        ("layer 1 norms", "norm"),
        ("layer 1 MLP", "MLP"),
        ("pooler", "head"),
        ("classifier", "head"),
    ]


def test_tied_weights_are_one_block_that_says_so() -> None:
    blocks = found(gpt(gpt_tokenizer()))
    first = blocks[0]
    assert first.name == "embedding and head, tied" and first.tied == ("lm_head.weight",)
    assert [name for name, _ in kinds(blocks)][-1] == "ln_f"


def test_a_plain_network_has_a_block_for_every_module_with_parameters() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.Flatten(),
        nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2),
    )  # fmt: skip
    blocks = found(model)
    assert kinds(blocks) == [
        ("convolution 1", "convolution"),
        ("norm", "norm"),
        ("convolution 2", "convolution"),
        ("linear", "linear"),
        ("head", "head"),
    ]
    # Running statistics are undone with the weights that they belong to; they are no parameters.
    assert set(blocks[1].tensors) > {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert blocks[1].size == 6


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.bn1(self.conv1(x))


class Residuals(nn.Module):
    """Named as torchvision names a ResNet; the head is registered first and used last."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3)
        self.layer1 = nn.Sequential(Residual(), Residual())
        self.layer2 = nn.Sequential(Residual())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer2(self.layer1(x)).mean((-1, -2)))


def test_blocks_stand_in_the_order_of_the_forward_pass() -> None:
    model = Residuals().eval()
    task = ImageClassification(["a", "b", "c"], (2, 4, 4))
    example = Example("x", {"image": np.zeros((4, 4, 2), dtype=np.float32)}, "a")
    order = forward_order(task, model, example)
    named = kinds(blocks_of(model, list(model_tensors(model)), order))
    assert named == [
        ("layer1 layer 0 convolution", "convolution"),
        ("layer1 layer 0 norms", "norm"),
        ("layer1 layer 1 convolution", "convolution"),
        ("layer1 layer 1 norms", "norm"),
        ("layer2 layer 0 convolution", "convolution"),
        ("layer2 layer 0 norms", "norm"),
        ("fc", "head"),
    ]


def test_an_adapter_is_in_the_block_that_it_changes() -> None:
    tokenizer = bert_tokenizer()
    own = bert(tokenizer)
    plain = {block.name for block in found(own)}
    config = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 2, "target_modules": ["query"]}
    adapted = found(with_adapter(own, config))
    assert {block.name for block in adapted} == plain
    (attention,) = (block for block in adapted if block.name == "layer 1 attention")
    assert any("lora_A" in name for name in attention.tensors)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (
            transformers.T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=12, num_heads=2,
                                  num_layers=2),
            ["embedding and head, tied", "encoder layer 0 attention", "encoder layer 1 MLP",
             "decoder layer 0 cross-attention"],
        ),
        (
            transformers.LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=12,
                                     num_hidden_layers=2, num_attention_heads=2,
                                     num_key_value_heads=2),
            ["embedding", "layer 1 attention", "layer 1 norms", "norm", "lm_head"],
        ),
        (
            transformers.ViTConfig(hidden_size=8, intermediate_size=12, num_hidden_layers=2,
                                   num_attention_heads=2, image_size=8, patch_size=4),
            ["embedding", "layer 0 attention", "layer 1 MLP"],
        ),
    ],
)  # fmt: skip
def test_other_architectures_are_told_apart_by_the_same_rules(
    config: transformers.PretrainedConfig, names: list[str]
) -> None:
    auto = transformers.AutoModelForCausalLM
    if config.is_encoder_decoder:
        auto = transformers.AutoModelForSeq2SeqLM
    elif config.model_type == "vit":
        auto = transformers.AutoModelForImageClassification
    own = [block.name for block in found(auto.from_config(config))]
    assert set(names) <= set(own) and len(set(own)) == len(own), own


def test_a_very_deep_model_has_whole_layers_as_blocks() -> None:
    blocks = found(bert(bert_tokenizer(), num_hidden_layers=40, hidden_size=2, intermediate_size=2))
    layers = [block for block in blocks if block.kind == "layer"]
    assert [block.name for block in layers][:2] == ["layer 0", "layer 1"] and len(layers) == 40


def test_forward_order_is_known_of_tasks_on_texts() -> None:
    tokenizer = bert_tokenizer()
    model = bert(tokenizer).eval()
    task = TextClassification.from_model(model, tokenizer)
    order = forward_order(task, model, Example("x", {"text": "a dog"}, "loud"))
    assert order["bert.encoder.layer.0"] < order["bert.encoder.layer.1"] < order["classifier"]
    pieces = gpt_tokenizer()
    language = gpt(pieces).eval()
    said = CausalLM.from_model(language, pieces)
    example = Example("x", {"prompt": "two", "completion": " four", "rejected": None})
    assert "lm_head" in forward_order(said, language, example)
