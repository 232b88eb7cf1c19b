"""How twins travel through a later stage: lengths and directions, over what it trained."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stagelens.estimators import coarse_twins
from stagelens.estimators.coarse_replay import CoarseReplay
from stagelens.estimators.coarse_twins import Plan
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.estimators.travel import Travel, travelled
from stagelens.replaying.replay import cross_boundary, replay_without
from tests.support.small_runs import Phase, record

Named = dict[str, torch.Tensor]


def _weights(generator: torch.Generator) -> Named:
    shapes = {"a": (3, 4), "b": (5,), "frozen": (2,)}
    drawn = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}
    return drawn | {"count": torch.randint(9, (1,), generator=generator)}


def _stage(start: Named, end: Named) -> Any:
    return SimpleNamespace(
        start=lambda: SimpleNamespace(model=start),
        end=lambda: SimpleNamespace(model=end),
        facts=SimpleNamespace(trainable=["a", "b", "count"]),
    )


def _trained(weights: Named) -> torch.Tensor:
    return torch.cat([weights["a"].flatten(), weights["b"]])


def test_lengths_and_directions_are_those_of_all_trained_weights_together() -> None:
    generator = torch.Generator().manual_seed(0)
    models = [_weights(generator) for _ in range(5)]
    start, end, without, factual, twin = (_trained(each) for each in models)
    moved, own, before, after = end - start, factual - start, start - without, factual - twin
    found = travelled(_stage(models[0], models[1]), *models[2:])
    cosine = torch.nn.functional.cosine_similarity
    expected = Travel(
        missed=float((factual - end).norm() / moved.norm()),
        direction=float(cosine(own, moved, dim=0)),
        progress=float(own @ moved / moved.norm() ** 2),
        growth=float(after.norm() / before.norm()),
        kept=float(cosine(after, before, dim=0)),
        gap=float((factual - end).norm() / after.norm()),
    )
    assert astuple(found) == pytest.approx(astuple(expected), rel=1e-12)


def test_nothing_moved_is_no_division_by_0() -> None:
    still = _weights(torch.Generator().manual_seed(0))
    assert astuple(travelled(_stage(still, still), still, still, still)) == (0.0,) * 6


def test_twins_on_whole_batches_travel_as_the_recorded_run_and_its_replay_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = [
        Phase(n, lambda g: torch.optim.AdamW(g, 0.01), steps=6) for n in ("first", "second", "last")
    ]
    run = record(tmp_path / "run", "linear", phases)
    monkeypatch.setattr(coarse_twins, "choose_plan", lambda *_: Plan(1, 1))
    first, second, last = run.stages
    (found,) = counterfactuals(run, CoarseReplay(1.0), [first])
    assert found.twins is not None
    (again,) = counterfactuals(run, CoarseReplay(1.0), [first])  # as it was stored
    assert again.twins is not None and again.twins.travels == found.twins.travels
    assert len(found.twins.travels) == 2  # one for each later stage
    for travel in found.twins.travels:
        close = pytest.approx((0, 1, 1, 0), abs=1e-6)
        assert (travel.missed, travel.direction, travel.progress, travel.gap) == close
    names = second.facts.trainable
    start = cross_boundary(first.start(), second).model
    truth = replay_without(run, first).state.model
    differences = [
        torch.cat([(a[n] - b[n]).flatten() for n in names])
        for a, b in ((second.start().model, start), (last.end().model, truth))
    ]
    passed, final = found.twins.travels
    grown = float(differences[1].norm() / differences[0].norm())
    assert passed.growth * final.growth == pytest.approx(grown, rel=1e-6)
