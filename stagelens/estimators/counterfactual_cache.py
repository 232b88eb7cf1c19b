"""Where counterfactuals are kept in a run folder. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagelens.runs.run import Run, Stage
from stagelens.runs.schema import digest

from .registry import method_of


def cache_name(run: Run, stage: Stage, estimator: str, settings: Mapping[str, Any]) -> str:
    """What the files of a counterfactual begin with, within the run folder."""
    key = digest(method_of(estimator), run.digest, stage.name, estimator, dict(settings))[:32]
    return f"results/counterfactuals/{key}"


def is_cached(run: Run, stage: Stage, estimator: str) -> bool:
    """Whether the model without a stage is there, by an estimator without settings."""
    return run.files.inside(f"{cache_name(run, stage, estimator, {})}.json").is_file()
