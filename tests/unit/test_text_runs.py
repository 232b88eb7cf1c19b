"""Runs of models on texts: recorded in a plain loop, replayed bit for bit, and attributed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import stagelens
from stagelens.cli import app
from stagelens.contracts import RunError, StageLensError
from stagelens.derivatives.curvature import StageLoss
from stagelens.effects.computing import attribute, boundaries
from stagelens.replaying.reproduction import measure_deviation
from stagelens.tasks import CausalLM, TextClassification
from tests.support.damage import edit_and_seal
from tests.support.loops import refused, train
from tests.support.small_texts import TEXTS, bert, bert_tokenizer, classification, language

Made = tuple[stagelens.Task, Any]


def batches(task: stagelens.Task, seed: int, count: int = 10) -> list[Any]:
    """Batches of texts of different lengths, as a loader makes them."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        texts = [TEXTS[row] for row in random.integers(0, len(TEXTS), 4)]
        if isinstance(task, TextClassification):
            made.append(task.batch(texts, random.integers(0, 3, 4).tolist()))
        elif isinstance(task, CausalLM) and number % 2:
            made.append(task.batch(prompts=texts, completions=[" birds", " a dog", " x", "the"]))
        elif isinstance(task, CausalLM):
            items = torch.tensor(9 + number)  # as a Trainer counts the labels of a whole step
            made.append({"num_items_in_batch": items, **task.batch(texts)})
    return made


def record(path: Path, made: Made, stages: int = 3, seed: int = 0) -> stagelens.Run:
    task, model = made
    torch.manual_seed(seed)
    recorder = stagelens.Recorder(path, task, name="texts")
    for number in range(stages):
        model.train()
        kind = torch.optim.SGD if number == 1 else torch.optim.AdamW
        optimizer = kind(model.parameters(), lr=0.01 if number == 1 else 1e-4)
        with recorder.stage(f"s{number}", model=model, optimizer=optimizer) as stage:
            train(task, model, optimizer, batches(task, number), stage=stage)
    labels = ["calm", "loud", "odd", "calm", None]
    recorder.add_set("test", texts=list(TEXTS), labels=labels if task.name[0] == "t" else None)
    recorder.close()
    return stagelens.open_run(path)


TASKS: dict[str, Callable[[], Made]] = {
    "text-classification": classification,
    "causal-lm": language,
}


@pytest.fixture(scope="module", params=list(TASKS))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> stagelens.Run:
    return record(tmp_path_factory.mktemp("run") / "run", TASKS[request.param]())


@pytest.fixture
def copied(run: stagelens.Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run.path, tmp_path / "copy"))


def test_every_stage_replays_bit_for_bit(run: stagelens.Run) -> None:
    assert [measure_deviation(run.task, stage).bitwise for stage in run.stages] == [True] * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator", ["task-vector", "coarse-replay", "unrolled-jump", "unrolled-scale", "replay"]
)
def test_every_estimator_gives_effects(run: stagelens.Run, estimator: str) -> None:
    settings = {"budget": 0.5} if estimator == "coarse-replay" else None
    result = attribute(run, "test", estimator, settings=settings)
    assert {trust.trust for trust in result.trust.values()} <= {"exact", "estimated"}
    first = run.task.behaviour_kinds[0].name
    rows = result.table[result.table["behaviour"] == first]
    known = rows[rows["final"].notna()]
    assert len(known) == 3 * (4 if run.task.name == "text-classification" else 5)
    assert known["effect"].abs().min() > 0
    np.testing.assert_allclose(known["effect"], known["final"] - known["without"])


@pytest.mark.slow
def test_estimates_are_close_to_the_replay(run: stagelens.Run) -> None:
    first = run.task.behaviour_kinds[0].name

    def effects(estimator: str) -> np.ndarray:
        table = attribute(run, "test", estimator).table
        rows = table[(table["behaviour"] == first) & table["final"].notna()]
        return rows["effect"].to_numpy()

    truth = effects("replay")
    for estimator in ("task-vector", "unrolled-jump", "unrolled-scale"):
        assert np.corrcoef(effects(estimator), truth)[0, 1] > 0.9, estimator


def test_behaviours_are_measured_at_every_boundary(run: stagelens.Run) -> None:
    table = boundaries(run, "test").table
    assert list(table["boundary"].unique()) == ["base", "s0", "s1", "s2"]


