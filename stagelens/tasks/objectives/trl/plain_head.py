"""The head of TRL that computes log-probabilities without logits, by ordinary operations."""

from __future__ import annotations

from typing import Any


def add_plain_head(model: Any, *, temperature: float = 1.0, outputs: tuple[str, ...] = ()) -> None:
    """As :func:`~stagelens.tasks.objectives.trl.bare.add_fused_head`, in the model's own dtype.

    It takes the logits that the model returns, so it needs their memory, and torch can
    differentiate it twice. Before TRL 1.15 there is no such head, and this does nothing.

    Args:
        model: A causal language model.
        temperature: That logits are divided by.
        outputs: What is computed for each token beside its log-probability.
    """
    from trl.trainer import utils

    if not hasattr(utils, "add_fused_lm_head"):
        return
    own = model.forward

    def forward(
        *args: Any,
        fused_lm_head: bool = False,
        labels: Any = None,
        num_items_in_batch: Any = None,
        **inputs: Any,
    ) -> Any:
        if not fused_lm_head:
            given = {"labels": labels, "num_items_in_batch": num_items_in_batch}
            return own(*args, **inputs, **{n: v for n, v in given.items() if v is not None})
        passed = own(*args, **{**inputs, "use_cache": False})
        mask = labels[:, 1:] != IGNORED
        found = per_token(passed.logits[:, :-1] / temperature, labels[:, 1:], outputs)
        found = {name: value.masked_fill(~mask, 0) for name, value in found.items()}
        for name in found.keys() - {"log_probs", "entropy"}:
            found[name] = found[name].detach()
        auxiliary = getattr(passed, "aux_loss", None)
        return utils.FusedCausalLMOutput(**found, label_mask=mask, aux_loss=auxiliary)

    model.forward = forward


IGNORED = -100
"""In labels: no token to predict."""


def per_token(logits: Any, labels: Any, outputs: tuple[str, ...]) -> dict[str, Any]:
    """What TRL's head computes for each token, by name.

    Args:
        logits: (B, T, V).
        labels: (B, T) tokens; those to ignore are negative.
        outputs: Names beside ``log_probs``.
    """
    chances = logits.log_softmax(-1)
    known = labels.clamp(min=0)
    found = {"log_probs": chances.gather(-1, known[..., None]).squeeze(-1)}
    if "entropy" in outputs:
        found["entropy"] = -(chances.exp() * chances).sum(-1)
    if "log_sum_sq_probs" in outputs:
        found["log_sum_sq_probs"] = (2 * chances).logsumexp(-1)
    if "mean_logits" in outputs:
        found["mean_logits"] = logits.mean(-1)
    if "is_top1" in outputs:
        found["is_top1"] = logits.argmax(-1) == known
    return found
