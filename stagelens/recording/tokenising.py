"""What is a stage's own in its tokenizer."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from stagelens.contracts import Task, TaskError
from stagelens.runs.boundary_facts import Tokenising
from stagelens.tasks.tokenizer import FACTS, TOKENIZER, KeptTokenizer, tokenizer_assets


def tokenising(task: Task, tokenizer: Any) -> Tokenising | None:
    """How a stage's tokenizer differs from the run's.

    Args:
        task: The run's.
        tokenizer: The stage's, of ``transformers``; None where it is not known.

    Returns:
        None where there is nothing to compare: no tokenizer, or one that no run can keep.
    """
    if tokenizer is None or not {TOKENIZER, FACTS} <= task.assets.keys():
        return None
    try:
        own = KeptTokenizer(tokenizer_assets(tokenizer))
    except (TaskError, AttributeError):  # a slow one, or a processor of images
        return None
    known = KeptTokenizer(task.assets)
    return Tokenising(
        differs=known.differing(own),
        added=own.tokens_beyond(known),
        missing=known.tokens_beyond(own),
        chat_template=_digest(getattr(tokenizer, "chat_template", None)),
    )


def _digest(template: Any) -> str | None:
    """sha256 of a chat template: a text, or several by name."""
    if not template:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
