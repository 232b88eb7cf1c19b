"""Coarse steps take examples out of batches whole: a pair with both of its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stagelens.estimators.coarse_replay import CoarseReplay
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.replaying.coarse_plan import Thinning, take_rows
from stagelens.runs.step_records import MicroBatch
from tests.support.task_runs import SMALL, record


def halves(batch: Any) -> list[int]:
    return [*range(len(batch["input_ids"]) // 2)] * 2


def test_both_rows_of_a_pair_are_kept_and_what_the_batch_says_of_it() -> None:
    thinning, seen = Thinning(0.5, halves), torch.zeros(6)
    for _ in range(4):
        chosen = torch.arange(6)[:, None].expand(6, 3)
        batch = {
            "input_ids": torch.cat([chosen, 10 + chosen]),
            "attention_mask": torch.ones(12, 3),
            "margin": torch.arange(6) / 2,
            "beta": 0.1,
        }
        (part,) = thinning.keep([MicroBatch(batch)], [MicroBatch(batch)])
        ids = part.batch["input_ids"][:, 0]
        own, other = ids.chunk(2)
        assert len(own) == 3 and (other - own == 10).all()
        assert torch.equal(part.batch["margin"], own / 2)
        assert part.batch["beta"] == 0.1 and len(part.batch["attention_mask"]) == 6
        seen += torch.bincount(own, minlength=6)
    assert seen.tolist() == [2] * 6


def test_tensors_that_a_trainer_puts_below_each_other_have_a_row_per_example() -> None:
    batch = {"chosen_ids": torch.arange(4), "rejected_ids": torch.arange(4) + 10}
    (part,) = Thinning(0.5, lambda _: [0, 1, 2, 3] * 2).keep(
        [MicroBatch(batch)], [MicroBatch(batch)]
    )
    assert (part.batch["rejected_ids"] - part.batch["chosen_ids"]).tolist() == [10, 10]


def test_a_count_of_scored_tokens_shrinks_with_them() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]])
    batch = {"completion_mask": mask, "num_items_in_batch": torch.tensor(24)}
    assert float(take_rows(batch, [0, 1])["num_items_in_batch"]) == 12


@pytest.mark.slow
def test_a_reward_model_is_replayed_coarsely_pair_by_pair(tmp_path: Path) -> None:
    """Once its batches were cut between the rows of pairs, and the loss failed."""
    run = record(tmp_path / "run", SMALL["reward-model"]())
    (found,) = counterfactuals(run, CoarseReplay(0.5), run.stages[:1])
    assert found.trust.trust == "estimated"
