"""Coarse replay after exact stages: goes on from the exact state, and measures its error there."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stagelens import cli
from stagelens.contracts import Refused
from stagelens.effects import computing
from stagelens.effects.computing import attribute
from stagelens.estimators import coarse_twins
from stagelens.estimators.coarse_replay import CoarseReplay
from stagelens.estimators.coarse_twins import Plan
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.estimators.durations import paces
from stagelens.estimators.evidence import PairedEvidence
from stagelens.estimators.protocol import Counterfactual, PartialReplay
from stagelens.estimators.registry import estimate_name, estimate_seconds, options
from stagelens.replaying.replay import cross_boundary, replay_stage, replay_without
from stagelens.runs.run import Run, Stage
from stagelens.runs.sets.writer import write_set
from stagelens.runs.states import TrainingState, Weights
from stagelens.trust.estimates import stored_estimates
from tests.support import loops
from tests.support.loops import differing_state
from tests.support.small_runs import Phase, record

NAMES = ("first", "second", "third", "last")


def _adamw(groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, 0.01)


def _run(path: Path, network: str = "batch norm", later: str | None = None) -> Run:
    # The optimiser goes on from stage to stage, so its state has to be exact as well.
    makes = [_adamw, None, None, None] if later is None else [_adamw] * 4
    networks = [None, None, later, later]
    phases = [
        Phase(name, make, steps=12, batch=8, network=own)
        for name, make, own in zip(NAMES, makes, networks, strict=True)
    ]
    return record(path, network, phases)


def _with_examples(run: Run) -> Run:
    random = np.random.default_rng(0)
    images = random.normal(size=(40, 4, 4)).astype(np.float32)
    write_set(run.path, run.task, "test", images=images, labels=random.integers(0, 3, 40).tolist())
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return _with_examples(_run(tmp_path_factory.mktemp("partial") / "run"))


def _planned(monkeypatch: pytest.MonkeyPatch, merge: float, thin: float) -> None:
    monkeypatch.setattr(coarse_twins, "choose_plan", lambda *_: Plan(merge, thin))


def _found(run: Run, exact: int, *stages: Stage) -> dict[str, Counterfactual]:
    estimator = CoarseReplay(0.25, exact)
    return {c.stage: c for c in estimator.counterfactuals(run, stages, lambda *_: None)}


def _partial(found: Counterfactual) -> PartialReplay:
    assert found.twins is not None and found.twins.partial is not None
    return found.twins.partial


def _exactly(run: Run, stage: Stage, until: Stage) -> TrainingState:
    """The state at the end of ``until`` without ``stage``, by replay alone."""
    state = stage.start()
    for later in run.stages[stage.index + 1 : until.index + 1]:
        state = replay_stage(run.task, later, cross_boundary(state, later)).state
    return state


def _same(a: Weights, b: Weights) -> bool:
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@pytest.mark.parametrize("exact", [1, 2])
def test_cheap_replay_goes_on_from_the_state_that_replay_gives_bit_for_bit(
    exact: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    _planned(monkeypatch, 2, 2)
    first, end = run.stages[0], run.stages[exact]
    begun: dict[str, TrainingState] = {}
    walk: Callable[..., Any] = coarse_twins._walk

    def watched(run: Run, stage: Stage, here: Any, *more: Any) -> Any:
        begun[stage.name] = here[0].without
        return walk(run, stage, here, *more)

    monkeypatch.setattr(coarse_twins, "_walk", watched)
    found = _found(run, exact, first)["first"]
    truth = _exactly(run, first, end)
    assert differing_state(begun[run.stages[exact + 1].name], truth) == []
    assert _partial(found).stage == end.name
    assert _same(truth.model, _partial(found).exact)
    # The estimate is of the later stages only, and so is what its way says.
    assert found.twins is not None and len(found.twins.travels) == 3 - exact
    alone = _found(run, exact, first, run.stages[1])["first"]  # whatever else is asked for
    assert alone.weights is not None and found.weights is not None
    assert _same(alone.weights, found.weights)


def test_the_cheap_model_is_what_would_have_been_estimated_without_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    _planned(monkeypatch, 2, 2)
    first, second, third, _ = run.stages
    begun: dict[str, TrainingState] = {}
    walk: Callable[..., Any] = coarse_twins._walk

    def watched(run: Run, stage: Stage, here: Any, *more: Any) -> Any:
        begun[stage.name] = here[0].without
        return walk(run, stage, here, *more)

    monkeypatch.setattr(coarse_twins, "_walk", watched)
    _found(run, 0, first)
    cheap, exact = begun[third.name].model, _exactly(run, first, second).model
    part = _partial(_found(run, 1, first)["first"])
    assert _same(cheap, part.cheap)
    names = second.facts.trainable
    recorded = second.end().model
    gaps = [
        torch.cat([(a[n] - exact[n]).flatten() for n in names]).norm() for a in (cheap, recorded)
    ]
    assert part.error == pytest.approx(float(gaps[0] / gaps[1]), rel=1e-9)
    assert part.error > 0.01


def test_a_stage_with_no_more_later_ones_is_left_out_by_replay(run: Run) -> None:
    found = _found(run, 2, *run.stages[:3])
    assert [c.trust.trust for c in found.values()].count("exact") == 2
    for stage in run.stages[1:3]:
        one = found[stage.name]
        assert one.weights is not None
        assert _same(one.weights, replay_without(run, stage).state.model)
        assert (one.trust.trust, one.trust.estimator) == ("exact", "coarse-replay")
        assert one.trust.reason.startswith("All later stages are replayed. Replay repeats")
    assert found["first"].trust.trust == "estimated"


def test_what_is_replayed_is_added_to_the_cost(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _planned(monkeypatch, 2, 2)
    cheap, partial = (_found(run, n, run.stages[0])["first"].trust.cost for n in (0, 1))
    assert partial == pytest.approx(cheap + 1 / 3)  # one of three stages of the same length
    seconds = [
        estimate_seconds(paces(run).stages, "coarse-replay", {"budget": 0.25} | more)
        for more in ({}, {"exact_stages": 1}, {"exact_stages": 3})
    ]
    once = estimate_seconds(paces(run).stages, "replay", {})
    assert seconds[0] is not None and seconds[1] is not None and once is not None
    assert seconds[0] < seconds[1]
    assert seconds[2] == pytest.approx(once)  # nothing is left to estimate


def test_only_later_stages_refuse_what_was_replayed_exactly(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    _planned(monkeypatch, 2, 2)
    thin = "second"
    monkeypatch.setattr(coarse_twins, "_too_thin", lambda stage, _plan: stage.name == thin)
    assert _found(run, 0, run.stages[0])["first"].trust.trust == "refused"
    found = _found(run, 1, run.stages[0])["first"]
    assert found.trust.trust == "estimated"
    assert found.twins is not None and found.twins.partial is None  # no evidence either
    thin = "third"
    assert _found(run, 1, run.stages[0])["first"].trust.trust == "refused"


def test_it_is_stored_and_read_again(run: Run) -> None:
    twice = [next(counterfactuals(run, CoarseReplay(0.25, 1), run.stages[:1])) for _ in range(2)]
    parts = [_partial(each) for each in twice]
    assert parts[0].error == parts[1].error and parts[0].stage == parts[1].stage == "second"
    assert _same(parts[0].exact, parts[1].exact) and _same(parts[0].cheap, parts[1].cheap)


def _evidence(run: Run, exact: int, monkeypatch: pytest.MonkeyPatch) -> tuple[PairedEvidence, str]:
    """Of the first stage, and the sentence that its trust says."""
    seen: list[PairedEvidence] = []
    judged: Callable[..., Any] = computing.judged

    def watched(trust: Any, evidence: PairedEvidence, *more: str) -> Any:
        seen.append(evidence)
        return judged(trust, evidence, *more)

    monkeypatch.setattr(computing, "judged", watched)
    settings = {"budget": 0.25, "exact_stages": exact}
    result = attribute(run, "test", "coarse-replay", ["first"], settings=settings)
    return seen[-1], result.trust["first"].reason


def _margins(run: Run, weights: Weights) -> np.ndarray:
    model = run.task.build_model()
    model.load_state_dict(dict(weights))
    model.eval()
    examples = list(run.evaluation_set("test").examples())
    batch = run.task.collate(examples)
    with torch.no_grad():
        return run.task.behaviours(run.task.outputs(model, batch), batch)["margin"].numpy()


def test_the_error_where_the_exact_stages_end_is_measured_in_behaviours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _with_examples(_run(tmp_path / "run"))
    _planned(monkeypatch, 3, 2)
    part = _partial(_found(run, 1, run.stages[0])["first"])
    evidence, reason = _evidence(run, 1, monkeypatch)
    recorded, exact, cheap = (
        _margins(run, weights) for weights in (run.stages[1].end().model, part.exact, part.cheap)
    )
    true, estimated = recorded - exact, recorded - cheap
    error = np.linalg.norm(estimated - true) / np.linalg.norm(true)
    assert error > 0.01
    assert evidence.partial == pytest.approx(error, rel=1e-6)
    assert f"cheap replay was off by {100 * error:.0f} % of the effect" in reason


def test_without_merging_and_thinning_there_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _with_examples(_run(tmp_path / "run"))
    _planned(monkeypatch, 1, 1)
    evidence, _ = _evidence(run, 1, monkeypatch)
    assert evidence.partial == pytest.approx(0, abs=1e-6)
    found = _found(run, 1, run.stages[0])["first"]
    truth = replay_without(run, run.stages[0]).state.model
    assert found.weights is not None
    for name in run.last.facts.trainable:
        torch.testing.assert_close(found.weights[name], truth[name], rtol=1e-9, atol=1e-9)


def test_a_model_of_another_shape_is_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _with_examples(_run(tmp_path / "run", "head a", later="head b"))
    evidence, reason = _evidence(run, 1, monkeypatch)
    assert evidence.partial is None
    assert "cheap replay was off" not in reason


def test_a_stage_whose_batches_are_missing_cannot_be_replayed_exactly(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", "linear")
    second = run.stages[1]
    second.facts = second.facts.model_copy(update={"keep_batches": 6})
    assert _found(run, 0, run.stages[0])
    with pytest.raises(Refused, match="'second' cannot be replayed, because its batches"):
        _found(run, 1, run.stages[0])


def test_it_is_a_setting_only_where_anything_is_replayed() -> None:
    assert CoarseReplay(0.25, 0).settings == {"budget": 0.25}  # stored results are found again
    settings = CoarseReplay(0.25, 1).settings
    assert estimate_name("coarse-replay", settings) == "coarse-replay 1/4 after 1 exact stage"
    more = CoarseReplay(0.5, 2).settings
    assert estimate_name("coarse-replay", more) == "coarse-replay 1/2 after 2 exact stages"
    with pytest.raises(Refused, match="give 0 or more"):
        CoarseReplay(0.25, -1)


def test_it_is_asked_for_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def adamw(model: torch.nn.Module, _: object) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), 0.001)

    plans = [loops.Plan(name, adamw, batches=8) for name in NAMES]
    run = loops.record_plans(tmp_path / "run", loops.make_task(), plans)
    images = np.random.default_rng(0).normal(size=(40, *loops.SHAPE)).astype(np.float32)
    write_set(run.path, run.task, "test", images=images, labels=[0, 1, 2, 0] * 10)
    chosen = options({"budget": 0.5, "exact_stages": 1})
    assert chosen == ("--budget", "0.5", "--exact-stages", "1")
    for command in ("attribute", "verify"):
        words = [command, str(run.path), "--estimator", "coarse-replay", *chosen]
        monkeypatch.setattr(sys, "argv", ["stagelens", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        facts = stored_estimates(run, "test")["coarse-replay 1/2 after 1 exact stage"]
        # What is stored is an estimate's own; its trust is joined with the verification when read.
        assert "cheap replay was off by" in facts.stages[0].reason
    assert "after 1 exact stage" in " ".join(capsys.readouterr().out.split())
    both = ["--estimator", "task-vector", "--estimator", "coarse-replay", *chosen, "--json"]
    monkeypatch.setattr(sys, "argv", ["stagelens", "verify", str(run.path), *both])
    with pytest.raises(SystemExit):
        cli.main()
    rows = json.loads(capsys.readouterr().out)
    found = {(row["estimator"], row["exact_stages"]) for row in rows}
    assert found == {("task-vector", 0), ("coarse-replay", 1)}
