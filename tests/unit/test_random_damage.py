"""A file of a run, whichever it is, damaged at random: never a wrong number, never a traceback."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import stagelens
from stagelens.contracts import StageLensError
from stagelens.effects.computing import attribute, boundaries
from tests.support.odd_runs import record


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = record(
        tmp_path_factory.mktemp("whole") / "run",
        {"even": (2, 0.05), "odd": (2, 0.05), "last": (2, 0.05)},
    )
    attribute(run, "test", "replay")
    boundaries(run, "test")
    return run.path


@pytest.fixture(scope="module")
def truth(whole: Path) -> list[pd.DataFrame]:
    return numbers(whole)


def numbers(path: Path) -> list[pd.DataFrame]:
    """All that pages show of a run: answers at its boundaries, and effects by replay."""
    run = stagelens.open_run(path)
    return [
        boundaries(run, "test").table,
        attribute(run, "test", "replay").table.drop(columns="within_noise"),
    ]


def flip_a_bit(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    changed = content[place] ^ (1 << draw.randrange(8))
    return content[:place] + bytes([changed]) + content[place + 1 :]


def change_a_digit(content: bytes, draw: random.Random) -> bytes:
    """As a slip of the hand in a text editor would; elsewhere a changed byte."""
    places = [place for place, byte in enumerate(content) if 48 <= byte <= 57]
    place = draw.choice(places or range(len(content)))
    return content[:place] + str(draw.randrange(10)).encode() + content[place + 1 :]


def zero_a_block(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    length = draw.randint(1, 4096)
    return content[:start] + bytes(len(content[start : start + length])) + content[start + length :]


def cut_off(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def append(content: bytes, draw: random.Random) -> bytes:
    return content + draw.randbytes(draw.randint(1, 64))


def move_a_block(content: bytes, draw: random.Random) -> bytes:
    a, b = sorted(draw.randrange(len(content)) for _ in range(2))
    length = draw.randint(1, 256)
    return content[:a] + content[b : b + length] + content[a + length :]


KINDS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(flip_a_bit, change_a_digit, zero_a_block, cut_off, append, move_a_block),
)


def damage(path: Path, draw: random.Random) -> str:
    """Damage one file, delete it, or put another one in its place; returns what was done."""
    files = sorted(each for each in path.rglob("*") if each.is_file())
    file = draw.choice(files)
    kind = draw.choice([*KINDS, None, None])
    if kind is not None:
        content = file.read_bytes()
        file.write_bytes(kind(content, draw) if content else b"x")
        return f"{kind.__name__} {file.relative_to(path)}"
    other = draw.choice([each for each in files if each.suffix == file.suffix])
    if other == file:
        file.unlink()
        return f"delete {file.relative_to(path)}"
    shutil.copy(other, file)
    return f"{other.relative_to(path)} in place of {file.relative_to(path)}"


TRIALS = [(0, 12), *(pytest.param(n, 50, marks=pytest.mark.extensive) for n in range(1, 21))]


@pytest.mark.parametrize(("seed", "trials"), TRIALS)
def test_damage_is_refused_or_does_not_matter(
    seed: int, trials: int, whole: Path, truth: list[pd.DataFrame], tmp_path: Path
) -> None:
    draw, came = random.Random(seed), Counter[str]()
    for trial in range(trials):
        path = tmp_path / str(trial)
        shutil.copytree(whole, path)
        done = damage(path, draw)
        try:
            found = numbers(path)
        except StageLensError:
            came["refused"] += 1
        except Exception as error:
            raise AssertionError(f"after {done}: {error!r}") from error
        else:
            came["as before"] += 1
            for one, true in zip(found, truth, strict=True):
                pd.testing.assert_frame_equal(one, true, check_exact=True, obj=f"after {done}")
        shutil.rmtree(path)
    print(f"\n{trials} damages: {dict(came)}")
    assert came["refused"] > 0.2 * trials and came["as before"] > 0
