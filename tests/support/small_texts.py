"""Small tokenizers and transformers models, from scratch, for tests of tasks on texts."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, WordLevelTrainer

from stagelens.tasks import CausalLM, TextClassification

TEXTS = (
    "the cat sat on the mat",
    "a dog barked",
    "two and two make four",
    "the rain in the night was long and cold and kept the whole house awake until morning",
    "birds sing",
)
CLASSES = ("calm", "loud", "odd")


def bert_tokenizer(**options: Any) -> Any:
    """Whole words in small letters, between [CLS] and [SEP]."""
    own = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    own.normalizer = normalizers.BertNormalizer()
    own.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    own.train_from_iterator(TEXTS, WordLevelTrainer(special_tokens=special, show_progress=False))
    own.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=own,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        **options,
    )


def gpt_tokenizer(begin: str | None = None, **options: Any) -> Any:
    """Pieces of bytes as GPT-2 has them: no padding token, nothing around a text.

    Args:
        begin: A token that is put before every text, as Llama's tokenizers do.
        options: Further ones of the tokenizer.
    """
    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    trainer = BpeTrainer(
        vocab_size=330,
        special_tokens=[end, *([begin] if begin else [])],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    own.train_from_iterator(TEXTS, trainer)
    if begin is not None:
        own.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, 1)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, eos_token=end, bos_token=begin or end, **options
    )


def bert(
    tokenizer: Any,
    seed: int = 0,
    auto: Any = transformers.AutoModelForSequenceClassification,
    **options: Any,
) -> Any:
    """A classifier of :data:`CLASSES`, or another model that ``auto`` makes, with dropout."""
    config = transformers.BertConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "max_position_embeddings": 24,
            "id2label": dict(enumerate(CLASSES)),
            **options,
        }
    )
    return made(auto, config, seed)


def gpt(tokenizer: Any, seed: int = 0, **options: Any) -> Any:
    """A language model, with dropout."""
    config = transformers.GPT2Config(
        **{
            "vocab_size": len(tokenizer),
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 48,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            **options,
        }
    )
    return made(transformers.AutoModelForCausalLM, config, seed)


def made(auto: Any, config: Any, seed: int = 0, attention: str = "eager") -> Any:
    """A model, always the same one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config, attn_implementation=attention)
        with torch.no_grad():  # far enough from the initial values for predictions to differ
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def classification() -> tuple[TextClassification, Any]:
    """A task and its model."""
    tokenizer = bert_tokenizer()
    model = bert(tokenizer)
    return TextClassification.from_model(model, tokenizer), model


def language() -> tuple[CausalLM, Any]:
    """A task and its model."""
    tokenizer = gpt_tokenizer()
    model = gpt(tokenizer)
    return CausalLM.from_model(model, tokenizer), model
