"""Files that become evaluation sets."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stagelens.runs.sets.columns import SetColumns
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.sets.readers import read_set_file
from stagelens.runs.sets.writer import SetReport, write_set


def image(value: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def save(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def add(run: Path, source: Path, **options: Any) -> tuple[EvaluationSet, SetReport]:
    run.mkdir(exist_ok=True)
    report = write_set(run, None, "test", **read_set_file(source, SetColumns(**options)))
    return EvaluationSet.open(run, "test"), report
