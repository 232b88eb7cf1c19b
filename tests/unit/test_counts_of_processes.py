"""Tokens that several processes of the Trainer count together, or each for itself."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
import torch
from torch import Tensor

import stagelens
from stagelens.analyses.contributions.computing import contribute
from stagelens.analyses.contributions.contribution_table import Question
from stagelens.analyses.without_data.chosen import Chosen
from stagelens.analyses.without_data.first_order import first_order
from stagelens.replaying.coarse_plan import ITEMS
from stagelens.replaying.left_out import RowsOfStage
from stagelens.runs.run import Run
from stagelens.runs.states import load_into
from stagelens.runs.step_records import StepRecord
from stagelens.runs.training_rows import training_rows
from tests.support import launched
from tests.support.double_language import IGNORED
from tests.support.parallel_loops import said
from tests.support.parallel_trainings import in_double, that_counts_tokens
from tests.support.small_texts import TEXTS
from tests.support.weight_differences import by_replays

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[False, True], ids=["by process", "together"])
def counted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("counts")
    ended = launched.run(2, that_counts_tokens, folder, request.param)
    assert ended == [0, 0], said(folder, 0) + said(folder, 1)
    with closing(stagelens.Recorder(folder / "run", in_double(), resume=True)) as recorder:
        recorder.add_set("test", inputs={"text": [TEXTS[0], TEXTS[4]]})
    run = stagelens.open_run(folder / "run", in_double())
    counts = [
        {float(micro.batch[ITEMS]) for micro in record.batches or ()}
        for record in run.stages[0].read_steps()
    ]
    # Over all processes it is one number; by process they differ.
    assert all(len(each) == 1 for each in counts) == request.param
    return run


def test_a_step_without_some_is_what_the_processes_would_take(counted: Run) -> None:
    stage = counted.stages[0]
    (record, *_) = stage.read_steps()
    together = len({float(micro.batch[ITEMS]) for micro in record.batches or ()}) == 1
    rows = RowsOfStage(counted.task, stage)
    for gone in ({0, 1, 2}, {0, 1, 2, 3}, {1, 6}):
        # Only the first step is taken.
        found = rows.replay({0: gone}, between=(0, 1)).state.model
        model = counted.task.build_model(stage.facts.build_config)
        load_into(model, stage.start().model)
        loss_of(model, record, gone, together).backward()
        group = record.groups[0]
        for name, weight in model.named_parameters():
            by_hand = weight.detach() - group["lr"] * weight.grad
            torch.testing.assert_close(found[name], by_hand, rtol=0, atol=1e-12)


def loss_of(model: torch.nn.Module, record: StepRecord, gone: set[int], together: bool) -> Tensor:
    """Of a step without some examples, as two processes would count what is left of their tokens.

    A model that is not named for what it does has the first token of a text counted too, though it
    is not predicted; of a count, the part is left that there is of predicted tokens.
    """
    sums, first = [torch.zeros(())] * 2, 0
    counts, all_of_it, left_of_it = [1.0, 1.0], [0, 0], [0, 0]
    for micro in record.batches or ():
        number, size = 0 if together else micro.process, len(micro.batch["labels"])
        left = [row for row in range(size) if first + row not in gone]
        first += size
        labels = micro.batch["labels"]
        counts[number] = float(micro.batch[ITEMS])
        all_of_it[number] += int((labels[:, 1:] != IGNORED).sum())
        if tokens := int((labels[left, 1:] != IGNORED).sum()):
            left_of_it[number] += tokens
            given = {name: micro.batch[name][left] for name in ("input_ids", "attention_mask")}
            sums[number] = sums[number] + model(**given, labels=labels[left]).loss * tokens
    numbers = [number for number in (0, 1) if left_of_it[number]]
    losses = [sums[n] / (counts[n] * left_of_it[n] / all_of_it[n]) for n in numbers]
    return torch.stack(losses).mean()


def test_first_order_is_the_derivative_of_the_replay(counted: Run) -> None:
    stored = contribute(counted, "test", Question())
    ids = training_rows(counted, counted.stage("first")).table["example_id"].tolist()
    exact, predicted = [], []
    for some in ([ids[0]], ids[1:3], ids[4:7]):
        chosen, nearly = Chosen("first", tuple(some)), 1 - 1e-8
        exact.append(by_replays(counted, stored, chosen, "rest"))
        predicted.append(first_order(stored, chosen, "rest", nearly)[0] / (1 - nearly))
    assert np.abs(exact).min() > 1e-6
    assert predicted == pytest.approx(exact, rel=1e-5, abs=1e-6 * np.abs(exact).max())
