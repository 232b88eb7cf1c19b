"""How often ``stagelens gate`` calls chance a regression, and how often it finds a planted one.

One command, which goes on where it was interrupted::

    python tests/benchmarks/gate.py [--out DIR] [--pairs 400] [--planted 40] [--runs 800]

Several processes share it, one thread each, with ``--share 0/2`` and ``--share 1/2``.

*A/A*: two tiny runs of one recipe, three stages each, which differ in nothing but their seeds
(initial values and the order of examples). By default no run is in two pairs; of fewer ``--runs``
each is in several, always against others, so that rates are as right but less well known. One half
of the pairs is trained on easy images, whose answers differ little from seed to seed, the other on
hard ones. A false alarm is any slice that is called regressed. The column *0* allows no drop at
all, of accuracy and margin together: then the truth is at the very edge of what is allowed, which
it is not with 2 points. *two models* leaves training noise out (``--estimand models``): beyond
chance in the examples, models of other seeds do differ, so alarms are right about the models there,
and wrong about the recipe.

*Planted*: the second recipe gives the marked images of one stage another label, by which the slice
``a`` of 200 examples drops by 10 points. Found is what is called regressed on that slice; the stage
is right where ``adapt`` alone is named.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stagelens.analyses.gate.asked import Asked
from stagelens.analyses.gate.gate import gate
from stagelens.analyses.gate.report import GateReport
from stagelens.runs.claims import claim
from stagelens.runs.run import Run, open_run
from tests.support.gated import EASY, HARD, record
from tests.support.warm import forgo_fsync

SETTINGS = {
    "2": Asked(slices=["group"]),
    "0": Asked(slices=["group"], behaviours=["accuracy", "margin"], max_drop={"": 0}, stages=False),
    "two models, 0": Asked(
        slices=["group"],
        behaviours=["accuracy", "margin"],
        max_drop={"": 0},
        estimand="models",
        stages=False,
    ),
}
"""The command's defaults first."""


def pairing(number: int, pool: int) -> tuple[int, int]:
    """Which two of a pool of runs a pair is: each run once in a round, and no pair twice."""
    rounds, place = divmod(number, pool // 2)
    # The circle method of round robins: the last one stays, the others move on.
    seats = [(each + rounds) % (pool - 1) for each in range(pool - 1)]
    return (pool - 1, seats[0]) if not place else (seats[place], seats[-place])


def run_of(out: Path, name: str, seed: int, **how: Any) -> Run:
    """A run of the pool, recorded where it is not there."""
    path = out / "runs" / name
    with claim(out / "runs" / f".{name}.lock"):
        if not (path / "whole").exists():
            shutil.rmtree(path, ignore_errors=True)
            record(path, seed, **how)
            (path / "whole").touch()
    return open_run(path)


def pair(out: Path, number: int, planted: bool, pool: int) -> dict[str, Any]:
    """One pair of runs, gated in every setting."""
    began, hard = time.perf_counter(), bool(number % 2) and not planted
    if planted:
        names = [f"planted-{number}-old", f"planted-{number}-new"]
        seeds = [1_000_000 + 2 * number + each for each in range(2)]
    else:
        seeds = list(pairing(number // 2, pool // 2))
        names = [f"{'hard' if hard else 'easy'}-{each}" for each in seeds]
    spread = HARD if hard else EASY
    old = run_of(out, names[0], seeds[0], spread=spread)
    new = run_of(out, names[1], seeds[1], spread=spread, spoiled=planted)
    row: dict[str, Any] = {"pair": number, "planted": planted, "hard": hard, "runs": names}
    for name, asked in SETTINGS.items():
        if planted and name != "2":
            continue
        row[name] = _row(gate(("old", old), ("new", new), asked))
    row["seconds"] = time.perf_counter() - began
    return row


def _row(found: GateReport) -> dict[str, Any]:
    return {
        "verdict": found.verdict,
        "regressed": [f"{s.behaviour} {s.group}" for s in found.slices if s.verdict == "regressed"],
        "drops": [s.drop for s in found.slices],
        "sds": [s.training_sd for s in found.slices],
        "recorded": [[s.old, s.new] for s in found.slices],
        "stages": sorted({s.stage for s in found.stages if s.did_it}),
    }


def run(out: Path, pairs: int, planted: int, pool: int, share: str) -> list[dict[str, Any]]:
    """All pairs of a share; those that are there already are not made again."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "pairs.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["pair"], row["planted"]) for row in rows}
    work = [*((n, True) for n in range(planted)), *((n, False) for n in range(pairs))]
    part, parts = map(int, share.split("/"))
    for number, kind in work[part::parts]:
        if (number, kind) in done:
            continue
        rows.append(pair(out, number, kind, pool))
        with path.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    """The rates, in a few lines."""
    alike = [row for row in rows if not row["planted"]]
    said = []
    for name in SETTINGS:
        own = [row[name] for row in alike]
        false = sum(each["verdict"] == "regressed" for each in own)
        told = sum(each["verdict"] == "fine" for each in own)
        said.append(
            f"A/A, allowed {name}: {false} of {len(own)} false alarms "
            f"({100 * false / max(len(own), 1):.2f} %), {told} fine, "
            f"{len(own) - told - false} could not tell"
        )
    for hard in (False, True):
        own = [row["0"] for row in alike if row["hard"] == hard]
        if not own:
            continue
        pairs = np.array([each["recorded"][:3] for each in own])  # accuracies of the slices
        seeds = float((pairs[..., 0] - pairs[..., 1]).std())
        said.append(
            f"  {'hard' if hard else 'easy'}: accuracy {100 * pairs.mean():.1f} %, of two seeds "
            f"{100 * seeds:.2f} points apart (standard deviation, of a slice)"
        )
    own = [row for row in rows if row["planted"]]
    found = sum("accuracy a" in row["2"]["regressed"] for row in own)
    others = sum(any(s != "accuracy a" for s in row["2"]["regressed"]) for row in own)
    right = sum(row["2"]["stages"] == ["adapt"] for row in own)
    drops = [100 * row["2"]["drops"][0] for row in own]
    said.append(
        f"planted: {found} of {len(own)} found (mean drop {np.mean(drops or [np.nan]):.1f} "
        f"points), the right stage alone named in {right}, another slice called in {others}"
    )
    said.append(f"{np.median([row['seconds'] for row in rows]):.1f} s a pair (median)")
    return "\n".join(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmark-runs/gate"))
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--planted", type=int, default=40)
    parser.add_argument("--runs", type=int, help="of A/A pairs together [twice the pairs]")
    parser.add_argument("--share", default="0/1", help="I/N: the I-th of N processes, from 0")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    forgo_fsync()
    print(
        summary(
            run(given.out, given.pairs, given.planted, given.runs or 2 * given.pairs, given.share)
        )
    )


if __name__ == "__main__":
    main()
