"""Which checkpoints have to be loaded by transformers before they can be compared, and why."""

from __future__ import annotations

from .architecture import Architecture
from .checkpoints import Checkpoint
from .loading import Loader


def as_in(final: Architecture, checkpoint: Checkpoint, loader: Loader) -> Checkpoint:
    """A checkpoint with the tensors that its model has in memory.

    Nothing is loaded where the files hold those already, up to their names.

    Args:
        final: The final model.
        checkpoint: The checkpoint as it was opened.
        loader: Loads it where that is needed.

    Raises:
        RunError: It cannot be loaded.
    """
    if not checkpoint.own and any(map(final.converts, checkpoint.tensors)):
        checkpoint = loader.as_loaded(checkpoint, "")
    if (odd := final.odd_one(checkpoint)) is not None:
        cast = str(
            checkpoint.config.get("dtype")
            or checkpoint.config.get("torch_dtype")
            or checkpoint.precision
        ).removeprefix("torch.")
        checkpoint = loader.as_loaded(
            checkpoint,
            f"{odd} is {str(checkpoint.tensors[odd].dtype).removeprefix('torch.')}, others are "
            f"not; all are cast to {cast}, as from_pretrained does",
            dtype=cast,
        )
    if (rows := final.most_rows(checkpoint)) is not None:
        had, kept = rows
        checkpoint = loader.as_loaded(
            checkpoint,
            f"the last {had - kept:,} of its {had:,} rows of the vocabulary are left out, as the "
            f"final model has {kept:,}",
            rows=kept,
        )
    return checkpoint
