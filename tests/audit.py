"""Known vulnerabilities of the packages that a lock file pins: ``python -m tests.audit LOCK``.

pip-audit alone says "No known vulnerabilities found", with exit status 0, where no index of them
answers. This ends with an error unless every package could be looked up.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PIP_AUDIT = (sys.executable, "-m", "pip_audit")


def report(lock: Path, pip_audit: Sequence[str] = PIP_AUDIT) -> list[dict[str, Any]]:
    """What pip-audit found out about each package of a lock file.

    Raises:
        SystemExit: It could not do its work.
    """
    with tempfile.TemporaryDirectory() as folder:
        pinned, found = Path(folder, "pinned.txt"), Path(folder, "found.json")
        # A build for CPUs is listed under the version that it was built from.
        pinned.write_text(re.sub(r"(?m)^(\S+==[^+\s]+)\+\S+", r"\1", lock.read_text()))
        files = ("--requirement", str(pinned), "--output", str(found))
        done = subprocess.run(
            [*pip_audit, "--disable-pip", "--progress-spinner", "off", "--format", "json", *files],
            capture_output=True,
            text=True,
        )
        if not found.exists():
            # The last line of a traceback.
            why = (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]
            sys.exit(f"Nothing could be looked up: {why}")
        return list(json.loads(found.read_text())["dependencies"])


def verdict(packages: Sequence[dict[str, Any]]) -> tuple[bool, str]:
    """Whether all is well, and the words for it."""
    unknown = [each for each in packages if "skip_reason" in each]
    if len(unknown) == len(packages):
        why = unknown[0]["skip_reason"] if unknown else "the file pins no package"
        return False, f"Nothing could be looked up, so nothing is known ({why})."
    lines = [
        f"{each['name']} {each['version']}: {found['id']}, fixed in "
        f"{', '.join(found['fix_versions']) or 'no version yet'}"
        for each in packages
        for found in each.get("vulns", ())
    ]
    lines += [f"{each['name']} could not be looked up: {each['skip_reason']}" for each in unknown]
    if lines:
        return False, "\n".join(lines)
    return True, f"No known vulnerabilities in {len(packages)} packages, all of them looked up."


def main(lock: Path) -> None:
    """Print the verdict; exit status 1 unless all is well."""
    well, words = verdict(report(lock))
    if not well:
        sys.exit(words)
    print(words)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
