"""Conversations as the prompts that a chat model reads, by its tokenizer's own template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stagelens.contracts import TaskError


def chat_prompts(
    tokenizer: Any, conversations: Sequence[str | Sequence[Mapping[str, str]]], system: str = ""
) -> list[str]:
    """Prompts for an evaluation set, each ending where the model's turn begins.

    Args:
        tokenizer: A tokenizer of transformers with a chat template.
        conversations: What a user says, or messages with ``role`` and ``content``.
        system: A system prompt before each; none where it is empty.

    Raises:
        TaskError: The tokenizer has no chat template, or the template takes no such messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise TaskError(
            "the tokenizer has no chat template; give the one of a chat model, or plain prompts"
        )
    prompts = []
    for number, given in enumerate(conversations):
        said = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
        messages = [*([{"role": "system", "content": system}] if system else []), *said]
        try:
            prompt = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program, and raises what it likes
            raise TaskError(
                f"the chat template does not take conversation {number} "
                f"({type(error).__name__}: {error})"
            ) from None
        prompts.append(str(prompt))
    return prompts
