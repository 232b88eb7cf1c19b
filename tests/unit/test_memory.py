"""One model in memory at a time, and a refusal before what cannot fit is begun."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity

import stagelens
from stagelens.compute import cgroups, memory
from stagelens.compute.unallocated import allocate, parameters_on_meta
from stagelens.contracts import StageLensError
from stagelens.effects.computing import attribute
from stagelens.estimators.replay import Replay
from stagelens.estimators.task_vector import TaskVector
from stagelens.runs.run import Run
from stagelens.runs.saved_states import save_tensors
from stagelens.runs.states import load_into, model_tensors
from stagelens.runs.streaming import BLOCK, MappedTensors
from stagelens.tasks import CausalLM
from tests.support import odd_runs
from tests.support.checkpoints import labelled_texts, language_models, save
from tests.support.loops import differing
from tests.support.small_texts import gpt, gpt_tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("memory")
    texts = labelled_texts(root / "test.jsonl")
    return stagelens.assemble(language_models(root), root / "run", evaluation=texts)


def test_an_empty_model_has_no_values_until_recorded_ones_are_loaded(run: Run) -> None:
    model = run.task.build_empty()
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    load_into(model, run.last.end().model)
    assert differing(model_tensors(model), run.last.end().model) == []
    # Input and output embeddings are one parameter, as in the model that has values.
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_an_empty_model_takes_no_random_numbers_and_has_the_usual_names(run: Run) -> None:
    before = torch.get_rng_state()
    model = run.task.build_empty()
    assert torch.equal(torch.get_rng_state(), before)
    usual = run.task.build_model()
    facts = {name: (p.shape, p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    assert facts == {n: (p.shape, p.dtype, p.requires_grad) for n, p in usual.named_parameters()}
    assert differing(dict(model.named_buffers()), dict(usual.named_buffers())) == []


def test_a_model_that_code_of_the_users_own_builds_keeps_its_values() -> None:
    tokenizer = gpt_tokenizer()
    own = gpt(tokenizer)
    task = CausalLM(own.config.to_dict(), tokenizer, make_model=lambda _: own)
    assert task.build_empty() is own


def test_models_of_other_threads_keep_their_values() -> None:
    made: list[nn.Module] = []
    with parameters_on_meta():
        thread = threading.Thread(target=lambda: made.append(nn.Linear(2, 2)))
        thread.start()
        thread.join()
        assert nn.Linear(2, 2).weight.is_meta
    assert not made[0].weight.is_meta and not nn.Linear(2, 2).weight.is_meta


def allocated(work: Callable[[], object]) -> int:
    """The most bytes that torch holds at once while ``work`` runs; mapped files do not count."""
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    result = profile.profiler.kineto_results  # type: ignore[union-attr]
    events = [event for event in result.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in events), initial=0))


def test_one_model_is_in_memory_at_a_time(tmp_path: Path) -> None:
    tokenizer, folders = gpt_tokenizer(), {}
    for number, name in enumerate(("base", "sft", "dpo", "rl")):
        model = gpt(tokenizer, n_embd=192, n_layer=4, seed=number)
        folders[name] = save(model, tmp_path / name, tokenizer)
    size = sum(parameter.nbytes for parameter in model.parameters())
    texts = labelled_texts(tmp_path / "test.jsonl")
    held = allocated(lambda: stagelens.assemble(folders, tmp_path / "run", evaluation=texts))
    assert held < 0.3 * size
    run = stagelens.open_run(tmp_path / "run")
    assert allocated(run.task.build_empty) < 0.1 * size
    held = allocated(lambda: attribute(run, "test", "task-vector"))
    assert size < held < 1.3 * size


def test_what_cannot_fit_is_refused_before_it_is_allocated(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda: 10_000)
    with pytest.raises(StageLensError, match=r"model takes at least .* only 10,000 bytes are"):
        allocate(run.task.build_empty())
    with pytest.raises(StageLensError, match="measuring this run's models takes at least"):
        attribute(run, "test", "task-vector")
    assert not (run.path / "results").exists()


def test_an_estimator_that_cannot_fit_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = odd_runs.record(tmp_path / "run", {"first": (1, 0.1), "last": (1, 0.1)})
    needed = 2 * run.last.facts.end_bytes
    assert Replay.memory(run.stages[1:]) == needed and TaskVector.memory(run.stages[1:]) == 0
    monkeypatch.setattr(memory, "available", lambda: needed - 1)
    with pytest.raises(StageLensError, match=r"Replay takes at least .*--estimator task-vector"):
        attribute(run, "test", "replay")
    attribute(run, "test", "task-vector")
    monkeypatch.setattr(memory, "available", lambda: needed)
    attribute(run, "test", "replay")


@pytest.mark.parametrize(
    ("line", "folder", "limit", "usage", "cached"),
    [
        ("0::/own/job", "own", "memory.max", "memory.current", "inactive_file"),
        ("0::/elsewhere", "", "memory.max", "memory.current", "inactive_file"),
        (
            "4:memory:/own",
            "memory/own",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ],
)
def test_the_limit_of_a_container_counts(
    line: str,
    folder: str,
    limit: str,
    usage: str,
    cached: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cgroups, "_ALL", tmp_path)
    monkeypatch.setattr(cgroups, "_OWN", tmp_path / "cgroup")
    assert memory.available() > 10_000  # there is no such group, as on other systems
    (tmp_path / "cgroup").write_text(f"12:cpu:/own\n{line}\n")
    assert memory.available() > 10_000
    own = tmp_path / folder
    own.mkdir(parents=True, exist_ok=True)
    (own / limit).write_text("max\n")
    (own / usage).write_text("900\n")
    (own / "memory.stat").write_text(f"anon 700\n{cached} 200\n")
    assert memory.available() > 10_000
    (own / limit).write_text("1000\n")
    assert memory.available() == 300


def test_what_is_read_in_blocks_is_not_kept_and_a_change_in_place_is(tmp_path: Path) -> None:
    saved = {"a": torch.randn(BLOCK + 5), "b": torch.arange(3), "c": torch.empty(0)}
    save_tensors(tmp_path, "x.safetensors", saved)
    mapped = MappedTensors(tmp_path / "x.safetensors")
    read = {name: torch.cat(list(mapped.blocks(name))) for name in saved}
    assert differing(read, saved) == []
    assert "a" in mapped and "d" not in mapped
    assert "_mapped" not in vars(mapped)
    mapped["a"].mul_(2)
    assert torch.equal(torch.cat(list(mapped.blocks("a"))), 2 * saved["a"])


def test_a_file_that_is_replaced_while_it_is_open_stays_what_it_was(tmp_path: Path) -> None:
    save_tensors(tmp_path, "x.safetensors", {"a": torch.zeros(4)})
    mapped = MappedTensors(tmp_path / "x.safetensors")
    save_tensors(tmp_path, "x.safetensors", {"a": torch.ones(4)})
    assert torch.cat(list(mapped.blocks("a"))).tolist() == mapped["a"].tolist() == [0.0] * 4
