"""The training examples of a stage: answers, losses over time, duplicates, doubts, groups."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import stagelens
from stagelens.analyses.contributions.computing import contribute
from stagelens.analyses.contributions.contribution_table import Question
from stagelens.analyses.training_data import computing, tables
from stagelens.analyses.training_data.computing import training_data
from stagelens.analyses.training_data.groups import (
    CONTRIBUTION,
    group_table,
    groupings,
    with_contributions,
)
from stagelens.analyses.training_data.marks import BOTH, FINAL, LEAK, NEAR, SAME, SUSPECT, marked
from stagelens.analyses.training_data.marks import WITHOUT as BY_WITHOUT
from stagelens.analyses.training_data.reading import texts, texts_in
from stagelens.analyses.training_data.tables import TrainingData, contents, load
from stagelens.cli import app
from stagelens.contracts import Example, RunError
from stagelens.effects.computing import attribute
from stagelens.runs.states import load_into
from stagelens.tasks import ImageClassification
from tests.support.small_texts import TEXTS, classification

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
PIXELS[5] = PIXELS[0]  # the same image, under another label
LABELS = (0, 1, 0, 1, 0, 1)
LONG = "the cat sat on the mat and the birds sing in the tree by the house"
NEARLY = LONG.replace("cat", "car")


def _record(path: Path) -> stagelens.Run:
    """Two stages over six images, three at a time; the second without the first of them."""
    task = ImageClassification(["a", "b"], (1, 4, 4), {"kind": "mlp", "hidden": [5]})
    torch.manual_seed(0)
    model = task.build_model()
    given = zip(PIXELS, LABELS, strict=True)
    images, labels = task.collate([Example("", {"image": p}, "ab"[k]) for p, k in given])
    with closing(stagelens.Recorder(path, task, name="tiny")) as recorder:
        for name, steps in (("first", 6), ("second", 4), ("third", 2)):
            optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
            with recorder.stage(
                name, model=model, optimizer=optimizer, checkpoint_every=2
            ) as stage:
                for step in range(steps):
                    rows = torch.arange(3) + 3 * (step % 2)
                    batch = (images[rows], labels[rows])
                    loss = task.loss(model, batch)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    stage.step(batch, loss)
        recorder.add_set("test", images=PIXELS[1:4], labels=["b", "a", None], ids=["x", "y", "z"])
    return stagelens.open_run(path, task)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> stagelens.Run:
    made = _record(tmp_path_factory.mktemp("tiny") / "run")
    attribute(made, "test", "replay")
    return made


@pytest.fixture(scope="module")
def found(run: stagelens.Run) -> TrainingData:
    return training_data(run, "second")


def test_every_example_is_there_once_with_its_uses_and_its_other_labels(
    found: TrainingData,
) -> None:
    frame = found.frame.set_index("example_id")
    assert list(frame.index) == ["0-0", "0-1", "0-2", "1-0", "1-1", "1-2"]
    assert frame["uses"].tolist() == [2] * 6
    assert frame.loc["0-0", "other_labels"] == "b" and frame.loc["1-2", "other_labels"] == "a"
    assert frame["other_labels"].notna().sum() == 2


def test_losses_and_answers_are_those_of_the_models_of_then(
    run: stagelens.Run, found: TrainingData
) -> None:
    assert found.answers is not None
    assert found.answers.moments == (
        *(("first", 0), ("first", 6)),
        *(("second", 2), ("second", 4), ("third", 2)),
    )
    path = found.over_time("1-1")
    images, labels = run.task.collate([Example("", {"image": PIXELS[4]}, "a")])
    second = run.stage("second")
    states = [run.stages[0].start(), second.start(), *(s for _, s in second.within())]
    states += [second.end(), run.last.end()]
    model = run.task.build_model().eval()
    for value, state in zip(path["value"], states, strict=True):
        load_into(model, state.model)
        expected = nn.functional.cross_entropy(model(images), labels)
        assert value == pytest.approx(expected.item(), rel=1e-5)


def test_the_model_without_the_stage_is_asked_where_it_is_known(
    run: stagelens.Run, tmp_path: Path
) -> None:
    found = training_data(run, "second")
    assert found.answers is not None and found.answers.without is not None
    assert found.answers.without.trust == "exact"
    assert found.frame["value_without"].notna().all()
    path = Path(shutil.copytree(run.path, tmp_path / "run"))
    shutil.rmtree(path / "results")
    bare = stagelens.open_run(path, run.task)
    nothing = training_data(bare, "second")
    assert nothing.answers is not None and nothing.answers.without is None
    assert nothing.frame["without"].isna().all()
    # Without the last stage the model is what that started from: nothing has to be computed.
    last = training_data(bare, "third")
    assert last.answers is not None and last.answers.without is not None
    assert last.frame["without"].tolist() == last.frame["before"].tolist()
    # Once there is an estimate, what is stored without one is not enough.
    attribute(bare, "test", "replay")
    again = training_data(bare, "second")
    pd.testing.assert_frame_equal(again.frame, found.frame)


def test_what_is_stored_is_read_and_work_goes_on_where_it_was_stopped(
    run: stagelens.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(run.path, tmp_path / "run"))
    shutil.rmtree(path / "results" / "training-data", ignore_errors=True)
    copy = stagelens.open_run(path, run.task)
    with monkeypatch.context() as patch:

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(computing, "measure_rows", killed)
        with pytest.raises(KeyboardInterrupt):
            training_data(copy, "second")
    halfway = load(copy, "second")
    assert halfway is not None and halfway.answers is None and halfway.duplicates is not None
    whole = training_data(copy, "second")
    pd.testing.assert_frame_equal(whole.frame, training_data(run, "second").frame)
    tables.answers_path(copy, "second").write_bytes(b"damaged")
    assert load(copy, "second").answers is None  # type: ignore[union-attr]


def test_the_same_input_is_found_in_other_stages_and_in_sets(found: TrainingData) -> None:
    frame = marked(found).set_index("example_id")
    assert frame[SAME].tolist() == [
        "first, third",
        *["first, set test, third"] * 3,
        *["first, third"] * 2,
    ]
    assert frame[LEAK].tolist() == [False, True, True, True, False, False]
    leak = found.duplicates[found.duplicates["where"] == "set"]  # type: ignore[index]
    assert dict(zip(leak["example_id"], leak["other_id"], strict=True)) == {
        "0-1": "x",
        "0-2": "y",
        "1-0": "z",
    }
    assert leak["other_label"].isna().tolist() == [False, False, True]
    assert frame[NEAR].isna().all(), "no two of these images look alike"


def test_a_label_is_doubted_by_the_models_that_answer_otherwise(found: TrainingData) -> None:
    frame = found.frame.iloc[:4].assign(
        label=["a", "a", "a", "a"], answer=["a", "b", "a", "b"], without=["a", "a", "b", "b"]
    )
    doubts = marked(replace(found, frame=frame))[SUSPECT]
    assert doubts.isna().tolist() == [True, False, False, False]
    assert doubts.tolist()[1:] == [FINAL, BY_WITHOUT, BOTH]
    assert found.answers is not None
    numbers = replace(found, answers=found.answers.model_copy(update={"judged": False}))
    assert SUSPECT not in marked(numbers), "an answer that is a number is neither right nor wrong"


def test_contributions_are_joined_and_add_up_over_groups(
    run: stagelens.Run, found: TrainingData
) -> None:
    stored = contribute(run, "test", Question(ids=("x",)), "margin")
    frame = with_contributions(run, marked(found), stored, "second", shown=True)
    whole = stored.part("example", "second")["value"].sum()
    assert frame[CONTRIBUTION].sum() == pytest.approx(whole)
    groups = groupings(found, frame)
    assert {"label", LEAK} <= groups.keys()
    table = group_table(frame, groups["label"])
    assert table["contribution"].sum() == pytest.approx(whole)
    assert table["contribution"].abs().is_monotonic_decreasing
    of_a = frame.loc[frame["label"] == "a", CONTRIBUTION]
    row = table.set_index("group").loc["a"]
    # Student's t interval of the mean, times how many there are.
    half = 4.302652729749462 * of_a.std() / np.sqrt(3) * 3
    assert row["high"] - row["low"] == pytest.approx(2 * half)
    assert (row["low"] + row["high"]) / 2 == pytest.approx(row["contribution"])


def test_uses_of_what_cannot_be_shown_add_up(run: stagelens.Run, found: TrainingData) -> None:
    stored = contribute(run, "test", Question(ids=("x",)), "margin")
    part = stored.table["part"] == "example"
    single = stored.table[part & (stored.table["stage"] == "second")]
    # As it is where the task shows nothing: each use by itself.
    again = single.assign(step=single["step"] + 2, value=single["value"] / 3, uses=1)
    split = single.assign(value=single["value"] * 2 / 3, uses=1)
    apart = replace(stored, table=pd.concat([stored.table[~part], split, again]))
    joined = with_contributions(run, found.frame, apart, "second", shown=False)
    usual = with_contributions(run, found.frame, stored, "second", shown=True)
    pd.testing.assert_series_equal(joined[CONTRIBUTION], usual[CONTRIBUTION])


def test_contents_are_read_by_id(run: stagelens.Run, found: TrainingData) -> None:
    shown = contents(run, "second", ["1-1", "0-0"])
    assert shown.keys() == {"1-1", "0-0"}
    assert all(one is not None and one.startswith(b"\x89PNG") for one in shown.values())
    with pytest.raises(RunError, match=r"training-data .* --stage third"):
        tables.looks_path(run, "third").unlink(missing_ok=True)
        contents(run, "third", ["0-0"])


@pytest.fixture(scope="module")
def comments(tmp_path_factory: pytest.TempPathFactory) -> stagelens.Run:
    """Two stages of texts, of which some are nearly the same."""
    path = tmp_path_factory.mktemp("texts") / "run"
    task, model = classification()
    names = list(task.classes)
    with closing(stagelens.Recorder(path, task, name="texts")) as recorder:
        for name, said in (("one", [*TEXTS, LONG]), ("two", [NEARLY, LONG, TEXTS[1]])):
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            with recorder.stage(name, model=model, optimizer=optimizer) as stage:
                batch = task.batch(said, [names[n % len(names)] for n in range(len(said))])
                loss = task.loss(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                stage.step(batch, loss)
        recorder.add_set("test", texts=[TEXTS[0], LONG], labels=[names[0], None], ids=["p", "q"])
    return stagelens.open_run(path, task)


def test_nearly_the_same_texts_are_found_with_how_alike_they_are(comments: stagelens.Run) -> None:
    found = training_data(comments, "two")
    said = texts(comments, "two")
    assert said is not None
    frame = marked(found).assign(said=said.str.startswith("the ca"))
    nearly, long, other = (frame.iloc[row] for row in range(3))
    assert nearly[NEAR] == "one, set test, two" and pd.isna(nearly[SAME])
    assert long[SAME] == "one, set test" and long[NEAR] == "two"
    assert other[SAME] == "one"
    assert frame[LEAK].tolist() == [True, True, False]
    assert found.duplicates is not None and found.duplicate_facts is not None
    alike = found.duplicates[found.duplicates["similarity"] < 1]["similarity"]
    # As many of 62 shingles of five characters differ as hold the letter: 5 on either side.
    words = [" ".join(one.split()) for one in said[:2]]
    parts = [{w[at : at + 5] for at in range(len(w) - 4)} for w in words]
    expected = len(parts[0] & parts[1]) / len(parts[0] | parts[1])
    assert alike.unique().tolist() == [pytest.approx(expected)]
    assert found.duplicate_facts.threshold == 0.8


def test_columns_of_a_file_are_joined_by_input_and_label(
    comments: stagelens.Run, tmp_path: Path
) -> None:
    rows = [
        {"text": NEARLY, "label": comments.task.classes[0], "source": "forum", "uses": "x"},
        {"text": LONG, "label": comments.task.classes[1], "source": "news", "uses": "y"},
        {"text": "the dog ran home", "source": "nowhere", "uses": "z"},
    ]
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    found = training_data(comments, "two", columns_file=file)
    assert found.columns == ("source", "uses (given)")
    assert found.frame["source"].fillna("-").tolist() == ["forum", "news", "-"]
    assert found.column_facts is not None and found.column_facts.unmatched == 1
    again = load(comments, "two")
    assert again is not None and again.columns == found.columns
    file.write_text(json.dumps(rows[2] | {"text": "unheard of"}))
    with pytest.raises(RunError, match=r"no row of .* is a training example of stage 'two'"):
        training_data(comments, "two", columns_file=file)


def test_the_command_writes_tables(run: stagelens.Run, tmp_path: Path) -> None:
    out, groups = tmp_path / "rows.csv", tmp_path / "groups.parquet"
    words = ["training-data", str(run.path), "--stage", "second", "--by", "label"]
    done = CliRunner().invoke(app, [*words, "--out", str(out), "--groups-out", str(groups)])
    assert done.exit_code == 0, done.output
    assert "6 training examples of second, 12 uses" in done.output
    assert "of these in an evaluation set: 3" in done.output
    table = pd.read_csv(out)
    assert {"loss before first", "loss after step 2 of second", "loss without the stage"} <= {
        *table.columns
    }
    assert pd.read_parquet(groups)["examples"].tolist() == [3, 3]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--stage", "none"], "no finished stage 'none'"),
        (
            ["--stage", "second", "--by", "source"],
            "cannot be grouped by 'source'; use one of label",
        ),
        (["--stage", "second", "--groups-out", "x.csv"], "needs --by COLUMN"),
    ],
)
def test_what_cannot_be_done_is_said(run: stagelens.Run, words: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["training-data", str(run.path), *words])
    assert done.exit_code == 1
    assert said in str(done.exception)


def test_what_texts_are_shown_as_is_read_back() -> None:
    assert texts_in(b'{"prompt": "why", "completion": "so"}') == {
        "prompt": "why",
        "completion": "so",
    }
    assert texts_in(b"\x89PNG...") == texts_in(None) == {}
