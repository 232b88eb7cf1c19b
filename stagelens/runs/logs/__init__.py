"""Logs of evaluation harnesses and plain tables of scores, read without changing a number."""

from __future__ import annotations

import json
from pathlib import Path

from stagelens.contracts import SetError

from . import inspect_logs, lm_eval, plain
from .log import Log, Wanted

_LOOKED_AT = 1 << 20
"""Bytes of a file that are looked at to tell what it is."""


def read_log(path: str | Path, wanted: Wanted | None = None) -> Log:
    """Read a log, by what it is: of lm-evaluation-harness, of Inspect, or a plain table.

    Raises:
        SetError: It cannot be read, or is none of these.
        StageLensError: It is Inspect's, whose package is not installed.
    """
    path, wanted = Path(path), wanted or Wanted()
    if not path.is_file():
        raise SetError(f"{path} is not a file; give the log of one task and model")
    if path.suffix == ".eval":
        return inspect_logs.read(path, wanted)
    with open(path, "rb") as file:
        begin = file.read(_LOOKED_AT).decode("utf-8", "replace").lstrip("\ufeff \n\r\t")
    if path.suffix == ".json" and begin.startswith("{"):
        # The first keys of either; the whole may be large.
        if '"eval"' in begin and '"status"' in begin:
            return inspect_logs.read(path, wanted)
        if '"results"' in begin or '"lm_eval_version"' in begin:
            raise SetError(
                f"{path} holds means of a whole task, no scores of examples; run lm-eval with "
                "--log_samples, and give samples_TASK_DATE.jsonl"
            )
    if path.suffix == ".jsonl":
        try:
            first = json.loads(begin.partition("\n")[0])
        except ValueError:
            first = None  # the reader says what is wrong with it
        if (isinstance(first, dict) and lm_eval.is_log(first)) or (
            first is None and '"doc_id"' in begin and '"arguments"' in begin
        ):
            return lm_eval.read(path, wanted)
    return plain.read(path, wanted)
