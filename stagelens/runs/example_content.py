"""What identifies an example's input: equal for equal inputs, whatever the label."""

from __future__ import annotations

import hashlib

import numpy as np

from stagelens.contracts import Example


def content_digest(example: Example) -> str:
    """A digest of an input, without the label."""
    hasher = hashlib.sha256()
    for name, value in sorted(example.input.items()):
        if isinstance(value, np.ndarray):
            # Dtype and shape too: the same bytes can be another array.
            hasher.update(f"{name} {value.dtype} {value.shape}".encode())
            hasher.update(np.ascontiguousarray(value).data)
        else:
            # Texts may hold lone surrogates, which have no encoding.
            hasher.update(f"{name} {value!r}".encode(errors="backslashreplace"))
    return hasher.hexdigest()
