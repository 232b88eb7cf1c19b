"""Inspect: ``.eval`` and JSON logs, read by the package itself, whose format they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stagelens.contracts import SetError, StageLensError

from .log import Better, Log, LogScorer, Wanted, checked_rows, number

TOOL, PACKAGE = "inspect", "inspect-ai"

_LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
"""Correct, partially, incorrect, no answer: the numbers that Inspect itself takes them for
(``inspect_ai.scorer.value_to_float``)."""


def read(path: Path, wanted: Wanted) -> Log:
    """The samples of a log; epochs are samples of one prompt.

    Raises:
        SetError: It cannot be read, or has no such scorers.
        StageLensError: The package that reads it is not installed.
    """
    try:
        from inspect_ai.log import read_eval_log
    except ImportError:
        raise StageLensError(
            f"{path} is a log of Inspect, which is read by the package {PACKAGE}; install it "
            f"(pip install {PACKAGE})"
        ) from None
    try:
        log = read_eval_log(str(path.absolute()), resolve_attachments=True)
    except Exception as error:  # whatever a damaged or newer log makes the package raise
        raise SetError(
            f"{path} cannot be read as a log of Inspect ({type(error).__name__}: {error}); restore "
            f"it, or install a newer {PACKAGE}"
        ) from None
    samples = log.samples or []
    notes = [] if log.status == "success" else [f"the evaluation ended as {log.status!r}"]
    failed = sum(one.error is not None for one in samples)
    if failed:
        notes.append(f"{failed:,} samples ended with an error, and have no score")
    rows = checked_rows(path, [_row(path, one, wanted.id_field) for one in samples])
    found, letters = _scores(samples)
    if unknown := [name for name in wanted.scores if name not in found]:
        raise SetError(f"{path} has no scorer {unknown[0]!r}; it has {', '.join(found) or 'none'}")
    values, scorers = {}, []
    for name in wanted.scores or found:
        if np.isnan(found[name]).all():
            notes.append(f"{name} has no number of any sample, and was left out")
            continue
        values[name] = found[name]
        scorers.append(_scorer(log, name, name in letters))
    if not scorers:
        raise SetError(f"{path} has no scorer with numbers; score it first: inspect score {path}")
    args: Mapping[str, Any] = log.eval.model_args or {}
    version = str((log.eval.packages or {}).get("inspect_ai", ""))
    model = str(args.get("model_path") or log.eval.model)
    task = str(log.eval.task).rpartition("/")[2]
    return Log(path, TOOL, version, task, model, rows, scorers, values, notes)


def _row(path: Path, sample: Any, field: str | None) -> dict[str, Any]:
    example = sample.id if field is None else (sample.metadata or {}).get(field)
    if example is None:
        raise SetError(f"{path}: sample {sample.id!r} has no metadata {field!r} with an id")
    target = sample.target
    if isinstance(target, list):
        target = target[0] if len(target) == 1 else json.dumps(target, ensure_ascii=False)
    return {
        "example_id": str(example),
        "sample": int(sample.epoch) - 1,
        "prompt": _text(sample.input),
        "reference": target or None,
        "choices": tuple(sample.choices) if sample.choices else None,
        "answer": sample.output.completion if sample.output is not None else None,
    }


def _text(given: Any) -> str:
    """The input as text: what a single user says, else every message with its role."""
    if isinstance(given, str):
        return given
    said = [(str(message.role), str(message.text)) for message in given]
    if len(said) == 1 and said[0][0] == "user":
        return said[0][1]
    return "\n".join(f"{role}: {text}" for role, text in said)


def _scores(samples: list[Any]) -> tuple[dict[str, np.ndarray], set[str]]:
    """(N,) numbers by scorer (``scorer/key`` of scores with several), and those by letters."""
    found: dict[str, np.ndarray] = {}
    numeric: set[str] = set()
    for at, sample in enumerate(samples):
        for scorer, score in (sample.scores or {}).items():
            several = isinstance(score.value, Mapping)
            parts = score.value if several else {"": score.value}
            for key, value in parts.items():
                name = f"{scorer}/{key}" if several else scorer
                own = found.setdefault(name, np.full(len(samples), np.nan))
                if sample.error is not None:
                    continue
                if isinstance(value, str) and value in _LETTERS:
                    own[at] = _LETTERS[value]
                elif (score_ := number(value)) is not None:
                    own[at] = score_
                    numeric.add(name)
    return found, set(found) - numeric


def _scorer(log: Any, name: str, letters: bool) -> LogScorer:
    rule = name.partition("/")[0]
    known = [one for one in log.eval.scorers or [] if str(one.name).rpartition("/")[2] == rule]
    options = dict(known[0].options or {}) if known else {}
    better: Better | None = "higher" if letters else None
    settings: dict[str, Any] = {"tool": TOOL, "task": str(log.eval.task).rpartition("/")[2]}
    if options:
        # As text: options may hold anything.
        settings["options"] = json.loads(json.dumps(options, default=str, sort_keys=True))
    return LogScorer(
        name,
        better,
        0.0 if letters else None,
        1.0 if letters else None,
        version=str(log.eval.task_version),
        settings=settings,
    )
