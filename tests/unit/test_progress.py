"""Progress of parts adds up to the progress of the whole."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagelens.contracts import Progress, no_progress

SHARES = st.floats(0, 1)


def listening() -> tuple[Progress, list[tuple[float, str]]]:
    told: list[tuple[float, str]] = []
    return Progress(lambda done, text: told.append((done, text))), told


@given(SHARES, SHARES, SHARES)
def test_a_part_reaches_from_its_start_to_its_stop(one: float, other: float, done: float) -> None:
    start, stop = sorted((one, other))
    whole, told = listening()
    part = whole.part(start, stop)
    for share in (0.0, done, 1.0):
        part(share, "working")
    values = [value for value, _ in told]
    assert (values[0], values[2]) == (start, stop)  # exactly: the next part begins where it ends
    assert values[1] == pytest.approx(start + done * (stop - start))


@given(st.integers(1, 50), SHARES)
def test_equal_pieces_cover_the_whole_in_order(count: int, done: float) -> None:
    whole, told = listening()
    for number in range(count):
        for share in (0.0, done, 1.0):
            whole.piece(number, count)(share, "")
    values = [value for value, _ in told]
    assert (values[0], values[-1]) == (0.0, 1.0)
    assert all(after >= before - 1e-12 for before, after in pairwise(values))


def test_parts_of_parts_say_what_all_of_them_say() -> None:
    whole, told = listening()
    whole.part(0.5, 1.0, "Verifying: ").piece(1, 2, "replaying: ")(0.5, "step 3 of 6")
    assert told == [(0.875, "Verifying: replaying: step 3 of 6")]


def test_nobody_need_listen() -> None:
    no_progress(0.5, "unheard")
    no_progress.part(0.0, 0.5)(1.0, "unheard")
