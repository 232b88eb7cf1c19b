"""A Trainer's batches kept as rows of its data set, in the order that its sampler draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

import stagelens
from stagelens import StageRecorderCallback
from stagelens.contracts import RecordingError, RecordingWarning
from stagelens.recording.loader_rows import LoaderRows
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.data_rows import MORE, beside_of, with_beside
from stagelens.runs.run import Run
from tests.support.loops import differing
from tests.support.small_trainings import KINDS, arguments, examples, made, trainer


def record(kind: str, path: Path, as_rows: bool, **settings: Any) -> tuple[Run, DataLoader[Any]]:
    """A training into a new run; the loader serves to open it again."""
    model, tokenizer = made(kind)
    callback = StageRecorderCallback(path / "run", "sft", as_rows=as_rows)
    args = arguments(path / "out", **settings)
    made_by = trainer(kind, model, tokenizer, args, callbacks=[callback])
    made_by.train()
    loader = made_by.get_train_dataloader()
    return stagelens.open_run(path / "run", datasets={"sft": loader} if as_rows else {}), loader


def batches_of(run: Run) -> list[Any]:
    return [micro.batch for step in run.last.read_steps() for micro in step.batches or ()]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_batches_and_replay_from_them_bit_for_bit(
    kind: str, tmp_path: Path
) -> None:
    # Two epochs of 22 examples in another order each, the last batch of each short; evaluations.
    settings = {
        "gradient_accumulation_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "per_device_eval_batch_size": 3,
    }
    plain, _ = record(kind, tmp_path / "tensors", False, **settings)
    run, _ = record(kind, tmp_path / "rows", True, **settings)
    assert run.problems == plain.problems == []
    assert run.last.facts.rows is not None and run.last.facts.rows.rows == 22
    kept, whole = batches_of(run), batches_of(plain)
    assert len(kept) == len(whole) and [*kept[0]] == [*whole[0]]
    for ours, theirs in zip(kept, whole, strict=True):
        assert differing(ours, theirs) == []
    assert measure_deviation(run.task, run.last).bitwise
    steps = run.last.read_steps()
    assert all(micro.rows is not None for step in steps for micro in step.batches or ())


@pytest.mark.slow
def test_workers_that_load_ahead_and_epochs_that_end_early_disturb_no_row(tmp_path: Path) -> None:
    run, _ = record("bert", tmp_path, True, dataloader_num_workers=2, max_steps=8)
    assert run.problems == [] and run.last.facts.rows is not None
    assert all(micro.rows for step in run.last.read_steps() for micro in step.batches or ())


class Stream(IterableDataset[Any]):
    """Examples without numbers."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


def test_a_data_set_without_row_numbers_is_told_and_its_batches_are_kept(tmp_path: Path) -> None:
    model, tokenizer = made("bert")
    callback = StageRecorderCallback(tmp_path / "run", "sft", as_rows=True)
    args = arguments(tmp_path / "out", max_steps=2)
    data = Stream(examples("bert", tokenizer))
    with pytest.warns(RecordingWarning, match=r"keeps its batches themselves.*map-style"):
        trainer("bert", model, tokenizer, args, callbacks=[callback], train_dataset=data).train()
    run = stagelens.open_run(tmp_path / "run")
    assert run.last.facts.rows is None and run.last.replayable and len(run.problems) == 1


def loader_of(size: int = 3) -> DataLoader[Any]:
    return DataLoader(
        range(10), batch_sampler=BatchSampler(SequentialSampler(range(10)), size, drop_last=False)
    )


def test_a_loader_says_the_rows_of_the_batch_that_comes_next_and_is_left_as_it_was() -> None:
    loader = prepare_data_loader(loader_of())
    rows = LoaderRows(loader)
    assert rows.take() is None
    for batch in loader:
        assert rows.take() == batch.tolist()
    ended = iter(loader)  # an epoch that ends early, after batches were drawn ahead
    assert rows.take() is None and next(ended) is not None
    assert [rows.take() for _ in loader] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert len(loader) == 4 and loader.batch_sampler.drop_last is False
    rows.close()
    assert type(loader.batch_sampler) is BatchSampler
    # Who goes on within an epoch gets other numbers, which the hashes of the batches show.
    rows = LoaderRows(loader)
    (first, *_) = skip_first_batches(loader, 2)
    assert rows.take() == [0, 1, 2] != first.tolist()


def test_what_is_no_loader_of_rows_is_refused() -> None:
    with pytest.raises(RecordingError, match=r"come from a list, .* give it a DataLoader"):
        LoaderRows([1, 2])
    with pytest.raises(RecordingError, match="let the DataLoader make batches"):
        LoaderRows(DataLoader(range(4), batch_size=None))


def test_what_the_rows_do_not_make_is_kept_beside_them() -> None:
    from stagelens.runs.batches import flatten, unflatten

    used = {"ids": torch.arange(4), "items": torch.tensor(7), "pair": (torch.ones(2), "a")}
    made = {"extra": torch.zeros(3), "pair": [torch.ones(2), "a"], "ids": torch.arange(4)}
    taken, given = flatten(used), flatten(made)
    beside = beside_of(taken, given)
    assert [*beside] == [1] and beside[1] == 7
    description, tensors = with_beside(given, taken[0], beside)
    assert unflatten(description, tensors)["items"] == 7 and [*description["dict"]] == [*used]
    assert differing(dict(enumerate(tensors)), dict(enumerate(taken[1]))) == []
    # Nothing in common: nothing is made of rows.
    assert beside_of(taken, flatten({"other": torch.ones(1)})) == {}
    assert beside_of(taken, flatten([torch.ones(1)])) == {} and MORE == "more"
