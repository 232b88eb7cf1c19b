"""Every task that comes with StageLens: recorded, replayed bit for bit, measured, found again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stagelens import tasks
from stagelens.analyses.contributions.computing import contribute
from stagelens.analyses.contributions.contribution_table import Question
from stagelens.analyses.contributions.first_order import contributions
from stagelens.analyses.own_example import answer, own_example
from stagelens.derivatives.curvature import cast as in_dtype
from stagelens.derivatives.loss_parts import Split
from stagelens.derivatives.trajectory import DerivativeOptions
from stagelens.effects.computing import attribute
from stagelens.measuring.loaded_weights import LoadedWeights
from stagelens.replaying.replay import replay_without
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.batches import batch_size
from stagelens.runs.run import Run
from stagelens.runs.states import load_into
from tests.support.task_runs import SMALL, STAGES, record, trained


@pytest.fixture(scope="module", params=SMALL)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return record(tmp_path_factory.mktemp("tasks") / "run", SMALL[request.param]())


def test_it_is_found_again_by_its_name_and_replays_bit_for_bit(run: Run) -> None:
    assert run.file.task.name in SMALL
    found = tasks.find_task(run.file.task.name, run.file.task.config, run.task_assets())
    assert found.config == run.file.task.config and found.assets == run.task_assets()
    for stage in run.stages:
        assert measure_deviation(run.task, stage).bitwise, stage.name


@pytest.mark.slow
def test_effects_are_the_differences_of_replayed_models(run: Run) -> None:
    result = attribute(run, "test", "replay")
    assert list(result.trust) == list(STAGES)
    task, examples = run.task, run.evaluation_set("test")
    batch = task.collate(examples.examples())
    model = task.build_model().eval()
    values = []
    for state in (run.last.end(), replay_without(run, run.stage("second")).state):
        load_into(model, state.model)
        values.append(task.behaviours(task.outputs(model, batch), batch))
    changed = False
    for kind in task.behaviour_kinds:
        rows = result.table[
            (result.table["stage"] == "second") & (result.table["behaviour"] == kind.name)
        ]
        expected = (values[0][kind.name] - values[1][kind.name]).detach().numpy()
        np.testing.assert_allclose(rows["effect"], expected, rtol=1e-4, atol=1e-5)
        assert np.isfinite(expected).any()
        changed |= bool((np.abs(expected) > 0).any())
        assert (rows["final"].dropna() >= kind.lowest).all()
    assert changed


def test_an_own_example_is_answered_as_that_of_the_set(run: Run) -> None:
    small = SMALL[run.file.task.name]()
    result = attribute(run, "test", "replay")
    example = run.evaluation_set("test").examples()[0]
    typed = own_example(run.task, example.input, small.label)
    assert typed.label == example.label
    own = answer(run, typed, result.facts, LoadedWeights(2**30))
    of_the_set = result.table[result.table["example_id"] == example.example_id]
    # Batches of another size are rounded otherwise.
    np.testing.assert_allclose(own.table["effect"], of_the_set["effect"], rtol=1e-4, atol=1e-5)
    assert own.table["prediction"].tolist() == of_the_set["prediction"].tolist()


@pytest.mark.parametrize(
    "name", [name for name in SMALL if name not in ("reward-model", "sentence-embeddings")]
)
def test_a_trainer_s_callback_finds_it(name: str, tmp_path: Path) -> None:
    small = SMALL[name]()
    run = trained(tmp_path / "run", "one", small, tmp_path / "out")
    assert run.file.task.name == name
    assert isinstance(run.task, type(small.task))
    assert measure_deviation(run.task, run.last).bitwise


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("reward-model", "token-classification")
        else pytest.param(name, marks=pytest.mark.extensive)
        for name in SMALL
    ],
)
def test_contributions_of_training_examples_sum_to_those_of_steps(
    name: str, tmp_path: Path
) -> None:
    run = record(tmp_path / "run", SMALL[name]())
    found = contribute(run, "test", Question(ids=("0",)))
    assert not found.facts.steps_only
    rows = found.part("example")
    # Each can be looked at, and those with a label have been answered.
    assert rows["content"].notna().all()
    assert rows.loc[rows["label"].notna(), "answer"].notna().all()
    kind, asked = run.task.behaviour_kinds[0].name, run.evaluation_set("test").examples()[:1]
    # The parts of a pair cancel: their rounding in float32 is that of larger numbers.
    options = DerivativeOptions("float64" if name == "reward-model" else None)
    exact = contributions(run, kind, asked, with_examples=True, options=options)
    assert exact.examples is not None
    parts, steps = (
        table.groupby(["stage", "step"])["contribution"].sum()
        for table in (exact.examples, exact.steps)
    )
    np.testing.assert_allclose(parts, steps, rtol=1e-3, atol=1e-3 * steps.abs().max())


@pytest.mark.parametrize("name", SMALL)
def test_an_example_has_the_gradient_that_the_loss_lacks_without_it(name: str) -> None:
    small = SMALL[name]()
    task, model, batch = (
        small.task,
        small.model.double().eval(),
        in_dtype(small.batches[0], torch.float64),
    )
    x = list(model.parameters())
    v = [torch.randn_like(p) for p in x]
    owners = task.row_examples(batch) or range(batch_size(batch))
    shares = Split.of(task.loss, model, batch, 1).per_example(x, v, torch.tensor(owners))
    assert len(shares) == len(task.examples(batch))

    def summed(rows: list[int]) -> Tensor:
        """Gradient of the sum over examples, or over tokens, along v."""
        part = {name: tensor[rows] for name, tensor in batch.items()}
        count = task.loss_terms(part) or len({owners[row] for row in rows})
        own = torch.autograd.grad(task.loss(model, part) * count, x, allow_unused=True)
        return sum((g * w).sum() for g, w in zip(own, v, strict=True) if g is not None)

    every = list(range(len(owners)))
    terms = task.loss_terms(batch) or len(shares)
    for example, share in enumerate(shares):
        others = [row for row in every if owners[row] != example]
        expected = float(summed(every) - summed(others)) / terms
        # transformers computes some losses in float32.
        assert float(share) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_where_a_loss_compares_examples_only_steps_have_contributions(tmp_path: Path) -> None:
    small = SMALL["sentence-embeddings"]()
    # Of the first stage only: the others do not come to this batch.
    unlabelled = {n: t for n, t in small.batches[0].items() if n != "labels"}
    run = record(tmp_path / "run", replace(small, batches=[unlabelled, *small.batches[1:]]))
    found = contribute(run, "test", Question(ids=("0",)))
    assert list(found.facts.steps_only) == ["first"]
    assert "in-batch negatives" in found.facts.steps_only["first"]
    counts = {stage: len(found.part("example", stage)) for stage in found.facts.steps}
    assert counts["first"] == 0 and counts["second"] > 0 and counts["third"] > 0
