"""Choosing among texts: near duplicates are passed over, and rows of a data set come out."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader
from typer.testing import CliRunner

import stagelens
from stagelens.analyses.contributions.contribution_table import Question
from stagelens.analyses.selection.alike import near_duplicates
from stagelens.analyses.selection.choosing import choose
from stagelens.analyses.selection.exporting import row_numbers, snippet
from stagelens.analyses.selection.outcomes import (
    Wanted,
    load_outcome,
    outcome_path,
    stored_outcomes,
)
from stagelens.cli import app
from stagelens.contracts import StageLensError
from stagelens.runs.data_rows import DATASETS
from tests.support.small_texts import TEXTS, classification

LONG = "the cat sat on the mat and the birds sing in the tree by the house"
SAID = [TEXTS[0], LONG, LONG.replace("cat", "car"), LONG.replace("mat", "map"), TEXTS[1], TEXTS[0]]
"""The second to the fourth are nearly the same; the first and the last are."""
TASK, MODEL = classification()
LABELS = [TASK.classes[n] for n in (0, 1, 1, 1, 2, 0)]
LOADER = DataLoader(
    [*zip(SAID, LABELS, strict=True)],  # type: ignore[arg-type]
    batch_size=3,
    collate_fn=lambda rows: TASK.batch(*map(list, zip(*rows, strict=True))),
)
HERE = "tests.unit.test_selection_of_texts:LOADER"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "run"
    with closing(stagelens.Recorder(path, TASK, name="texts")) as recorder:
        for name in ("one", "two"):
            optimizer = torch.optim.SGD(MODEL.parameters(), 0.1)
            with recorder.stage(name, model=MODEL, optimizer=optimizer, dataset=LOADER) as stage:
                for step in range(4):
                    rows = [3 * (step % 2) + place for place in range(3)]
                    batch = LOADER.collate_fn([LOADER.dataset[row] for row in rows])
                    loss = TASK.loss(MODEL, batch)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    stage.step(batch, loss, rows=rows)
        recorder.add_set("test", texts=SAID[:5], labels=LABELS[:5])
    return path


def _select(path: Path, *options: str) -> str:
    asked = ["select", str(path), "--stage", "two", "--keep", "0.6", "--horizon", "4"]
    given = [f"--dataset={stage}={HERE}" for stage in ("one", "two")]
    told = CliRunner().invoke(app, [*asked, *given, *options], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    return " ".join(told.stdout.split())


def test_distinct_keeps_one_of_what_is_nearly_the_same(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATASETS, "")  # so that what the command sets is taken back
    monkeypatch.delenv(DATASETS)
    out, rows = tmp_path / "kept.csv", tmp_path / "kept.json"
    said = _select(path, "--distinct", "--out", str(out), "--indices", str(rows))
    assert "3 of 5 training examples of two kept" in said
    assert "1 backward sweep through two to rank its examples" in said
    assert "nothing is replayed." in said
    kept = pd.read_csv(out, dtype="string")
    long = {"0-1", "0-2", "1-0"}
    assert len(long & set(kept["example_id"])) == 1 and len(kept) == 3
    # The text that the data set has twice is one example with two rows.
    assert kept.set_index("example_id").loc["0-0", "rows"] == "0 5"
    found = json.loads(rows.read_text())
    assert sorted(found)[0] == 0 and {0, 4, 5} < set(found) and len(found) == 4
    texts = [SAID[row] for row in found]
    assert sum(text not in TEXTS for text in texts) == 1
    # Without it, all that are alike compete.
    _select(path, "--out", str(out))
    plain = pd.read_csv(out, dtype="string")
    assert plain["value"].astype(float).is_monotonic_decreasing and len(plain) == 3


def test_all_of_a_group_are_alike_though_each_names_only_some(path: Path, tmp_path: Path) -> None:
    fresh = shutil.copytree(path, tmp_path / "run")
    shutil.rmtree(fresh / "results", ignore_errors=True)
    run = stagelens.open_run(fresh, TASK, datasets={"one": LOADER, "two": LOADER})
    told: list[str] = []
    wanted = Wanted(
        stage="two",
        set_name="test",
        question=Question(),
        behaviour="loss",
        horizons=(4,),
        keep=0.6,
        distinct=True,
        draws=0,
    )
    choose(run, wanted, lambda _, text: told.append(text))
    assert "looking at the training examples of two" in told
    found = near_duplicates(run, "two")
    assert set(found) == {"0-1", "0-2", "1-0"} and len(set(found.values())) == 1


@pytest.mark.slow
def test_an_outcome_is_found_again_by_what_was_asked(path: Path) -> None:
    run = stagelens.open_run(path, TASK, datasets={"one": LOADER, "two": LOADER})
    wanted = Wanted(
        stage="two", set_name="test", behaviour="loss", horizons=(2, 4), keep=0.6, draws=3
    )
    outcome = choose(run, wanted)
    assert outcome.proof is not None and wanted.replays == 2 * (2 * 2 + 1) + 4 * 3
    assert [trial.horizon for trial in outcome.facts.trials] == [2, 4]
    assert all(len(trial.values) == 2 for trial in outcome.facts.trials)
    assert [part for part, _, _ in outcome.measured("loss")] == ["all", "chosen", "random", "worst"]
    examples = run.evaluation_set("test")
    where = outcome_path(run, examples, wanted)
    stored = stored_outcomes(run, examples, "two")
    assert stored[where].wanted == wanted and not stored_outcomes(run, examples, "one")
    bare = stagelens.open_run(path)  # neither data nor models: as a read-only page has it
    again = load_outcome(bare, bare.evaluation_set("test"), where)
    assert again is not None and again.proof is not None
    pd.testing.assert_frame_equal(again.kept, outcome.kept)
    assert again.proof.parts.keys() == outcome.proof.parts.keys()
    for name, part in again.proof.parts.items():
        pd.testing.assert_frame_equal(part, outcome.proof.parts[name])
    # A copy under the name of another question is not believed, and a proof has to be whole.
    other = where.with_name("outcome-0.parquet")
    other.write_bytes(where.read_bytes())
    assert load_outcome(run, examples, other) is None
    other.unlink()
    for part in where.parent.glob("proof-*.parquet"):
        part.unlink()
    assert load_outcome(run, examples, where) is None
    assert choose(run, wanted).proof is not None


def test_rows_that_are_not_known_are_told_by_the_stage(path: Path) -> None:
    kept = pd.DataFrame({"example_id": ["0-0"], "rows": pd.array([None], dtype="string")})
    with pytest.raises(StageLensError, match="rows of stage 'sft' in a data set are not known"):
        row_numbers(kept, "sft")


def test_the_snippet_takes_the_rows_in_both_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Data(list[str]):
        def select(self, rows: list[int]) -> list[str]:
            return [self[row] for row in rows]

    monkeypatch.chdir(tmp_path)
    Path("kept.json").write_text("[4, 0]")
    read = {"data": Data(SAID)}
    exec(snippet("kept.json"), read)
    assert read["kept"] == [SAID[4], SAID[0]]
    assert {text for batch in read["loader"] for text in batch} == {SAID[4], SAID[0]}  # type: ignore[attr-defined]
