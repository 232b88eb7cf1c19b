"""The table of docs/objectives.md: what works with which loss.

Run it with ``python -m tests.benchmarks.losses``: it trains every case and writes the table into
the file.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.support.loss_cases import CASES, seeded, table_row

DOCS = Path(__file__).resolve().parents[2] / "docs" / "objectives.md"
HEAD = (
    "| loss | replay | coarse replay | `unrolled-*` | contributions | without examples |\n"
    "| --- | --- | --- | --- | --- | --- |"
)


def main() -> None:
    """Write the table."""
    before, _, rest = DOCS.read_text().partition(HEAD)
    after = rest.partition("\n\n")[2]
    rows = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(table_row(case, seeded(case, Path(folder) / "run")))
        print(rows[-1], flush=True)
    DOCS.write_text(before + "\n".join([HEAD, *rows]) + "\n\n" + after)


if __name__ == "__main__":
    main()
