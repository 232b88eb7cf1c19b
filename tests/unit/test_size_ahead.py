"""How large a run becomes is said at its first step, and is what it comes to."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import stagelens
from stagelens.contracts import RecordingWarning
from stagelens.recording.size_ahead import weights_of
from stagelens.runs.sizes import sizes
from tests.support.loops import make_batches, make_task, train
from tests.support.small_texts import gpt, gpt_tokenizer

STEPS = 20


def token_batches(model: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Every label is that of its token, but for padding."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        ids = torch.randint(model.config.vocab_size, (64, 32), generator=generator)
        mask = (torch.arange(32) < 28).long().expand(64, 32).contiguous()
        yield {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": torch.where(mask > 0, ids, -100),
        }


@pytest.mark.parametrize("settings", [{}, {"keep_optimizer": True, "keep_batches": 2}])
def test_a_run_comes_to_what_was_said_at_its_first_step(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    tokenizer = gpt_tokenizer()
    model = gpt(tokenizer, n_embd=32)
    task = stagelens.tasks.CausalLM(model.config.to_dict(), tokenizer)
    recorder = stagelens.Recorder(tmp_path / "run", task)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    with recorder.stage("sft", model=model, optimizer=optimizer, **settings) as stage:
        for number, batch in enumerate(token_batches(model)):
            loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            stage.step(batch, loss)
            assert (recorder.size_ahead is not None) == (number >= 0)
    ahead = recorder.size_ahead
    assert ahead is not None
    found = {each.what: each.bytes for each in sizes(recorder.run())}
    weights = found["weights at its start and end"]
    kept = found.get("optimizer state there", 0)
    assert weights == pytest.approx(ahead.model + ahead.end, rel=0.05)
    assert kept == pytest.approx(ahead.optimizer if settings else 0, rel=0.05)
    assert found["batches and random states"] == pytest.approx(STEPS * ahead.step, rel=0.05)
    whole = weights + kept + found["batches and random states"]
    assert whole == pytest.approx(ahead.model + ahead.stage(STEPS), rel=0.05)


@pytest.mark.parametrize(("free", "warned"), [(10**12, False), (10**5, True)])
def test_a_disk_that_is_too_small_is_told_before_it_is_full(
    free: int, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    task = make_task()
    recorder = stagelens.Recorder(tmp_path / "run", task)
    model = task.build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for name in ("first", "second"):  # said once
            with recorder.stage(name, model=model, optimizer=optimizer) as stage:
                train(task, model, optimizer, make_batches(2), stage=stage)
    said = [str(each.message) for each in told if each.category is RecordingWarning]
    assert [each.name for each in recorder.run().stages] == ["first", "second"]
    assert len(said) == warned
    if warned:
        assert "a stage of 1,000 steps does not fit. The training goes on" in said[0]
        assert "100,000 bytes are free on its disk" in said[0]


def llama(**options: Any) -> Any:
    """A model of 7 billion parameters, without any memory."""
    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        dtype=torch.bfloat16,
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        return peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options))


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"r": 16, "target_modules": ATTENTION}, 0.135e9),
        ({"r": 8, "target_modules": "all-linear"}, 0.16e9),
    ],
    ids=["attention, r 16", "all linear, r 8"],
)
def test_a_stage_on_an_adapter_of_a_model_of_7_billion_adds_under_a_fifth_of_a_gigabyte(
    options: dict[str, Any], most: float
) -> None:
    model = llama(**options)
    assert sum(each.numel() for each in model.parameters()) > 6.7e9
    assert all(each.is_meta for each in model.parameters())
    assert {each.dtype for each in model.parameters() if each.requires_grad} == {torch.float32}
    whole, changed = weights_of(model)
    assert whole > 13e9
    # At its start as at its end.
    assert 0.9 * most < 2 * changed <= most < 0.2e9
