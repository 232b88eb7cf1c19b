"""Give every reader broken input: ``python -m tests.fuzz --count 200000``.

Prints, for every reader, how many inputs it took, how many it refused in words, and the longest
time that one took. A reader stops at the first input that does neither, which is shown.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import traceback
from pathlib import Path

from tests.fuzz.readers import readers
from tests.fuzz.running import home_below, run, spread

_MEMORY = 3 * 2**30
"""Bytes of its own that the process may have: an input that asks for more ends it."""


def main() -> None:
    """Run all readers, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200_000, help="inputs in all")
    parser.add_argument("--reader", action="append", help="only this one; several times")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    total = 0
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder, home_below(Path(folder)):
        every = readers(Path(folder))
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
        counts = spread(every, asked.count)
        for name, count in counts.items():
            if asked.reader and name not in asked.reader:
                continue
            try:
                done = run(every[name], count, Path(folder), asked.seed)
            except BaseException:
                failed.append(name)
                traceback.print_exc()
                continue
            total += done.inputs
            print(
                f"{name:24} {done.inputs:8,} inputs: {done.taken:8,} taken, {done.refused:8,} "
                f"refused; longest {done.longest:.2f} s, in all {done.seconds:.0f} s",
                flush=True,
            )
    print(f"{'together':24} {total:8,} inputs")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
