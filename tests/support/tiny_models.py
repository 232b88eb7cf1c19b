"""Every architecture of the installed transformers, made small by rules on names of settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto

import stagelens
from stagelens.runs.states import load_into
from tests.support.checkpoints import changed, save
from tests.support.small_texts import bert_tokenizer, gpt_tokenizer

VOCABULARY = 330
"""At least what the small tokenizers of the tests hold."""

LISTS = {
    "causal": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", transformers.AutoModelForCausalLM),
    "classifier": (
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        transformers.AutoModelForSequenceClassification,
    ),
}

_RULES: tuple[tuple[str, Any], ...] = (
    (r"vocab_size|vocabulary_size|n_vocab", VOCABULARY),
    (r"vocab_size_per_layer_input|pad_vocab_size_multiple|type_vocab_size", None),
    (r"(num_|n_|encoder_|decoder_|num_encoder_|num_decoder_)(hidden_)?layers?", 2),
    (r"(n|num|encoder|decoder)(_attention)?_heads?|num_(encoder|decoder)_attention_heads", 4),
    (r"num_key_value_heads|num_kv_heads|n_head_kv", 2),
    (r"head_dim|d_kv|kv_channels|attention_head_size|global_head_dim", 8),
    (
        r"hidden_size|d_model|n_embd|dim|emb_dim|embed_dim|embedding_size|model_dim|n_embed"
        r"|dim_model|word_embed_proj_dim|lru_width|attention_hidden_size|hidden_dim|d_embed",
        32,
    ),
    (
        r".*intermediate_size.*|ffn_dim|d_ff|dim_ff|n_inner|(encoder|decoder)_ffn_dim|ffn_hidden_size"
        r"|feed_forward_size|mlp_hidden_size",
        32,
    ),
    (r"num_(local_|routed_)?experts|n_routed_experts|moe_num_experts", 4),
    (r"num_experts_per_tok|moe_k|top_k_experts|moe_topk", 2),
    (r"n_group|topk_group|n_shared_experts|num_shared_experts", 1),
    (r"first_k_dense_replace|num_nextn_predict_layers|mtp_num_layers", 0),
    (r"[qkvo]_lora_rank", 16),
    (r"qk_(rope|nope)_head_dim|v_head_dim", 8),
    (r"(max_position_embeddings|n_positions|n_ctx|max_seq_len|seq_length|max_sequence_length)", 64),
    (r"pad_token_id|(decoder_)?pad_token_id", 0),
    (r"[be]os_token_id|decoder_start_token_id", 1),
    (r"rotary_dim", 4),
    (r"mamba_n_heads|mamba_num_heads", 4),
    (r"mamba_d_head|mamba_head_dim", 16),
    (r"mamba_expand|expand", 2),
    (r"attn_layer_period", 2),
    (r"attn_layer_offset", 1),
)
"""Names of settings, as whole, to their small values; the first that fits counts, and None leaves
the default."""

_OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "falcon_h1": {"mamba_d_ssm": 64},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"num_hidden_layers": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "reformer": {"is_decoder": True},
    "xmod": {"default_language": "en_XX"},
}
"""What a kind of model needs beside."""


def architectures(which: str) -> list[str]:
    """The kinds of models in a list of transformers, sorted."""
    return sorted(getattr(modeling_auto, LISTS[which][0]))


def _small(config: Any) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        try:
            inner = getattr(config, name, None)
        except AttributeError:  # it differs between layers
            continue
        if isinstance(inner, transformers.PretrainedConfig):
            options[name] = _small(inner)
        elif isinstance(value, int | None) and not isinstance(value, bool):
            found = next((v for rule, v in _RULES if re.fullmatch(rule, name)), None)
            # A dimension that follows from others is left to do so.
            derived = name == "head_dim" and hasattr(config, "qk_rope_head_dim")
            unset = value is None and not re.fullmatch(
                r".*_token_id|head_dim|num_key_value.*", name
            )
            if found is not None and not unset and not derived:
                options[name] = found
    if hasattr(config, "kv_lora_rank") and "num_key_value_heads" in options:
        options["num_key_value_heads"] = options["num_attention_heads"]  # they share a latent
    kinds = getattr(config, "layer_types", None)
    if isinstance(kinds, list | tuple) and "num_hidden_layers" in options:
        # As many as it takes to have a layer of each kind.
        options["num_hidden_layers"] = max(2, *(list(kinds).index(kind) + 1 for kind in set(kinds)))
    return options


def tiny(kind: str, which: str, seed: int = 0, **options: Any) -> nn.Module:
    """A small model of a kind, with random values, for evaluation."""
    base = transformers.AutoConfig.for_model(kind)
    made: Mapping[str, Any] = {**_small(base), **_OWN.get(kind, {}), **options}
    config = type(base)(**made)
    torch.manual_seed(seed)
    model: nn.Module = LISTS[which][1].from_config(config, dtype=torch.float32)
    return model.eval()


class Unbuilt(Exception):
    """The rules make no small model of this kind that answers; says why."""


def assembled_alike(kind: str, which: str, folder: Path) -> list[str]:
    """Assemble two states of a small model, and compare the run's models with from_pretrained's.

    Returns:
        The run's problems.

    Raises:
        Unbuilt: There is no such small model.
        AssertionError: A parameter differs, or answers do.
    """
    tokenizer = gpt_tokenizer() if which == "causal" else bert_tokenizer()
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 1]])  # ends as texts of encoder-decoders have to
    try:
        model = tiny(kind, which)
        with torch.no_grad():
            model(input_ids=ids)
        folders = {
            name: save(changed(model, seed), folder / name, tokenizer)
            for seed, name in enumerate(("base", "sft"))
        }
    except Exception as error:  # whatever a size that does not fit makes transformers raise
        raise Unbuilt(f"{type(error).__name__}: {' '.join(str(error).split())[:150]}") from None
    run = stagelens.assemble(folders, folder / "run")
    for name, state in (("base", run.last.start()), ("sft", run.last.end())):
        own = run.task.build_model().eval()
        load_into(own, state.model)
        expected = type(model).from_pretrained(folders[name]).eval()  # type: ignore[attr-defined]
        parameters = dict(own.named_parameters())
        for key, parameter in expected.named_parameters():
            assert torch.equal(parameters[key], parameter), f"{name}: {key}"
        with torch.no_grad():
            one, other = own(input_ids=ids).logits, expected(input_ids=ids).logits
        # Where tensors lie in memory may change the last bit.
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    return run.problems
