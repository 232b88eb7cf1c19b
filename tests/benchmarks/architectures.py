"""How many architectures `stagelens assemble` reads as transformers does, as a table.

python -m tests.benchmarks.architectures [causal|classifier]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import transformers

from tests.support.tiny_models import LISTS, Unbuilt, architectures, assembled_alike


def main() -> None:
    """Print a line for each architecture that does not pass, then the counts."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    counts = []
    for which in sys.argv[1:] or LISTS:
        passed, failed, unbuilt = 0, 0, 0
        for kind in architectures(which):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    assembled_alike(kind, which, Path(folder))
                    passed += 1
                except Unbuilt as reason:
                    unbuilt += 1
                    print(f"{which:10} {kind:24} not small   {reason}", flush=True)
                except Exception as error:
                    failed += 1
                    said = " ".join(str(error).split())[:120]
                    print(f"{which:10} {kind:24} FAILS       {said}", flush=True)
        counts.append((which, passed, failed, unbuilt))
    print(f"\n{'':10} {'pass':>6} {'fail':>6} {'not made small':>15}")
    for which, *numbers in counts:
        print("{:10} {:>6} {:>6} {:>15}".format(which, *numbers))


if __name__ == "__main__":
    main()
