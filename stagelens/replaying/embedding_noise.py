"""NEFTune: noise on the embeddings of a transformers model while it trains.

The noise is drawn from torch's generator, whose state is recorded before every pass. So a replay
with transformers' own hook draws the recorded noise again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

_HOOK = "neftune_post_forward_hook"


def add_noise(model: nn.Module, alpha: float) -> None:
    """Add noise of this alpha to a model's embeddings in training mode; does so only once."""
    if noise_of(model) is None:
        embeddings: Any = _without_adapter(model).get_input_embeddings()
        embeddings.neftune_noise_alpha = alpha
        embeddings.register_forward_hook(_transformers_hook())


def noise_of(model: nn.Module) -> float | None:
    """The alpha of the noise that a model's embeddings have; None without."""
    for module in model.modules():
        hooks = [getattr(hook, "__name__", "") for hook in module._forward_hooks.values()]
        if _HOOK in hooks:
            return float(module.neftune_noise_alpha)  # type: ignore[arg-type]
    return None


def _without_adapter(model: nn.Module) -> Any:
    # A PeftModel passes attributes on, but transformers asks the model inside for its embeddings.
    adapted = hasattr(model, "peft_config") and hasattr(model, "base_model")
    return model.base_model.model if adapted else model  # type: ignore[union-attr]


def _transformers_hook() -> Callable[..., Any]:
    try:
        from transformers.integrations.neftune import neftune_post_forward_hook
    except ImportError:  # where it was before transformers 5
        from transformers.trainer_utils import neftune_post_forward_hook
    return neftune_post_forward_hook
