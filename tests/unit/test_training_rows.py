"""The training examples of a stage: their ids, where each was seen, what their data set says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import stagelens
from stagelens.contracts import Example, RunError, Task
from stagelens.runs.data_rows import StageRows
from stagelens.runs.row_columns import row_columns
from stagelens.runs.training_rows import (
    TrainingRows,
    every_use,
    load_training_rows,
    training_rows,
    training_rows_path,
)
from tests.support.loops import make_batches, make_task, train

IMAGES, LABELS = make_batches(1, size=12)[0]
SOURCES = ("forum", "news", "book")


class Rows:
    """A data set whose rows say where they come from."""

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, row: int) -> dict[str, Any]:
        long = "x" * 300
        return {
            "image": IMAGES[row],
            "label": int(LABELS[row]),
            "source": SOURCES[row % 3],
            "length": row,
            "notes": long,
        }


def _collate(rows: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    return torch.stack([r["image"] for r in rows]), torch.tensor([r["label"] for r in rows])


class Unshown(Task):
    """A task that cannot show its training data."""

    classes = ("a", "b", "c")

    def build_model(self, config: Any = None) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(20, 3))

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, labels, reduction="none")


ORDER = ([0, 1, 2, 3], [4, 0, 5, 1], [6, 7, 0, 8])


def _record(path: Path, task: Task, dataset: Any = None, accumulation: int = 1) -> stagelens.Run:
    torch.manual_seed(0)
    model = task.build_model()
    recorder = stagelens.Recorder(path, task)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    more = {} if dataset is None else {"dataset": dataset}
    with recorder.stage(
        "sft", model=model, optimizer=optimizer, accumulation=accumulation, **more
    ) as stage:
        if dataset is None:
            batches = [(IMAGES[rows], LABELS[rows]) for rows in ORDER]
            train(task, model, optimizer, batches, stage=stage, accumulation=accumulation)
        else:
            for rows in ORDER:
                batch = _collate([dataset.dataset[row] for row in rows])
                optimizer.zero_grad()
                loss = task.loss(model, batch)
                loss.backward()
                optimizer.step()
                stage.step(batch, loss, rows=rows)
    recorder.close()
    return recorder.run()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> stagelens.Run:
    return _record(tmp_path_factory.mktemp("rows") / "run", make_task())


@pytest.fixture(scope="module")
def rows(run: stagelens.Run) -> TrainingRows:
    return training_rows(run, run.last)


def test_an_example_is_one_row_and_knows_all_of_its_uses(rows: TrainingRows) -> None:
    assert rows.table["example_id"].tolist() == [
        *("0-0", "0-1", "0-2", "0-3"),
        *("1-0", "1-2"),
        *("2-0", "2-1", "2-3"),
    ]
    first = rows.table.iloc[0]
    assert first["uses"] == 3
    assert list(first["steps"]) == [0, 1, 2] and list(first["positions"]) == [0, 1, 2]
    assert first["label"] == "abc"[int(LABELS[0])]
    assert rows.places(["0-0", "1-2"]) == {0: {0}, 1: {1, 2}, 2: {2}}
    assert rows.facts.shown


def test_places_count_over_the_micro_batches_of_a_step(tmp_path: Path) -> None:
    run = _record(tmp_path / "run", make_task(), accumulation=3)
    (step,) = every_use(run, run.last)
    assert [use.position for use in step] == list(range(12))
    assert [(use.micro, use.place) for use in step[3:6]] == [(0, 3), (1, 0), (1, 1)]
    table = training_rows(run, run.last).table
    assert table["example_id"].tolist()[:5] == ["0-0", "0-1", "0-2", "0-3", "0-4"]
    assert list(table["positions"][0]) == [0, 5, 10]


def test_the_same_input_under_another_label_is_another_example(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = make_task()
    model = task.build_model()
    recorder = stagelens.Recorder(tmp_path / "run", task)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    batches = [(IMAGES[:2], torch.tensor(labels)) for labels in ([0, 1], [1, 1])]
    with recorder.stage("sft", model=model, optimizer=optimizer) as stage:
        train(task, model, optimizer, batches, stage=stage)
    recorder.close()
    run = recorder.run()
    table = training_rows(run, run.last).table
    assert table["example_id"].tolist() == ["0-0", "0-1", "1-0"]
    assert table["content"][0] == table["content"][2] != table["content"][1]


def test_where_a_task_shows_nothing_examples_are_known_by_their_tensors(tmp_path: Path) -> None:
    run = _record(tmp_path / "run", Unshown())
    found = training_rows(run, run.last)
    assert not found.facts.shown and found.table["label"].isna().all()
    assert found.table["uses"].tolist() == [3, 2, 1, 1, 1, 1, 1, 1, 1]


def test_scalar_columns_of_a_recorded_data_set_are_columns(tmp_path: Path) -> None:
    data = torch.utils.data.DataLoader(Rows(), collate_fn=_collate)
    path = tmp_path / "run"
    _record(path, make_task(), data)
    run = stagelens.open_run(path, datasets={"sft": data})
    found = training_rows(run, run.last)
    # Inputs, long texts and what has a column already are left out.
    assert found.facts.columns == ("source", "length")
    assert found.table["length"].tolist() == list(range(9))
    assert found.table["source"].tolist() == [SOURCES[row % 3] for row in range(9)]


def test_a_list_is_stored_once_and_read_without_torch(
    run: stagelens.Run, rows: TrainingRows
) -> None:
    assert training_rows_path(run, run.last).is_file()
    again = load_training_rows(run, run.last)
    assert again is not None
    pd.testing.assert_frame_equal(again.table, rows.table)
    code = (
        "import sys\nfrom stagelens.runs.run import open_run\n"
        "from stagelens.runs.training_rows import load_training_rows\n"
        f"run = open_run({str(run.path)!r})\n"
        "assert len(load_training_rows(run, run.last)) == 9 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_id_and_missing_batches_are_told(rows: TrainingRows, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no training example '9-9'; .*such as 0-0, 0-1, 0-2"):
        rows.places(["9-9"])
    data = torch.utils.data.DataLoader(Rows(), collate_fn=_collate)
    run = _record(tmp_path / "run", make_task(), data)
    with pytest.raises(RunError, match="that was not given"):
        training_rows(stagelens.open_run(run.path), stagelens.open_run(run.path).last)


def test_an_example_of_a_data_set_gives_its_own_columns() -> None:
    own = [Example(str(n), {"image": n}, "a", {"source": SOURCES[n]}) for n in range(3)]
    found = row_columns(StageRows("sft", None, own), [2, 0], ("image",))
    assert found.to_dict("list") == {"source": ["book", "forum"]}
    assert row_columns(StageRows("sft", None, own), [2, None], ("image",)).columns.empty
