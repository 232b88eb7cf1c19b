"""What a real Trainer leaves behind gives a stage its schedule and its optimiser."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import stagelens
from stagelens.assembling.checkpoints import open_checkpoint
from stagelens.assembling.trainer_facts import trainer_facts
from stagelens.contracts import StageLensError
from tests.support.checkpoints import edit_json, save
from tests.support.small_texts import TEXTS, bert, bert_tokenizer


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, tokenizer: Any) -> None:
        self.rows = [tokenizer(text, padding="max_length", max_length=24) for text in TEXTS * 4]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {**self.rows[number], "labels": number % 3}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and a Trainer's output folder of ten steps with two checkpoints."""
    root = tmp_path_factory.mktemp("trained")
    tokenizer = bert_tokenizer()
    model = bert(tokenizer)
    save(model, root / "base")
    arguments = transformers.TrainingArguments(
        str(root / "sft"),
        max_steps=10,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        lr_scheduler_type="linear",
        weight_decay=0.1,
        logging_steps=2,
        save_steps=5,
        report_to="none",
        use_cpu=True,
        seed=0,
    )
    transformers.Trainer(
        model, arguments, train_dataset=Rows(tokenizer), processing_class=tokenizer
    ).train()
    return root


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "trained"))


def test_the_last_checkpoint_is_the_stages_end(folder: Path, tmp_path: Path) -> None:
    stages = {"base": folder / "base", "sft": folder / "sft"}
    run = stagelens.assemble(stages, tmp_path / "run")
    assert run.problems == [
        "sft: ends at checkpoint-10; earlier checkpoints are not used (checkpoint-5)"
    ]
    end = transformers.AutoModel.from_pretrained(folder / "sft" / "checkpoint-10")
    expected = end.encoder.layer[0].output.dense.weight
    assert torch.equal(run.last.end().model["bert.encoder.layer.0.output.dense.weight"], expected)
    assert "sft/checkpoint-10" in run.last.facts.description


def test_schedule_and_optimiser_are_facts_of_the_stage(folder: Path, tmp_path: Path) -> None:
    stages = {"base": folder / "base", "sft": folder / "sft"}
    stage = stagelens.assemble(stages, tmp_path / "run").last
    assert (stage.steps, stage.updates) == (0, 10)
    table = stage.table()
    assert table["step"].tolist() == [1, 3, 5, 7, 9]
    assert table["loss"].between(0, 20).all()
    assert table["lr"].is_monotonic_decreasing
    assert table["lr"].max() < 0.01
    optimizer = stage.facts.optimizer
    assert optimizer is not None
    assert optimizer.name == "AdamW"
    first, second = (group.hyperparameters for group in optimizer.groups)
    assert first["lr"] == pytest.approx(0.01)  # before the schedule
    assert (first["weight_decay"], second["weight_decay"]) == (0.1, 0.0)
    assert first["betas"] == [0.9, 0.999]
    again = stagelens.open_run(tmp_path / "run")
    assert again.last.table().equals(table)


def test_facts_do_not_change_the_run_digest_unless_they_are_recorded_training(
    folder: Path, tmp_path: Path
) -> None:
    stages = {"base": folder / "base", "sft": folder / "sft"}
    with_state = stagelens.assemble(stages, tmp_path / "one").digest
    (folder / "sft/checkpoint-10/trainer_state.json").unlink()
    run = stagelens.assemble(stages, tmp_path / "two")
    assert run.digest == with_state
    assert len(run.last.table()) == 0


def test_a_checkpoint_folder_can_be_given_by_itself(folder: Path, tmp_path: Path) -> None:
    stages = {
        "base": folder / "base",
        "early": folder / "sft/checkpoint-5",
        "late": folder / "sft/checkpoint-10",
    }
    run = stagelens.assemble(stages, tmp_path / "run")
    assert [stage.updates for stage in run.stages] == [5, 10]
    reversed_order = {"base": stages["base"], "late": stages["late"], "early": stages["early"]}
    with pytest.raises(StageLensError, match=r"late \(checkpoint-10\) is later than early"):
        stagelens.assemble(reversed_order, tmp_path / "other")


