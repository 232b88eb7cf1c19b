"""Models that a run keeps as results."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from safetensors.torch import load_file

from stagelens.runs.run import Run


def counterfactuals(run: Run) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Cached counterfactuals, by the name of their file."""
    for path in sorted((run.path / "results" / "counterfactuals").glob("*.safetensors")):
        yield path.name, load_file(path)
