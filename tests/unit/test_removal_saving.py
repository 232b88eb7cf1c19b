"""The edited model as a checkpoint, from Python and from the command line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import stagelens
from stagelens.analyses.removal import measurements, saving
from stagelens.analyses.removal.spec import Edit
from stagelens.contracts import Refused, StageLensError
from stagelens.measuring.models import BATCH_SIZE, measure
from stagelens.runs.run import Run, open_run
from tests.conftest import DemoRun
from tests.support.checkpoints import classifiers, labelled_texts
from tests.support.small_texts import TEXTS


@pytest.fixture
def run(digits_run: DemoRun, tmp_path: Path) -> Run:
    return open_run(shutil.copytree(digits_run.path, tmp_path / "digits"))


@pytest.fixture
def texts(tmp_path: Path) -> Run:
    folders = classifiers(tmp_path / "checkpoints")
    return stagelens.assemble(
        folders, tmp_path / "run", evaluation=labelled_texts(tmp_path / "test.jsonl")
    )


def half(stage: str, estimator: str, **more: object) -> Edit:
    return Edit.model_validate({"estimator": estimator, "strengths": {stage: 0.5}, **more})


def command(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stagelens", "remove", *map(str, words)],
        capture_output=True,
        text=True,
    )


def test_a_saved_model_of_another_kind_loads_with_load_state_dict(run, tmp_path: Path) -> None:
    examples = run.evaluation_set("mixed-up")
    edit = half("mislabelled", "replay")
    folder = saving.save(run, edit, tmp_path / "edited", examples, "group")
    config = json.loads((folder / "config.json").read_text())
    task = type(run.task)(**config["task_config"])
    model = task.build_model(config["model"])
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    weights = dict(model.named_parameters())
    (answers,) = measure(task, model, [weights], examples.batches(BATCH_SIZE), examples.count)
    (one,) = measurements.measure_edits(run, examples, [edit])
    assert answers.answers.tolist() == one.table["prediction"].tolist()


def test_a_saved_text_model_loads_with_from_pretrained_and_says_what_was_measured(
    texts: Run, tmp_path: Path
) -> None:
    examples = texts.evaluation_set()
    edit = half("sft", "task-vector")
    folder = saving.save(texts, edit, tmp_path / "edited", examples)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        places = [model(**tokenizer(text, return_tensors="pt")).logits.argmax() for text in TEXTS]
    (one,) = measurements.measure_edits(texts, examples, [edit])
    assert [model.config.id2label[int(place)] for place in places] == one.table[
        "prediction"
    ].tolist()


def test_the_card_names_the_run_the_edit_its_trust_and_the_figures(run, tmp_path: Path) -> None:
    edit = half("shortcut", "replay", layers={"shortcut": {"0": 0.5}})
    examples = run.evaluation_set("test")
    folder = saving.save(run, edit, tmp_path / "edited", examples, "group")
    card = (folder / "README.md").read_text()
    for words in (run.digest, examples.digest, "`shortcut` | 50% | exact", "`0` 25%", "replay"):
        assert words in card
    figures, _ = saving.before_and_after(run, examples, edit, "group")
    groups = figures.metrics.groups
    rows = groups[groups["group"] == "stamped"].set_index("model")["accuracy"]
    before, after = (f"{100 * rows[name]:.1f} %" for name in ("final model", "edited"))
    assert re.search(rf"group stamped .*{before} .*{after} ", card)
    assert Edit.model_validate_json((folder / saving.SPEC).read_text()) == edit


def test_nothing_is_overwritten_and_nothing_is_left_behind(run, tmp_path: Path) -> None:
    out = tmp_path / "taken"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(StageLensError, match="taken is not empty"):
        saving.save(run, half("shortcut", "replay"), out, None)
    with pytest.raises(Refused, match="nothing is taken out"):
        saving.save(run, Edit(estimator="replay", strengths={}), tmp_path / "new", None)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    assert not (tmp_path / "new").exists()


def test_the_command_measures_saves_and_refuses_in_one_line(run, tmp_path: Path) -> None:
    out = tmp_path / "edited"
    told = ("--estimator", "replay", "--set", "test", "--stage", "shortcut", "--strength", "0.75")
    done = command(run.path, *told, "--stage", "mislabelled", "--strength", "0.25", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "shortcut, 75%: exact" in done.stdout and "mislabelled, 25%: exact" in done.stdout
    spec = json.loads((out / saving.SPEC).read_text())
    assert spec["strengths"] == {"shortcut": 0.75, "mislabelled": 0.25}
    again = command(run.path, *told, "--out", out)
    assert again.returncode == 1 and "is not empty" in again.stderr
    odd = command(run.path, *told, "--stage", "mislabelled")
    assert odd.returncode == 1 and "give each stage once" in odd.stderr
    assert "Traceback" not in again.stderr + odd.stderr


def test_the_command_looks_for_the_smallest_edit_that_closes_a_gap(run, tmp_path: Path) -> None:
    told = ("--set", "test", "--stage", "shortcut", "--estimator", "replay")
    out = tmp_path / "edited"
    done = command(run.path, *told, "--close-gap", "stamped", "--control", "clean", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "the gap between clean and stamped" in done.stdout
    assert set(json.loads((out / saving.SPEC).read_text())["layers"]) == {"shortcut"}
    wrong = command(run.path, *told, "--control", "clean")
    assert wrong.returncode == 1 and "--control and --tolerance belong to" in wrong.stderr
