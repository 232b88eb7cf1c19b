"""Pages of a run whose batches are rows of a data set ask for it once, and replay with it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers
from datasets import Dataset, DatasetDict
from streamlit.testing.v1 import AppTest

import stagelens
from stagelens import StageRecorderCallback
from stagelens.effects.results import stored_results
from stagelens.runs.data_rows import DATASETS
from stagelens.ui.reading import sources
from stagelens.ui.server import given_data, jobs
from tests.pages.reading import check, words
from tests.support.small_texts import TEXTS
from tests.support.small_trainings import arguments, made, trainer


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages, the second by rows, and the data set of that one beside it."""
    root = tmp_path_factory.mktemp("rows")
    model, tokenizer = made("bert")
    padded = tokenizer(list(TEXTS), padding="max_length", max_length=12, truncation=True)
    columns = {**padded, "labels": [number % 3 for number in range(len(TEXTS))]}
    data = Dataset.from_dict(columns).with_format("torch")
    data.save_to_disk(root / "data")
    DatasetDict(train=data).save_to_disk(root / "splits")
    for stage in ("first", "second"):
        callback = StageRecorderCallback(root / "run", stage, as_rows=stage == "second")
        trainer(
            "bert",
            model,
            tokenizer,
            arguments(root / "out", max_steps=2),
            callbacks=[callback],
            train_dataset=data,
            data_collator=transformers.default_data_collator,
        ).train()
    recorder = stagelens.Recorder(root / "run", stagelens.open_run(root / "run").task, resume=True)
    recorder.add_set("test", texts=list(TEXTS), labels=[n % 3 for n in range(len(TEXTS))])
    recorder.close()
    assert stagelens.open_run(root / "run").last.facts.rows is not None
    return root


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    given_data.forget()


def use(app: AppTest, folder: Path | str) -> AppTest:
    app.text_input(key="data-set-folder").input(str(folder))
    app.button(key="data-set-use").click()
    return check(app.run())


def test_a_data_set_is_asked_for_once_and_what_pages_start_replays_with_it(
    home: Path, open_page
) -> None:
    app = check(open_page(home, "run=run"))
    assert "kept as rows of a data set" in words(app)
    shown = [each.value for each in app.code]
    assert f"stagelens app {home / 'run'} --dataset second=package.module:name" in shown
    for folder, said in (
        ("/etc", "is not below a folder that the dashboard may open"),
        ("out", "not a folder that dataset.save_to_disk wrote"),
        ("splits", "give the folder of one of them"),
    ):
        assert said in words(use(app, folder))
    app = use(app, "data")
    assert "kept as rows of a data set" not in words(app)
    run = sources.run(sources.source((home / "run").resolve()))
    assert not run.last.no_replay and not run.stages[0].no_replay
    job = jobs.start(
        ("attribute", str(run.path), "--estimator", "replay", "--set", "test"), "Replay"
    )
    until = time.monotonic() + 120
    while job.running:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert job.status().error is None
    stored = stored_results(stagelens.open_run(run.path), "test")
    (facts,) = [each for each in stored if each.estimator == "replay"]
    assert {one.stage: one.trust for one in facts.stages} == {"first": "exact", "second": "exact"}
    # Another run's commands are not given it.
    assert given_data.environment([home / "other"]) == {DATASETS: "[]"}


def test_a_server_that_only_shows_asks_for_none(
    home: Path, open_page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGELENS_READ_ONLY", "1")
    assert "kept as rows of a data set" not in words(check(open_page(home, "run=run")))


def test_what_is_imported_is_named_by_those_who_start_the_dashboard(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGELENS_RUN", str(home / "run"))
    monkeypatch.setenv(DATASETS, json.dumps(["second=nowhere.at_all:DATA"]))
    assert given_data.of_run(home / "run") == {"second": "nowhere.at_all:DATA"}
    assert given_data.of_run(home / "data") == {}
    # The page knows that it is given, and imports nothing.
    assert not sources.run(sources.source((home / "run").resolve())).last.no_replay
