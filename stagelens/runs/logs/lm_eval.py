"""lm-evaluation-harness: the JSON lines that ``--log_samples`` writes, one file per task.

Beside them lies ``results_DATE.json``, which knows directions and versions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stagelens.contracts import SetError
from stagelens.runs.sets.tables import read_table

from .log import Better, Log, LogScorer, Wanted, checked_rows, number

TOOL = "lm-eval"

_NAME = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[-:.\d]+)\.jsonl")
_OWN = frozenset(
    {
        *("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"),
        *("doc_hash", "prompt_hash", "target_hash"),
    }
)
"""Keys of a sample that are no metrics."""

_SHARES = frozenset(
    ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "em", "mc1", "mc2")
)
"""Metrics between 0 and 1 where higher is better."""


def is_log(row: Mapping[str, Any]) -> bool:
    """Whether a JSON object is one of the harness's samples."""
    return "doc_id" in row and "arguments" in row


def read(path: Path, wanted: Wanted) -> Log:
    """The samples of one task.

    Ids are ``doc_id``, which count the task's documents: prompts are compared besides, so that
    another version of the task is found out.

    Raises:
        SetError: The file cannot be read, or has no such metrics.
    """
    columns = read_table(path)
    if "doc_id" not in columns:
        raise SetError(f"{path} has no doc_id, so lm-evaluation-harness did not write it")
    samples = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    named = _NAME.fullmatch(path.name)
    task = named["task"] if named else path.stem.removeprefix("samples_")
    results = _results(path, named["date"]) if named else {}
    filters = list(dict.fromkeys(str(one.get("filter") or "none") for one in samples))
    chosen = filters if wanted.filter_name is None else [wanted.filter_name]
    if chosen[0] not in filters:
        raise SetError(f"{path} has no filter {chosen[0]!r}; it has {', '.join(filters)}")
    first = [one for one in samples if str(one.get("filter") or "none") == chosen[0]]
    rows = checked_rows(path, [_row(path, one, wanted.id_field) for one in first])
    place = {name: at for at, name in enumerate(rows["example_id"])}
    known = list(dict.fromkeys(name for one in samples for name in _metrics(one)))
    if unknown := [name for name in wanted.scores if name not in known]:
        raise SetError(f"{path} has no metric {unknown[0]!r}; it has {', '.join(known)}")
    scorers: list[LogScorer] = []
    values: dict[str, np.ndarray] = {}
    left: list[str] = []
    for each in chosen:
        own = [one for one in samples if str(one.get("filter") or "none") == each]
        for metric in wanted.scores or known:
            # As the harness names them in its results, where there is more than one filter.
            name = metric if len(filters) == 1 else f"{metric},{each}"
            found = np.full(len(rows), np.nan)
            numbers = [number(one.get(metric)) for one in own]
            if all(one is None for one in numbers):
                left.append(f"{name} has no number of each sample, and was left out")
                continue
            for sample, score in zip(own, numbers, strict=True):
                example = _id(path, sample, wanted.id_field)
                if example not in place:
                    raise SetError(f"{path}: filter {each} has the further document {example!r}")
                found[place[example]] = np.nan if score is None else score
            values[name] = found
            scorers.append(_scorer(name, metric, task, each, results))
    if not scorers:
        raise SetError(f"{path} has no metric with a number for each sample ({'; '.join(left)})")
    config = results.get("config") or {}
    return Log(
        path,
        TOOL,
        str(results.get("lm_eval_version") or ""),
        task,
        _model(config) or str(results.get("model_name") or ""),
        rows,
        scorers,
        values,
        left,
    )


def _results(path: Path, date: str) -> dict[str, Any]:
    """What the harness wrote beside the samples; empty where it is not there any more."""
    beside = path.with_name(f"results_{date}.json")
    try:
        found = json.loads(beside.read_text("utf-8"))
    except OSError:
        return {}
    except ValueError as error:
        raise SetError(f"{beside} is damaged ({error}); restore it, or move it away") from None
    return found if isinstance(found, dict) else {}


def _model(config: Mapping[str, Any]) -> str:
    """The folder or name that the model was opened by."""
    given = config.get("model_args")
    if isinstance(given, str):
        pairs = (part.partition("=") for part in given.split(","))
        given = {name: value for name, _, value in pairs}
    return str((given or {}).get("pretrained") or "") if isinstance(given, Mapping | None) else ""


def _metrics(sample: Mapping[str, Any]) -> list[str]:
    named = sample.get("metrics")
    return list(named) if isinstance(named, list) else [name for name in sample if name not in _OWN]


def _id(path: Path, sample: Mapping[str, Any], field: str | None) -> str:
    if field is None:
        return str(sample["doc_id"])
    doc = sample.get("doc")
    if not isinstance(doc, Mapping) or doc.get(field) is None:
        raise SetError(
            f"{path}: document {sample['doc_id']} has no field {field!r} with an id; it has "
            f"{', '.join(doc) if isinstance(doc, Mapping) else 'no fields'}"
        )
    return str(doc[field])


def _row(path: Path, sample: Mapping[str, Any], field: str | None) -> dict[str, Any]:
    requests = _requests(sample.get("arguments"))
    contexts = list(dict.fromkeys(str(one[0]) for one in requests if one))
    follows = [str(one[1]) for one in requests if len(one) > 1 and isinstance(one[1], str)]
    choices = tuple(follows) if len(contexts) == 1 and len(follows) > 1 else None
    response = sample.get("filtered_resps")
    while isinstance(response, list) and len(response) == 1:
        response = response[0]
    return {
        "example_id": _id(path, sample, field),
        "sample": 0,
        # Some tasks complete several contexts by the same words.
        "prompt": "\n".join(contexts) if contexts else None,
        "reference": _reference(sample.get("target"), choices),
        "choices": choices,
        "answer": response if isinstance(response, str) else None,
    }


def _requests(arguments: Any) -> list[Sequence[Any]]:
    """The arguments of every request for a sample: of old logs, lists; of newer ones, by name."""
    if isinstance(arguments, Mapping):
        return [
            list(one.values()) if isinstance(one, Mapping) else [one] for one in arguments.values()
        ]
    return [one if isinstance(one, list) else [one] for one in arguments or []]


def _reference(target: Any, choices: Sequence[str] | None) -> str | None:
    if target is None:
        return None
    text = target if isinstance(target, str) else json.dumps(target, ensure_ascii=False)
    # A number of a choice, unless it is what one of them says.
    if choices and text.isdigit() and text not in (one.strip() for one in choices):
        at = int(text)
        return choices[at] if at < len(choices) else text
    return text


def _scorer(
    name: str, metric: str, task: str, filter_name: str, results: Mapping[str, Any]
) -> LogScorer:
    higher = ((results.get("higher_is_better") or {}).get(task) or {}).get(metric)
    share = metric in _SHARES
    better: Better | None = "higher" if share else None
    if isinstance(higher, bool):
        better = "higher" if higher else "lower"
    version = (results.get("versions") or {}).get(task)
    shots = (results.get("n-shot") or {}).get(task)
    settings = {"tool": TOOL, "task": task, "filter": filter_name}
    if shots is not None:
        settings["shots"] = shots
    return LogScorer(
        name,
        better,
        0.0 if share else None,
        1.0 if share else None,
        version="" if version is None else str(version),
        settings=settings,
    )
