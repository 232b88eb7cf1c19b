"""Logs of scores, read without changing a number; what is unclear is refused by name."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stagelens.contracts import SetError, StageLensError
from stagelens.runs.logs import read_log
from stagelens.runs.logs.log import Wanted, content_of

DATE = "2026-11-30T14-09-46.963613"


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def sample(number: int, score: Any, **more: Any) -> dict[str, Any]:
    """A row as lm-evaluation-harness 0.4 writes it."""
    return {
        "doc_id": number,
        "doc": {"question": f"What is {number}?", "name": f"q{number}"},
        "target": f" {number}",
        "arguments": {"gen_args_0": {"arg_0": f"What is {number}?", "arg_1": {"until": ["\n"]}}},
        "resps": [[f"{number}"]],
        "filtered_resps": [f"{number}"],
        "filter": "none",
        "metrics": ["exact_match"],
        "doc_hash": "x",
        "exact_match": score,
        **more,
    }


def choice(number: int, target: str) -> dict[str, Any]:
    arguments = {
        f"gen_args_{at}": {"arg_0": "Is it so?", "arg_1": text}
        for at, text in enumerate((" yes", " no"))
    }
    own = {"target": target, "arguments": arguments, "metrics": ["acc"], "acc": 1.0}
    return sample(number, None, filtered_resps=[["-1.0", "True"], ["-2.0", "False"]], **own)


def test_samples_of_lm_eval_are_read_with_what_lies_beside_them(tmp_path: Path) -> None:
    scores = [1.0, 0.1 + 0.2, 0.0]
    rows = [sample(number, score) for number, score in enumerate(scores)]
    path = lines(tmp_path / f"samples_sums_{DATE}.jsonl", rows)
    results = {
        "higher_is_better": {"sums": {"exact_match": False}},
        "versions": {"sums": 2.0},
        "n-shot": {"sums": 3},
        "config": {"model_args": "pretrained=models/final,dtype=float32"},
        "lm_eval_version": "0.4.13",
    }
    (tmp_path / f"results_{DATE}.json").write_text(json.dumps(results))
    log = read_log(path)
    assert (log.tool, log.tool_version, log.task) == ("lm-eval", "0.4.13", "sums")
    assert log.model == "models/final"
    (scorer,) = log.scorers
    assert (scorer.name, scorer.better, scorer.version) == ("exact_match", "lower", "2.0")
    assert scorer.settings == {"tool": "lm-eval", "task": "sums", "filter": "none", "shots": 3}
    np.testing.assert_array_equal(log.values["exact_match"], scores)  # to the last bit
    assert log.rows["example_id"].tolist() == ["0", "1", "2"]
    assert log.rows["prompt"][1] == "What is 1?"
    assert log.rows["content"][1] == content_of("What is 1?")
    assert log.rows["reference"].tolist() == [" 0", " 1", " 2"]
    assert log.rows["answer"].tolist() == ["0", "1", "2"]
    named = read_log(path, Wanted(id_field="name"))
    assert named.rows["example_id"].tolist() == ["q0", "q1", "q2"]
    with pytest.raises(SetError, match="document 0 has no field 'key' with an id; it has question"):
        read_log(path, Wanted(id_field="key"))
    with pytest.raises(SetError, match="no metric 'bleu'; it has exact_match"):
        read_log(path, Wanted(("bleu",)))


def test_choices_and_old_arguments_are_understood(tmp_path: Path) -> None:
    path = lines(tmp_path / "samples.jsonl", [choice(0, "1"), choice(1, "0")])
    log = read_log(path)
    assert log.rows["choices"].tolist() == [(" yes", " no")] * 2
    assert log.rows["reference"].tolist() == [" no", " yes"]
    assert log.rows["prompt"].tolist() == ["Is it so?"] * 2
    old = [sample(0, 1.0, arguments=[["What?", {"until": []}]])]
    assert read_log(lines(path, old)).rows["prompt"][0] == "What?"


def test_filters_are_scorers_of_their_own(tmp_path: Path) -> None:
    rows = [
        sample(number, float(number == 0) if name == "strict" else 1.0, filter=name)
        for name in ("strict", "flexible")
        for number in range(2)
    ]
    path = lines(tmp_path / "samples.jsonl", rows)
    log = read_log(path)
    assert {n: v.tolist() for n, v in log.values.items()} == {
        "exact_match,strict": [1.0, 0.0],
        "exact_match,flexible": [1.0, 1.0],
    }
    only = read_log(path, Wanted(filter_name="strict"))
    assert list(only.values) == ["exact_match,strict"]
    with pytest.raises(SetError, match="no filter 'none'; it has strict, flexible"):
        read_log(path, Wanted(filter_name="none"))


def test_what_is_no_number_is_left_out_and_said(tmp_path: Path) -> None:
    both = ["exact_match", "word_perplexity"]
    rows = [sample(n, True, metrics=both, word_perplexity=[-3.0, 2]) for n in range(2)]
    log = read_log(lines(tmp_path / "samples.jsonl", rows))
    assert log.values["exact_match"].tolist() == [1.0, 1.0]
    assert log.notes == ["word_perplexity has no number of each sample, and was left out"]
    with pytest.raises(SetError, match="no metric with a number"):
        read_log(lines(tmp_path / "samples.jsonl", [sample(0, [1, 2])]))


def test_plain_tables_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "judged.csv"
    path.write_text("id,prompt,answer,score,other\n007,What?,It,0.1,True\nb,Why?,,,0\n")
    log = read_log(path)
    assert log.rows["example_id"].tolist() == ["007", "b"]
    assert log.rows["answer"].tolist() == ["It", None]
    np.testing.assert_array_equal(log.values["judged"], [0.1, np.nan])
    both = read_log(path, Wanted(("score", "other")))
    assert {n: v.tolist()[0] for n, v in both.values.items()} == {"judged": 0.1, "other": 1.0}
    table = pd.DataFrame({"example_id": ["a", "a"], "sample": [0, 1], "score": [1, 2]})
    table.to_json(tmp_path / "s.jsonl", orient="records", lines=True)
    log = read_log(tmp_path / "s.jsonl")
    assert log.rows["sample"].tolist() == [0, 1] and log.rows["content"].isna().all()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("score\n1\n", "no column 'id or example_id' of ids; it has score"),
        ("id,points\na,1\n", "no column 'score' of scores; it has id, points"),
        ("id,score\na,good\n", "score of example 'a' is 'good', which is no number"),
        ("id,score\na,1\na,2\n", "'a' appears twice"),
        ("id,score\n,1\n", "row 1 has no id"),
    ],
)
def test_bad_tables_are_refused(content: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(content)
    with pytest.raises(SetError, match=told):
        read_log(path)


def test_other_files_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"results": {"sums": {}}, "lm_eval_version": "0.4"}))
    with pytest.raises(SetError, match="run lm-eval with --log_samples"):
        read_log(results)
    with pytest.raises(SetError, match="is not a file"):
        read_log(tmp_path / "none.jsonl")
    # Without the package, its name is told; also of JSON, whose format is the package's.
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    content = {"version": 2, "status": "success", "eval": {}, "samples": []}
    (tmp_path / "log.json").write_text(json.dumps(content))
    (tmp_path / "log.eval").write_bytes(b"PK")
    for name in ("log.json", "log.eval"):
        with pytest.raises(StageLensError, match="pip install inspect-ai"):
            read_log(tmp_path / name)
