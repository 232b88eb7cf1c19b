"""Show that a change of the code changes no number: ``python -m tests.same --base COMMIT``.

The commit is checked out into a temporary worktree. Both demos are built once by either checkout,
and what they recorded and computed is compared. Then both checkouts run every command that
computes something on copies of the demos *that the base built*. So a difference under ``demo``
alone is one of recording, and one under another command is one of computing. A line is printed per
table: its digest in either checkout and a verdict, with what differs below it.

- *Point values* have to be equal bit for bit, whatever the order in which a table has its rows.
- *Intervals* (``*_low``, ``*_high``) are drawn by a bootstrap: another order of drawing may move
  them within Monte Carlo error, see ``compared.TOLERANCE``. ``low`` and ``high`` of features come
  from a formula, and are point values.
- *Words* (reasons, descriptions, cards) may be put in other ones; this is said, and is no failure.
- *Wall time* is left out, and so are, in JSON, paths and the digests and sizes of files.
- A column that one side alone has is named, and is no failure; a tensor is one.

Exit status 1 where a number differs. Texts of examples are never printed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from tests.compared import Table, compare, of_frame, of_json, of_tensors

ROOT = Path(__file__).resolve().parents[1]

KINDS: Mapping[str, set[str]] = {
    "verification": {"r", "rho", "slope"},
    "features": {"kind", "name", "difference", "evidence"},
    "contributions": {"part", "stage", "step", "value"},
    "noise": {"stage", "behaviour", "order", "effect"},
    "effects": {"stage", "behaviour", "final", "without", "effect"},
    "boundaries": {"boundary", "behaviour", "value"},
    "measured": {"example_id", "prediction", "confidence"},
}
"""Stored tables by the columns that tell them, wherever they lie; the first that fits."""

ESTIMATORS = ("replay", "coarse-replay", "task-vector", "unrolled-jump")
REMOVED = {"digits": ("shortcut", "stamped"), "comments": ("skewed", "identity")}
"""Stage that is taken out of each demo, and the group that it hurts."""

_CHILD = """
import pathlib, runpy, sys, stagelens
root = sys.argv.pop(1)
if not pathlib.Path(stagelens.__file__).resolve().is_relative_to(root):
    sys.exit(f"this is the code in {stagelens.__file__}, not that in {root}")
runpy.run_module("stagelens", run_name="__main__", alter_sys=True)
"""

Outputs = dict[tuple[str, str], Table]
"""(command, name of the table) to the table."""


@dataclass(frozen=True)
class Checkout:
    """Some version of the code, and the folder for what it makes."""

    root: Path
    work: Path

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        """A command by the code of this checkout, which the child makes sure of."""
        kept = {name: v for name, v in os.environ.items() if not name.startswith("STAGELENS_")}
        own = {"PYTHONPATH": str(self.root), "STAGELENS_DEVICE": "cpu", "HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            [sys.executable, "-c", _CHILD, str(self.root), *map(str, words)],
            cwd=self.root,
            env={**kept, **own, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )

    def demo(self, name: str) -> Outputs:
        """Build a demo; what it recorded, and the results that come with it."""
        path = self.work / name
        _say(f"{self.work.name}: building the demo {name}")
        done = self.run("demo", name, "--out", path)
        if done.returncode:
            sys.exit(f"the demo {name} cannot be built: {done.stderr[-2000:]}")
        recorded = [p for p in _files(path) if p.relative_to(path).parts[0] != "results"]
        described: Table = {}
        for file in (p for p in recorded if p.suffix == ".json"):
            place = file.relative_to(path).as_posix()
            if place.startswith("task/"):  # a tokenizer's, whose keys are words
                described[place] = [hashlib.sha256(file.read_bytes()).hexdigest()]
            else:
                described |= of_json(json.loads(file.read_bytes()), place)
        tables = {"recorded tensors": of_tensors(path, recorded), "recorded JSON": described}
        for kind in ("stages", "sets"):
            own = [p for p in recorded if p.suffix == ".parquet" and p.is_relative_to(path / kind)]
            named = [pd.read_parquet(p).assign(file=str(p.relative_to(path))) for p in own]
            tables[f"recorded {kind}"] = of_frame(pd.concat(named))
        return {("demo", kind): table for kind, table in (tables | _stored(path, {})).items()}

    def computed(self, demo: str, recording: Path) -> Outputs:
        """What every command computes on a copy of a recording that has no results yet."""
        run = self.work / f"{demo}-copy"
        shutil.copytree(recording, run, ignore=shutil.ignore_patterns("results"))
        stage, group = REMOVED[demo]
        own = self.work / f"{demo}-out"
        own.mkdir()
        commands: dict[str, tuple[Any, ...]] = {
            f"attribute {by}": ("attribute", "--estimator", by, "--out", own / f"{by}.parquet")
            for by in ESTIMATORS
        }
        commands |= {
            "verify": ("verify", "--orders", 1, "--json"),
            "features": ("features",),
            "contributions": ("contributions",),
            "remove": ("remove", "--stage", stage, "--strength", 0.5, "--out", own / "removed"),
            "remove by layer": (
                *("remove", "--stage", stage, "--close-gap", group),
                *("--estimator", "task-vector", "--out", own / "by-layer"),
            ),
        }
        found: Outputs = {}
        for name, (command, *options) in commands.items():
            _say(f"{self.work.name}: {demo}: {name}")
            before = _stamps(run)
            done = self.run(command, run, *options)
            tables = _stored(run, before)
            if done.returncode:
                tables["outcome"] = self._refusal(done)
            elif command == "attribute":
                tables["effects"] = of_frame(pd.read_parquet(Path(options[-1])))
            elif command == "verify":
                tables["printed"] = of_frame(pd.DataFrame(json.loads(done.stdout)))
            elif command == "remove":
                out = Path(options[-1])
                tables["edited model"] = of_tensors(out, _files(out))
                tables["edit"] = {"card": [(out / "README.md").read_text()]}
                for file in out.glob("*.json"):
                    tables["edit"] |= of_json(json.loads(file.read_bytes()), file.name)
            found |= {(name, kind): table for kind, table in tables.items()}
        return found

    def _refusal(self, done: subprocess.CompletedProcess[str]) -> Table:
        """How a command failed. Anything but a refusal in words is an error of the check's own."""
        said = (done.stderr.strip().splitlines() or [""])[-1]
        if not said.startswith("stagelens: "):
            sys.exit(f"a command broke off: {' '.join(map(str, done.args[3:]))}: {said}")
        for path in (self.work, self.root):
            said = said.replace(str(path), "DIR")
        return {"status": np.array([float(done.returncode)]), "refusal": [said]}


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _stamps(run: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in _files(run / "results")}


