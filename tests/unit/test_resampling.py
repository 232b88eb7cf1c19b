"""The bootstrap: who is drawn, what follows, and how often its intervals hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from stagelens.effects import resampling
from stagelens.effects.resampling import Resamples, interval, places


@pytest.mark.parametrize(("examples", "count"), [(0, 1000), (100, 1000), (5000, 400), (10**6, 50)])
def test_large_sets_are_resampled_less(examples: int, count: int) -> None:
    assert Resamples(most=1000, fewest=50, draws=2_000_000).of(examples) == count


def test_blocks_draw_what_one_draw_would(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(places(30, 100, np.random.default_rng(1))))
    monkeypatch.setattr(resampling, "_BLOCK", 70)
    blocks = list(places(30, 100, np.random.default_rng(1)))
    assert {len(block) for block in blocks} == {2}
    assert (np.concatenate(blocks) == whole).all()
    assert whole.shape == (100, 30) and set(whole.ravel()) == set(range(30))


def test_what_is_not_known_has_no_interval() -> None:
    assert np.isnan(interval(np.array([0.1, np.nan]))).all()
    assert np.isnan(interval(np.array([]))).all()
    assert interval(np.arange(101.0), level=0.5) == (25.0, 75.0)