def test_a_model_saved_at_the_end_is_the_stages_end(folder: Path, tmp_path: Path) -> None:
    model = bert(bert_tokenizer(), seed=3)
    model.save_pretrained(folder / "sft")
    stages = {"base": folder / "base", "sft": folder / "sft"}
    run = stagelens.assemble(stages, tmp_path / "run")
    state = run.last.end().model
    assert torch.equal(state["classifier.weight"], model.classifier.weight)
    assert run.last.updates == 10  # facts are still those of the last checkpoint


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth"]
)
def test_code_in_a_pickle_is_never_run(name: str, folder: Path, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    with open(folder / "sft/checkpoint-10" / name, "wb") as file:
        pickle.dump({"param_groups": [], "state": Trap(trap)}, file)
    torch.save({"param_groups": [], "state": Trap(trap)}, folder / "sft/checkpoint-5" / name)
    for checkpoint in ("checkpoint-5", "checkpoint-10"):
        stages = {"base": folder / "base", "sft": folder / "sft" / checkpoint}
        run = stagelens.assemble(stages, tmp_path / checkpoint)
        assert not trap.exists()
        if name == "optimizer.pt":
            assert run.last.facts.optimizer is None
            assert any("optimizer.pt is not read" in problem for problem in run.problems)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", b"{}", pickle.dumps({"param_groups": []}), os.urandom(1000)],
    ids=["empty", "cut zip", "text", "pickle without groups", "noise"],
)
def test_an_optimiser_that_cannot_be_read_is_said(content: bytes, folder: Path) -> None:
    (folder / "sft/checkpoint-10/optimizer.pt").write_bytes(content)
    facts = trainer_facts(open_checkpoint("sft", folder / "sft"))
    assert facts.optimizer is None
    assert len(facts.notes) == 1
    assert "optimizer.pt is not read" in facts.notes[0]
    assert facts.updates == 10


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [
        (torch.optim.SGD, "SGD"),
        (torch.optim.Adam, "Adam"),
        (torch.optim.AdamW, "AdamW"),
        (torch.optim.Adagrad, None),
    ],
)
def test_the_kind_of_optimiser_is_known_by_its_settings(
    optimizer: Any, kind: str | None, folder: Path
) -> None:
    made = optimizer(torch.nn.Linear(2, 2).parameters(), lr=0.5)
    torch.save(made.state_dict(), folder / "sft/checkpoint-10/optimizer.pt")
    facts = trainer_facts(open_checkpoint("sft", folder / "sft"))
    assert (facts.optimizer and facts.optimizer.name) == kind
    assert facts.notes == []
    if facts.optimizer is not None:
        assert facts.optimizer.groups[0].hyperparameters["lr"] == 0.5


@pytest.mark.parametrize(
    "history",
    [
        None,
        {"step": 1},
        [3, None, {"loss": 1.0}, {"step": "1", "loss": 1.0}],
        [{"step": -1, "loss": 1.0}, {"step": 0, "loss": 1.0}, {"step": True, "loss": 1.0}],
        [{"step": 1, "loss": "low"}, {"step": 2, "loss": float("nan")}, {"step": 3}],
        [{"step": 4, "eval_loss": 1.0}],
    ],
    ids=str,
)
def test_a_history_that_says_nothing_is_none(history: Any, folder: Path) -> None:
    path = folder / "sft/checkpoint-10/trainer_state.json"
    edit_json(path, lambda state: state.update(log_history=history, global_step="ten"))
    facts = trainer_facts(open_checkpoint("sft", folder / "sft"))
    assert (facts.history, facts.updates) == (None, None)


def test_a_history_keeps_what_it_says(folder: Path, tmp_path: Path) -> None:
    log = [
        {"step": 20, "loss": 0.25, "learning_rate": 0.5},
        {"step": 10, "loss": 1.0},
        {"step": 10, "loss": 0.5},
        {"step": 30, "learning_rate": 0.125},
        {"step": 30, "train_loss": 0.7},
    ]
    path = folder / "sft/checkpoint-10/trainer_state.json"
    edit_json(path, lambda state: state.update(log_history=log))
    run = stagelens.assemble({"base": folder / "base", "sft": folder / "sft"}, tmp_path / "run")
    table = run.last.table()
    assert table["step"].tolist() == [9, 19, 29]
    np.testing.assert_array_equal(table["loss"], [0.5, 0.25, np.nan])
    np.testing.assert_array_equal(table["lr"], [np.nan, 0.5, 0.125])


def test_a_state_that_is_no_json_is_said(folder: Path) -> None:
    (folder / "sft/checkpoint-10/trainer_state.json").write_text(json.dumps([]))
    facts = trainer_facts(open_checkpoint("sft", folder / "sft"))
    assert facts.updates is None
    assert "trainer_state.json does not hold a JSON object" in facts.notes[0]
