"""DPO of an adapter that another stage trained: its reference is a copy in the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor

import stagelens
from stagelens.replaying.replay import replay_without
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.states import model_tensors
from tests.support.loops import differing
from tests.support.small_trainings import arguments, made, trainer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
]
trl = pytest.importorskip("trl")

ROWS = [{"prompt": "two and two", "chosen": " make four", "rejected": " make two"}] * 8


def trained(
    folder: Path, ahead: bool, record: Path | None = None, without: str = ""
) -> dict[str, Tensor]:
    """SFT of a new adapter, then DPO of the same one; the weights at the end."""

    def callbacks(stage: str) -> list[Any]:
        return [] if record is None else [stagelens.StageRecorderCallback(record, stage)]

    model, tokenizer = made("gpt")
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM")
    adapted: Any = get_peft_model(model, config)
    if without != "sft":
        args = arguments(folder / "sft", max_steps=2)
        trainer("gpt", adapted, tokenizer, args, callbacks=callbacks("sft")).train()
    settings = trl.DPOConfig(
        output_dir=str(folder / "dpo"),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=5e-3,
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        save_strategy="no",
        precompute_ref_log_probs=ahead,
    )
    torch.manual_seed(1)
    preferring = trl.DPOTrainer(
        adapted,
        args=settings,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
        callbacks=callbacks("dpo"),
    )
    preferring.train()
    return {name: tensor.clone() for name, tensor in model_tensors(preferring.model).items()}


@pytest.mark.parametrize("ahead", [False, True], ids=["each step", "ahead"])
def test_without_sft_the_reference_is_the_adapter_as_it_was_before(
    ahead: bool, tmp_path: Path
) -> None:
    trained(tmp_path, ahead, tmp_path / "run")
    run = stagelens.open_run(tmp_path / "run")
    assert run.problems == []
    renamed = run.last.facts.boundary.renamed
    assert len(renamed) == 4
    assert {name.replace(".ref", ".default") for name in renamed} == set(renamed.values())
    assert all(measure_deviation(run.task, stage).bitwise for stage in run.stages)
    by_hand = trained(tmp_path / "by hand", ahead, without="sft")
    assert differing(replay_without(run, run.stages[0]).state.model, by_hand) == []
