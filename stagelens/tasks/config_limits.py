"""Limits on what a model's configuration asks for, before anything is made of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stagelens.contracts import TaskError

MOST_LABELS = 50_000
"""More take transformers minutes; the largest set of classes in use has about 22,000."""

_MOST_MODULES = 10_000
"""More layers, heads or experts than any model has."""

_LABELS = ("id2label", "label2id", "num_labels")
_MODULES = re.compile(r"layers?$|blocks?$|depths?$|heads$|experts$|stages$|stacks$")


def check_counts(config: Mapping[str, Any]) -> None:
    """Refuse a configuration that would make transformers build without end.

    Args:
        config: As ``config.json`` holds it, with configurations of parts in it.

    Raises:
        TaskError: It has too many labels, or counts modules beyond all use; names the key.
    """
    for key, value in config.items():
        found, most = value, None
        if key in _LABELS:
            most, found = MOST_LABELS, len(value) if isinstance(value, Mapping) else value
        elif isinstance(value, Mapping):
            check_counts(value)
        elif _MODULES.search(str(key)):
            most = _MOST_MODULES
        if most is None:
            continue
        for count in found if isinstance(found, list | tuple) else [found]:
            if isinstance(count, int) and count > most:
                raise TaskError(
                    f"the model's configuration has {key} {_shown(count)}, and at most {most:,} "
                    "can be built; correct it"
                )


def _shown(count: int) -> str:
    return f"{count:,}" if count < 10**15 else "of more than 15 digits"