def _first_effects(folder: Path, attention: str) -> np.ndarray:
    tokenizer = bert_tokenizer()
    model = bert(tokenizer)
    model.set_attn_implementation(attention)
    run = record(folder, (TextClassification.from_model(model, tokenizer), model), 2)
    found = attribute(run, "test", "unrolled-jump")
    assert found.trust["s0"].trust == "estimated", found.trust["s0"].reason
    table = found.table
    return table[(table["stage"] == "s0") & table["final"].notna()]["effect"].to_numpy()


def test_derivatives_through_fused_attention_are_those_without_it(tmp_path: Path) -> None:
    fused, plain = (_first_effects(tmp_path / name, name) for name in ("sdpa", "eager"))
    np.testing.assert_allclose(fused, plain, rtol=1e-2, atol=1e-4)


def test_unrolled_refuses_what_has_fused_attention_only_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = bert_tokenizer()
    model = bert(tokenizer)
    model.set_attn_implementation("sdpa")
    run = record(tmp_path / "run", (TextClassification.from_model(model, tokenizer), model), 2)
    assert measure_deviation(run.task, run.stages[1]).bitwise

    def fails(*_: object) -> None:
        raise ValueError("there is no other")

    monkeypatch.setattr(type(model), "set_attn_implementation", fails)
    monkeypatch.setattr(StageLoss, "push", None)  # the first step would fail
    trust = attribute(run, "test", "unrolled-jump").trust["s0"]
    assert trust.trust == "refused"
    for said in ("'sdpa'", "there is no other", 'attn_implementation="eager"', "coarse-replay"):
        assert said in trust.reason


# Assets in the run folder


def test_the_run_folder_keeps_the_tokenizer_and_gives_it_back(run: stagelens.Run) -> None:
    listed = json.loads((run.path / "run.json").read_text())["task"]["files"]
    settings = ["generation_config.json"] if run.task.name == "causal-lm" else []
    assert sorted(listed) == [*settings, "tokenizer.json", "tokenizer_config.json"]
    assert {entry["path"] for entry in listed.values()} == {f"task/{name}" for name in listed}
    assert sorted(p.name for p in (run.path / "task").iterdir()) == sorted(listed)
    assert run.task.assets == TASKS[run.task.name]()[0].assets


def test_the_tokenizer_counts_for_the_digest(tmp_path: Path) -> None:
    tokenizers = [bert_tokenizer(), bert_tokenizer(), bert_tokenizer()]
    tokenizers[2].add_special_tokens({"pad_token": "[MASK]"})
    digests = []
    for number, tokenizer in enumerate(tokenizers):
        model = bert(tokenizer)
        made = TextClassification.from_model(model, tokenizer), model
        digests.append(record(tmp_path / str(number), made, 1).digest)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_missing_or_cut_asset_is_named_when_the_run_is_opened(copied: Path, name: str) -> None:
    path = copied / "task" / name
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    with refused(f"task/{name} has", "truncated", by=RunError):
        stagelens.open_run(copied)
    path.unlink()
    with refused(f"task/{name} is missing", "restore it", by=RunError):
        stagelens.open_run(copied)


def test_a_changed_asset_is_named_before_it_is_used(copied: Path) -> None:
    path = copied / "task" / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"cat", b"cow"))
    opened = stagelens.open_run(copied)
    with refused("task/tokenizer.json was changed", "restore", by=RunError):
        _ = opened.task


@pytest.mark.parametrize("path", ["../tokenizer.json", "/etc/passwd", "task/../../x"])
def test_an_asset_outside_the_run_folder_is_not_opened(copied: Path, path: str) -> None:
    def lead_outside(content: Any) -> None:
        content["task"]["files"]["tokenizer.json"]["path"] = path

    edit_and_seal(copied / "run.json", lead_outside)
    with refused("path", by=RunError):
        stagelens.open_run(copied)


def test_a_run_goes_on_with_the_same_tokenizer_only(copied: Path, run: stagelens.Run) -> None:
    stagelens.Recorder(copied, run.task, resume=True).close()
    other = type(run.task)(**run.task.config, assets={**run.task.assets, "more.txt": b"x"})
    with refused("recorded with another task"):
        stagelens.Recorder(copied, other, resume=True)


class OwnTask(CausalLM):
    """Given on the command line, as users give a task that is not installed."""


def test_a_task_given_by_name_gets_config_and_assets(run: stagelens.Run) -> None:
    own = f"{__name__}:OwnTask"
    options = ["attribute", str(run.path), "--task", own, "--estimator", "task-vector"]
    done = CliRunner().invoke(app, options)
    if run.task.name == "causal-lm":
        assert done.exit_code == 0, done.output
    else:
        assert isinstance(done.exception, StageLensError)
        assert f"task {own} does not accept the recorded config" in str(done.exception)
