"""What a checkpoint that was exported from a run says of itself. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from stagelens import __version__
from stagelens.contracts import StageLensError
from stagelens.estimators.stage_trust import StageTrust

ORIGIN = "stagelens_export.json"


class ExportFacts(BaseModel):
    """What an exported checkpoint says of itself, in :data:`ORIGIN`.

    Attributes:
        run: Name of the run.
        run_digest: Of the recorded training.
        model: ``final``, ``after:STAGE`` or ``without:STAGE``.
        estimator: How a model without a stage was obtained; empty for recorded ones.
        settings: Of the estimator.
        trust: What is known of a model without a stage.
        files: Name to sha256 of every file of weights.
        version: Of StageLens.
    """

    model_config = ConfigDict(frozen=True)

    run: str
    run_digest: str
    model: str
    estimator: str = ""
    settings: dict[str, Any] = {}
    trust: StageTrust | None = None
    files: dict[str, str] = {}
    version: str = __version__


def exported(folder: Path) -> ExportFacts | None:
    """What a checkpoint says of itself; None where it was not exported from a run.

    Raises:
        StageLensError: Its description is damaged.
    """
    path = folder / ORIGIN
    if not path.is_file():
        return None
    try:
        return ExportFacts.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StageLensError(f"{path} is damaged ({error}); export the model again") from None
