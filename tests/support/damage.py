"""Ways in which a file of a run folder may be damaged."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stagelens.runs.files import sealed


class Bomb:
    """Shows that it was unpickled."""

    def __reduce__(self) -> Any:
        return (open, ("/dev/null/unpickled",))


def remove(file: Path) -> None:
    file.unlink()


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def replace_by_pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps(Bomb()))


def replace_by_pickle_of_equal_size(file: Path) -> None:
    bomb = pickle.dumps(Bomb())
    file.write_bytes(bomb + bytes(max(0, file.stat().st_size - len(bomb))))


def flip_a_bit_in_the_middle(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def lead_out_of_the_folder(file: Path) -> None:
    outside = file.parents[3 if file.parent.name != "run" else 1] / "outside"
    file.rename(outside)
    file.symlink_to(outside)


def edit_and_seal(file: Path, change: Callable[[Any], object]) -> None:
    """Edit a JSON file as StageLens itself would have written it, with a checksum that fits."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(sealed(content)))
