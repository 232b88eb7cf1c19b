"""Models of a run as checkpoints that other tools open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from typer.testing import CliRunner

import stagelens
from stagelens.analyses.removal.exporting import export
from stagelens.cli import app
from stagelens.contracts import BASE, Refused, StageLensError
from stagelens.effects.answers import answer
from stagelens.effects.exports import ORIGIN, exported
from stagelens.effects.prompts import prompts_of
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.estimators.registry import make_estimator
from stagelens.measuring.generation import Generation
from stagelens.runs.files import sha256_of
from stagelens.runs.run import Run
from tests.support.checkpoints import language_models
from tests.support.loops import BATCH_NORM, Plan, make_task, record_plans
from tests.support.text_runs import STAGES, record_prompts


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_prompts(tmp_path_factory.mktemp("exports") / "run", ("replay",))


@pytest.fixture
def run(recorded: Path) -> Run:
    return stagelens.open_run(recorded)


def test_every_model_is_written_as_it_is(run: Run, tmp_path: Path) -> None:
    models = ["final", f"after:{BASE}", *(f"without:{name}" for name in STAGES)]
    folders, refused = export(run, models, tmp_path / "out")
    assert refused == {}
    assert [path.name for path in folders.values()] == [name.replace(":", "-") for name in models]
    replay = make_estimator("replay")
    expected: dict[str, Any] = {
        f"without:{each.stage}": each.weights for each in counterfactuals(run, replay, run.stages)
    }
    expected |= {"final": run.last.end().model, f"after:{BASE}": run.stages[0].start().model}
    for name, folder in folders.items():
        for tensor, value in load_file(folder / "model.safetensors").items():
            assert torch.equal(value, expected[name][tensor]), (name, tensor)
        facts = exported(folder)
        assert facts is not None and (facts.model, facts.run_digest) == (name, run.digest)
        assert facts.files == {"model.safetensors": sha256_of(folder / "model.safetensors")}
        if facts.trust is not None:
            assert (facts.estimator, facts.trust.trust) == ("replay", "exact")
        assert (facts.trust is None) == (not name.startswith("without"))
        assert name.replace(":", " ") in (folder / "README.md").read_text()


def test_transformers_answers_from_it_as_the_run_does(run: Run, tmp_path: Path) -> None:
    how = Generation(max_tokens=4)
    own = answer(run, "test", how).models[f"without:{STAGES[0]}"]
    (folder,) = export(run, [f"without:{STAGES[0]}"], tmp_path / "out")[0].values()
    assert folder == tmp_path / "out"
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for prompt, said in zip(
        prompts_of(run.evaluation_set("test")).values(), own["answer"], strict=True
    ):
        tokens = tokenizer(prompt, return_tensors="pt")
        out = model.generate(**tokens, max_new_tokens=4, do_sample=False)
        read = tokens["input_ids"].shape[1]
        assert tokenizer.decode(out[0, read:], skip_special_tokens=True) == said


def test_buffers_that_count_are_those_of_the_counterfactual(tmp_path: Path) -> None:
    plans = [
        Plan(name, lambda model, _: torch.optim.SGD(model.parameters(), lr=0.02))
        for name in ("first", "second")
    ]
    run = record_plans(tmp_path / "run", make_task(BATCH_NORM), plans)
    (folder,) = export(run, ["without:second"], tmp_path / "out")[0].values()
    start = run.stage("second").start().model
    counts = [name for name in start if name.endswith("num_batches_tracked")]
    written = load_file(folder / "model.safetensors")
    assert counts and all(torch.equal(written[name], start[name]) for name in counts)
    final = run.last.end().model
    assert not any(torch.equal(written[name], final[name]) for name in counts)


def test_what_cannot_be_had_is_said_and_leaves_nothing(tmp_path: Path, run: Run) -> None:
    path = language_models(tmp_path)
    assembled = stagelens.assemble(path, tmp_path / "run")
    with pytest.raises(Refused, match=r"without:sft: "):
        export(assembled, ["without:sft"], tmp_path / "out", "replay")
    assert not (tmp_path / "out").exists()
    with pytest.raises(StageLensError, match="no finished stage 'nowhere'"):
        export(run, ["without:nowhere"], tmp_path / "out")
    with pytest.raises(StageLensError, match="there is no model 'before:sft'"):
        export(run, ["before:sft"], tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(StageLensError, match="is not empty"):
        export(run, ["final"], tmp_path / "out")
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["mine"]


def test_the_command_writes_all_models(recorded: Path, tmp_path: Path) -> None:
    out = tmp_path / "models"
    done = CliRunner().invoke(app, ["export", str(recorded), "--all", "--out", str(out)])
    assert done.exit_code == 0, done.output
    names = {"final", *(f"without-{name}" for name in STAGES)}
    assert {folder.name for folder in out.iterdir()} == names
    assert json.loads((out / "final" / ORIGIN).read_text())["model"] == "final"
    done = CliRunner().invoke(app, ["export", str(recorded), "--out", str(tmp_path / "none")])
    assert done.exit_code != 0 and "say which models to write" in str(done.exception)
