"""Tables, tensors and JSON as plain columns, and how two of them compare to the bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.torch import load_file

TOLERANCE = 0.15
"""How far the end of a bootstrap interval may move, in widths of the interval.

An end is the 2.5 % quantile of at least 500 resamples. Its standard error is
sqrt(0.025 * 0.975 / 500) / 0.0584 = 0.12 standard deviations of what is drawn (0.0584 is the normal
density there), which is 3.05 % of the width of 3.92 of them. The difference of two such ends has
4.3 %, and 15 % is 3.5 of these."""

TIMES = ("seconds", "wall_cost")
FILES = ("path", "sha256", "bytes", "footer_sha256", "folder")
WORDS = ("reason", "description", "notes", "refusal", "card")
KEYS = (
    *("file", "part", "set", "stage", "behaviour", "estimator", "settings", "budget", "order"),
    *("boundary", "kind", "name", "label", "step", "position", "example_id", "prediction"),
    *("confidence", "trust"),
)
"""Columns that rows are sorted by, where a table has them."""

Column = np.ndarray | list[str]
Table = dict[str, Column]
"""Column to its values: numbers as float64, which holds all that there are, or texts."""


def of_frame(frame: pd.DataFrame) -> Table:
    """A table whose order of rows does not depend on who wrote it."""
    keys = [name for name in KEYS if name in frame]
    if keys:
        frame = frame.sort_values(keys, kind="stable", key=lambda own: own.map(str))
    return {str(name): _column(frame[name]) for name in sorted(frame.columns)}


def of_json(document: Any, place: str) -> Table:
    """Every value of a JSON document as a column of its own, called by the way to it."""
    if isinstance(document, dict | list):
        inner = document.items() if isinstance(document, dict) else enumerate(document)
        return {n: v for key, each in inner for n, v in of_json(each, f"{place}/{key}").items()}
    return {place: _column(pd.Series([document]))}


def of_tensors(folder: Path, files: Sequence[Path]) -> Table:
    """Every tensor in safetensors files below a folder as a column, with its type and shape."""
    table: Table = {}
    for file in (path for path in files if path.suffix == ".safetensors"):
        for name, tensor in load_file(file).items():
            kind = f"{tensor.dtype} {tuple(tensor.shape)}"
            own = f"{file.relative_to(folder).as_posix()}: {name} {kind}"
            table[own] = tensor.double().numpy().ravel()
    return table


def _column(values: pd.Series) -> Column:
    if pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
        return np.where(np.isnan(numbers), np.nan, numbers)  # every NaN gets the same bits
    return [_text(value) for value in values]


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, dict | list):
        return json.dumps(value, sort_keys=True, default=_text)
    if isinstance(value, bytes):
        return value.hex()
    return "" if value is None or value is pd.NA or value != value else str(value)


def digest(table: Table, columns: Sequence[str]) -> str:
    """Of the exact values of some columns, whose order does not matter."""
    whole = hashlib.sha256()
    for name in sorted(columns):
        values = table[name]
        own = values.tobytes() if isinstance(values, np.ndarray) else "\0".join(values).encode()
        whole.update(f"{name}\0{len(values)}\0".encode() + hashlib.sha256(own).digest())
    return whole.hexdigest()[:12]


@dataclass
class Comparison:
    """What came of comparing a table in the base with the same one here.

    Attributes:
        digests: Of the point values in the base and here.
        verdict: In a few words.
        failed: Whether a number differs.
        details: Lines on what differs, and on what was not compared.
    """

    digests: tuple[str, str]
    verdict: str = "same"
    failed: bool = False
    details: list[str] = field(default_factory=list)

    def add(self, verdict: str, *details: str, failed: bool = False) -> None:
        """Something that is not the same."""
        self.verdict = verdict if self.verdict == "same" or failed else self.verdict
        self.failed |= failed
        self.details += details


def compare(base: Table | None, here: Table | None, whole: bool = False) -> Comparison:
    """A table in the base with the same one here.

    Args:
        base: In the base; None where it has none.
        here: Here, likewise.
        whole: Whether a column that one of them alone has is a difference.
    """
    if base is None or here is None:
        return Comparison(("-", "-"), "DIFFERENT", True, [f"only {'here' if here else 'in base'}"])
    shared = sorted(base.keys() & here.keys())
    kinds = {name: _kind(name) for name in shared}
    points = [name for name in shared if kinds[name] == "point"]
    found = Comparison((digest(base, points), digest(here, points)))
    if found.digests[0] != found.digests[1]:
        found.add("DIFFERENT", *_differences(base, here, points), failed=True)
    intervals = [name for name in shared if kinds[name] == "interval"]
    if intervals and digest(base, intervals) != digest(here, intervals):
        moved = _moved(base, here, intervals)
        beyond = not max(moved.values()) <= TOLERANCE
        told = ", ".join(f"{name} {share:.1%}" for name, share in moved.items())
        verdict = "DIFFERENT" if beyond else "within Monte Carlo error"
        found.add(verdict, f"moved, in widths of the interval: {told}", failed=beyond)
    elif intervals:
        found.details.append(f"intervals are the same bit for bit: {_listed(intervals)}")
    if words := [n for n in shared if kinds[n] == "words" and _texts(base[n]) != _texts(here[n])]:
        found.add("words differ", f"words differ: {_listed(words)}")
        if "refusal" in words:  # the program's own words, for a person to judge
            found.details += [f"in base: {base['refusal'][0]}", f"here: {here['refusal'][0]}"]
    for side, other, where in ((base, here, "in base"), (here, base, "here")):
        own = [n for n in sorted(side.keys() - other.keys()) if _kind(n) not in ("time", "file")]
        if own:
            failed = whole and any(_kind(name) == "point" for name in own)
            verdict = "DIFFERENT" if failed else found.verdict
            found.add(verdict, f"only {where}: {_listed(own)}", failed=failed)
    if times := sorted({n.rsplit("/", 1)[-1] for n in shared if kinds[n] in ("time", "file")}):
        found.details.append(f"left out: {_listed(times)}")
    return found


def _kind(column: str) -> str:
    own = [part for part in column.split("/") if not part.isdigit()][-1]
    for kind, names in (("time", TIMES), ("file", FILES), ("words", WORDS)):
        if own in names:
            return kind
    return "interval" if own.endswith(("_low", "_high")) else "point"


def _texts(values: Column) -> list[str]:
    return [str(value) for value in values]


def _differences(base: Table, here: Table, columns: Sequence[str]) -> Iterator[str]:
    """A line per column that differs, without anything that it holds but numbers."""
    differing = [name for name in columns if digest(base, [name]) != digest(here, [name])]
    for name in differing[:12]:
        old, new = base[name], here[name]
        if len(old) != len(new):
            yield f"{name}: {len(old):,} values in base, {len(new):,} here"
        elif isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
            off = ~((old == new) | (np.isnan(old) & np.isnan(new)))
            gaps = np.abs(old - new)[off]
            largest = np.nanmax(gaps, initial=0.0)
            gone = f", {np.isnan(gaps).sum():,} NaN on one side" if np.isnan(gaps).any() else ""
            yield f"{name}: {off.sum():,} of {len(old):,} differ, by at most {largest:.3g}{gone}"
        else:
            count = sum(a != b for a, b in zip(_texts(old), _texts(new), strict=True))
            yield f"{name}: {count:,} of {len(old):,} texts differ"
    if len(differing) > 12:
        yield f"and {len(differing) - 12:,} more columns"


def _moved(base: Table, here: Table, columns: Sequence[str]) -> dict[str, float]:
    """Column to how far it moved at most, in widths of the interval; infinite for other rows."""
    moved = {}
    for name in columns:
        stem = name.removesuffix("_low").removesuffix("_high")
        low, high = base.get(f"{stem}_low"), base.get(f"{stem}_high")
        old, new = base[name], here[name]
        numbers = [each for each in (low, high, old, new) if isinstance(each, np.ndarray)]
        if len(numbers) < 4 or len(old) != len(new):
            moved[name] = float("inf")
            continue
        low, high, old, new = numbers
        alike = (old == new) | (np.isnan(old) & np.isnan(new))
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.where(alike, 0.0, np.abs(new - old) / (high - low))
        moved[name] = float(np.nan_to_num(shares, nan=np.inf).max(initial=0.0))
    return moved


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8:,} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