def _stored(run: Path, before: Mapping[Path, int]) -> dict[str, Table]:
    """Tables among the results that are new or were written again, by their kind."""
    frames: dict[str, list[pd.DataFrame]] = {}
    trusts: list[dict[str, Any]] = []
    for path in [path for path, stamp in _stamps(run).items() if before.get(path) != stamp]:
        documents = [path.read_bytes()] if path.suffix == ".json" else []
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
            kind = next((k for k, has in KINDS.items() if has <= set(frame.columns)), "other")
            frames.setdefault(kind, []).append(frame)
            documents = list((pq.read_schema(path).metadata or {}).values())
        for document in documents:
            trusts += _trusts(json.loads(document) if document[:1] in b"{[" else None)
    tables = {kind: of_frame(pd.concat(own)) for kind, own in frames.items()}
    return tables | ({"trust": of_frame(pd.DataFrame(trusts))} if trusts else {})


def _trusts(document: Any) -> Iterator[dict[str, Any]]:
    """What results say of counterfactuals, wherever it stands in them."""
    if isinstance(document, dict):
        if {"stage", "estimator", "trust"} <= document.keys():
            yield document
        document = list(document.values())
    for each in document if isinstance(document, list) else ():
        yield from _trusts(each)


@contextmanager
def _worktree(commit: str) -> Iterator[Path]:
    """A checkout of a commit, which is gone afterwards whatever happens."""
    with tempfile.TemporaryDirectory(prefix="stagelens-base-") as folder:
        path = Path(folder).resolve() / "checkout"
        git = ("git", "-C", str(ROOT), "worktree")
        subprocess.run([*git, "add", "--quiet", "--detach", str(path), commit], check=True)
        try:
            yield path
        finally:
            subprocess.run([*git, "remove", "--force", str(path)], check=True)


def _compared(demo: str, base: Outputs, here: Outputs) -> list[str]:
    """Print a line per table; names of those in which a number differs."""
    failed = []
    for name in dict.fromkeys([*base, *here]):
        found = compare(base.get(name), here.get(name), whole="tensors" in name[1])
        print(f"{demo:8} {name[0]:23} {name[1]:16} {' '.join(found.digests)} {found.verdict}")
        for line in found.details:
            print(f"{'':10}{line}")
        if found.failed:
            failed.append(" ".join((demo, *name)))
    return failed


def main() -> None:
    """Build, compute and compare; everything is told as it is known."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", required=True, help="the commit to compare with")
    parser.add_argument("--keep", type=Path, help="a new folder for what both of them make")
    parser.add_argument("--demo", action="append", choices=list(REMOVED), help="only this one")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended; the worktree is removed"))
    failed: list[str] = []
    count = 0
    with tempfile.TemporaryDirectory() as folder, _worktree(asked.base) as base:
        work = (asked.keep or Path(folder)).resolve()
        checkouts = [Checkout(base, work / "base"), Checkout(ROOT, work / "here")]
        for checkout in checkouts:
            checkout.work.mkdir(parents=True)
        for demo in asked.demo or REMOVED:
            outputs = []
            for checkout in checkouts:
                built = checkout.demo(demo)
                outputs.append(built | checkout.computed(demo, work / "base" / demo))
            failed += _compared(demo, *outputs)
            count += len(outputs[0])
    print(f"{count} tables compared with {asked.base}: {len(failed)} differ")
    if failed:
        sys.exit(f"different: {', '.join(failed)}")


if __name__ == "__main__":
    main()
