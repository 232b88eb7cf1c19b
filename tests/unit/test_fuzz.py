"""A first slice of the fuzzing of every reader; ``make fuzz`` gives them many more inputs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st

from stagelens.contracts import StageLensError
from tests.fuzz.guard import Escape, only_below
from tests.fuzz.readers import readers
from tests.fuzz.running import Reader, home_below, run, spread

COUNT = 1000


@pytest.mark.slow
def test_every_reader_takes_broken_input_or_refuses_it_in_words(tmp_path: Path) -> None:
    with home_below(tmp_path):
        every, refused = readers(tmp_path), 0
        for name, count in spread(every, COUNT).items():
            print(f"{name}: {count} inputs")  # shown where one fails
            done = run(every[name], count, tmp_path)
            assert done.inputs >= min(count, 10)
            refused += done.refused
        assert refused > COUNT / 4  # else the input was hardly broken


def test_what_reading_must_not_do_is_noticed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    with only_below(inside):
        (inside / "a").write_text("x")
        with pytest.raises(Escape, match="opened for writing"):
            outside.write_text("x")
        with pytest.raises(Escape, match="subprocess"):
            __import__("subprocess").run(["true"])
    assert not outside.exists()


def test_an_error_of_another_kind_is_not_taken_for_a_refusal(tmp_path: Path) -> None:
    def read(value: int) -> None:
        if value > 5:
            raise KeyError(value)
        raise StageLensError("small")

    with pytest.raises(KeyError):
        run(Reader(st.integers(0, 10), read), 50, tmp_path)
