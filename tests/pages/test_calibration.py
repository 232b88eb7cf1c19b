"""What the Trust page opens with: what promised errors are worth."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagelens.effects.results import load_result, save_result
from stagelens.runs.run import open_run
from tests.pages.reading import check, figures, words
from tests.support.calibration_bench import bench_points

PAGE = "pages/4_Trust.py"


@pytest.fixture(autouse=True)
def _bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Here, after the bench that a fixture of all pages may have to provide.
    from stagelens.ui.trust import calibration

    monkeypatch.setattr(calibration.calibration, "points", bench_points)
    calibration._bench.clear()
    yield
    calibration._bench.clear()


def with_promises(folder: Path) -> None:
    """Give the run's coarse replay a promise for its first stage."""
    run = open_run(folder)
    found = load_result(run, "test", "effects", "coarse-replay", {"budget": 0.25})
    assert found is not None
    first = found.facts.stages[0]
    promise = {"trust": "estimated", "expected_error": 0.123, "reliable": True}
    stages = [first.model_copy(update=promise)]
    stages += [one.model_copy(update={"expected_error": None}) for one in found.facts.stages[1:]]
    facts = found.facts.model_copy(update={"stages": stages})
    save_result(run, type(found)(facts, found.table))


def test_it_opens_with_the_numbers_in_use_and_says_what_promises_are_worth(
    open_page, demo_copy: Path
) -> None:
    with_promises(demo_copy)
    app = check(open_page(demo_copy.parent, "run=digits", PAGE))
    said, start = words(app), "Promised against true errors of 40 estimates on 4 kinds of training"
    (first,) = [one["alt"] for one in figures(app) if one["alt"].startswith(start)]
    assert "pretrain" in first and "up to 12 %" in first and "true " in first
    heads = ("The numbers in use", "Estimates against replay", "What a promised error is worth")
    assert sorted(heads, key=said.index) == list(heads)
    assert "The other pages show effects by replay" in said and "● pretrain, shortcut" in said
    assert (
        "Of 8 estimates called reliable, on kinds of runs that the formula had not seen, 75 % were "
        "close enough to a replay (r at least 0.9, error at most 50 %); in the worst kind (family "
        "3), 0 %. Of all 40, 95 % were within the promised error; in the worst kind (family 3), "
        "80 %." in said
    )
    assert "Dashed in the picture: the promise of 4 estimates of this run on this set." in said


def test_without_estimates_it_still_shows_the_bench(open_page, demo_copy: Path) -> None:
    shutil.rmtree(demo_copy / "results")
    app = check(open_page(demo_copy.parent, "run=digits", PAGE))
    assert "No estimate of this run on this set promises an error" in words(app)
    assert len(figures(app)) == 1
