"""The table of docs/optimizers.md: what is exact, estimated or refused, per optimiser.

Run it with ``python -m tests.benchmarks.optimizers``: it trains every case, without a package those
rows stay as they are, and writes the table into the file.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from tests.support.optimizer_cases import CASES, EAGER, find, table_row

DOCS = Path(__file__).resolve().parents[2] / "docs" / "optimizers.md"
_HEAD = (
    "| optimiser | replay | without a stage, against a training without it | coarse replay "
    "| unrolled-* |\n| --- | --- | --- | --- | --- |"
)


def main() -> None:
    """Write the table."""
    compiled = torch.compile
    before, _, rest = DOCS.read_text().partition(_HEAD)
    old, _, after = rest.partition("\n\n")
    rows = []
    for case in CASES:
        if not case.installed:
            rows += [line for line in old.splitlines() if line.startswith(f"| `{case.title}` |")]
            continue
        torch.compile = (lambda step, **_: step) if case.package == EAGER else compiled
        with tempfile.TemporaryDirectory() as folder:
            rows.append(table_row(case, find(case, Path(folder) / "run")))
        print(rows[-1], flush=True)
    DOCS.write_text(before + "\n".join([_HEAD, *rows]) + "\n\n" + after)


if __name__ == "__main__":
    main()
