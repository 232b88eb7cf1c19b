"""Both harnesses, run for real on exported models of a tiny run: scores come back as they were.

They are in no list of requirements: ``pip install lm-eval inspect-ai`` into an environment that has
what the tests need, and run this file there.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import stagelens
from stagelens.analyses.removal.exporting import export
from stagelens.effects.answers import answer
from stagelens.effects.given_scores import Added, add_scores
from stagelens.effects.scores import scored
from stagelens.measuring.generation import Generation
from stagelens.measuring.scorers import find_scorer
from stagelens.runs.logs import read_log
from stagelens.runs.logs.log import Wanted
from stagelens.runs.run import Run
from tests.support.text_runs import PROMPTS, STAGES, record_prompts

pytestmark = pytest.mark.slow
lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed"
)
inspect_ai = pytest.mark.skipif(
    importlib.util.find_spec("inspect_ai") is None, reason="inspect-ai is not installed"
)
MODELS = ("final", f"without:{STAGES[0]}")
HOW = Generation(max_tokens=3, stop=("\n",))
CHOICES = [" the mat", " make four", " barked"]

TASKS = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{prompt}}}}"
"""
GENERATED = """
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 3, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOSEN = """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{choices.index(right)}}"
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
INSPECT = """
import sys
from inspect_ai import Task, eval
from inspect_ai.dataset import FieldSpec, json_dataset
from inspect_ai.scorer import Score, accuracy, includes, scorer
from inspect_ai.solver import generate
from inspect_ai.model import get_model

@scorer(metrics=[accuracy()])
def same():
    async def score(state, target):
        right = state.output.completion == target.text
        return Score(value="C" if right else "I", answer=state.output.completion)
    return score

data, model, folder, kind = sys.argv[1:]
samples = json_dataset(data, FieldSpec(input="prompt", target="answer", id="id"))
plain = "{% for m in messages %}{{ m.content }}{% endfor %}"
local = get_model(
    "hf/local", model_path=model, device="cpu", do_sample=False, chat_template=plain,
    tokenizer_call_args={"add_special_tokens": False},
)
(log,) = eval(
    Task(dataset=samples, solver=generate(), scorer=[same(), includes()], name="said"),
    model=local, max_tokens=3, log_dir=folder, log_format=kind, display="none",
)
assert log.status == "success", log.error
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return stagelens.open_run(record_prompts(tmp_path_factory.mktemp("harness") / "run", ()))


@pytest.fixture(scope="module")
def models(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return export(run, MODELS, tmp_path_factory.mktemp("models") / "out")[0]


@pytest.fixture(scope="module")
def data(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts whose references are what the final model says, for every other one of them."""
    said = answer(run, "test", HOW, stages=[STAGES[0]]).models["final"]["answer"]
    path = tmp_path_factory.mktemp("data") / "said.jsonl"
    rows = [
        {
            "id": f"p{number}",
            "prompt": prompt,
            "answer": own if number % 2 == 0 else "nothing",
            "choices": CHOICES,
            "right": CHOICES[number % 3],
        }
        for number, (prompt, own) in enumerate(zip(PROMPTS, said, strict=True))
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def offline(folder: Path) -> dict[str, str]:
    named = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    paths = {"HF_HOME": str(folder / "hf"), "XDG_DATA_HOME": str(folder / "share")}
    return {**os.environ, **paths, **dict.fromkeys(named, "1"), "OMP_NUM_THREADS": "1"}


def evaluated_by_lm_eval(model: Path, data: Path, folder: Path) -> dict[str, Path]:
    """Task to the file of its samples."""
    tasks = folder / "tasks"
    tasks.mkdir(parents=True)
    for name, more in (("said", GENERATED), ("quiz", CHOSEN)):
        (tasks / f"{name}.yaml").write_text(TASKS.format(name=name, data=data) + more)
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"]
    command += ["--model_args", f"pretrained={model}", "--tasks", "said,quiz"]
    command += ["--include_path", str(tasks), "--log_samples", "--output_path", str(folder)]
    done = subprocess.run(command, env=offline(folder), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: next(folder.rglob(f"samples_{name}_*.jsonl")) for name in ("said", "quiz")}


def evaluated_by_inspect(model: Path, data: Path, folder: Path, kind: str) -> Path:
    command = [sys.executable, "-c", INSPECT, *map(str, (data, model, folder, kind))]
    done = subprocess.run(command, env=offline(folder), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return next(folder.rglob(f"*.{kind}"))


def by_stagelens(run: Run, data: Path, name: str) -> pd.DataFrame:
    """The effect table of our own answers to the same prompts, by the same rule."""
    how = Generation(max_tokens=3, stop=("\n",))
    scorer = find_scorer("exact")
    return scored(run, name, answer(run, name, how, stages=[STAGES[0]]), how, scorer).table


def added(run: Run, logs: dict[str, Path], wanted: Wanted, name: str) -> Added:
    """Both models' logs; the table of effects comes with the second one."""
    for model in MODELS:
        found = add_scores(run, read_log(logs[model], wanted), model, name)
    assert found.set_name == name and len(found.results) == len(found.scorers)
    return found


@lm_eval
@inspect_ai
def test_both_harnesses_score_as_we_do_and_come_back_as_they_were(
    run: Run, models: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    samples, logs = {}, {}
    for model, folder in models.items():
        own = tmp_path / folder.name
        samples[model] = evaluated_by_lm_eval(folder, data, own / "lm-eval")
        kind = "eval" if model == "final" else "json"
        logs[model] = evaluated_by_inspect(folder, data, own / "inspect", kind)
    wanted = Wanted(id_field="id")
    said = added(run, {m: own["said"] for m, own in samples.items()}, wanted, "said")
    # The set that was made of lm-eval's log is matched by Inspect's, by id and content.
    inspected = added(run, logs, Wanted(), "said")
    quiz = added(run, {m: own["quiz"] for m, own in samples.items()}, wanted, "quiz")
    tables = {}
    for found in (said, inspected, quiz):
        for result in found.results:
            (kind_,) = result.behaviours
            assert result.trust[STAGES[0]].trust == "exact"
            tables[kind_] = result.table.set_index("example_id")
    ours = by_stagelens(run, data, "said").set_index("example_id")
    exact, same = tables["score:exact_match"], tables["score:same"]
    for column in ("final", "without", "effect"):
        np.testing.assert_array_equal(exact[column], same[column])
        np.testing.assert_array_equal(exact[column], ours[column])
    assert exact["final"].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert exact["prediction"].tolist() == same["prediction"].tolist()
    assert exact["prediction"].tolist() == ours["prediction"].tolist()
    for model, column in zip(MODELS, ("final", "without"), strict=True):
        _as_logged(exact[column], samples[model]["said"], "exact_match")
        _as_logged(tables["score:acc"][column], samples[model]["quiz"], "acc")
        _as_logged(tables["score:acc_norm"][column], samples[model]["quiz"], "acc_norm")
    # The choices came along: our own rule answers the same questions.
    assert json.loads(run.evaluation_set("quiz").examples()[0].columns["choices"]) == CHOICES


def _as_logged(values: pd.Series, path: Path, metric: str) -> None:
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["doc"]["id"]: row[metric] for row in rows} == values.to_dict()
