"""Names and texts that come from data are shown as they are, and gaps are said."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stagelens.effects.results import BehaviourFacts, Result, ResultFacts, save_result
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.run import open_run
from stagelens.runs.sets.writer import write_set
from stagelens.ui.server import jobs
from tests.pages.reading import check, figures, table, words

PAGE = "pages/1_Examples.py"
EVIL = '<img src=x onerror="alert(1)"> ![](https://example.org/x.png) :red[x] $x$ **b**'
BEHAVIOURS = [
    BehaviourFacts(name="loss", better="lower", unit="nats"),
    BehaviourFacts(name="margin", better="higher", unit="nats"),
]


@pytest.fixture
def home(demo_copy: Path) -> Path:
    """The demo with one more set, ``texts``: hostile words, gaps, and one refused stage."""
    count = 30
    ids = [f"{EVIL} {i}" for i in range(count)]
    labels = [None if i % 5 == 0 else f"{EVIL} {i % 2}" for i in range(count)]
    groups = [f"{EVIL} {i % 3}" for i in range(count)]
    write_set(
        demo_copy,
        None,
        "texts",
        texts=[f"{EVIL} text {i}" for i in range(count)],
        labels=labels,
        ids=ids,
        columns={"group": groups, "empty": [None] * (count - 1) + ["x"]},
        description=EVIL,
    )
    run = open_run(demo_copy)
    own = run.evaluation_set("texts").table()
    rng = np.random.default_rng(0)
    blocks = []
    trust = []
    for number, stage in enumerate(run.stages):
        refused = stage.name == "shortcut"
        trust.append(
            StageTrust(
                stage=stage.name,
                estimator="task-vector",
                trust="refused" if refused else "estimated",
                reason=f"Because {EVIL}.",
            )
        )
        for behaviour in ("loss", "margin"):
            final = rng.normal(1, 0.1, count)
            final[::5] = np.nan
            without = np.full(count, np.nan) if refused else final + rng.normal(number, 0.1, count)
            block = pd.DataFrame(
                {
                    "set": "texts",
                    "example_id": ids,
                    "stage": stage.name,
                    "behaviour": behaviour,
                    "final": final,
                    "without": without,
                    "effect": final - without,
                    "estimator": "task-vector",
                    "prediction": f"{EVIL} 1",
                    "prediction_without": None if refused else f"{EVIL} 0",
                    "confidence": 0.5,
                    "confidence_without": np.nan if refused else 0.4,
                    "within_noise": pd.array([i % 2 == 0 for i in range(count)], dtype="boolean"),
                }
            )
            blocks.append(block.join(own.drop(columns="example_id")))
    facts = ResultFacts(
        kind="effects",
        run_digest=run.digest,
        set_name="texts",
        set_digest=run.evaluation_set("texts").digest,
        estimator="task-vector",
        behaviours=BEHAVIOURS,
        stages=trust,
    )
    save_result(run, Result(facts, pd.concat(blocks, ignore_index=True)))
    return demo_copy.parent


def markdown(app) -> list[str]:
    """Everything that a browser would read as Markdown."""
    kinds = ("markdown", "caption", "title", "header", "subheader", "info", "warning", "error")
    texts = [str(e.value) for kind in kinds for e in getattr(app, kind)]
    return texts + [e.proto.body for e in app.get("badge")]


def bodies(app) -> list[str]:
    return [e.proto.body for e in app.get("html")]


@pytest.mark.parametrize("page", ["app.py", PAGE])
def test_nothing_from_data_becomes_markup(open_page, home: Path, page: str) -> None:
    chosen = f"{EVIL} 1"
    app = check(open_page(home, "run=digits&set=texts", page))
    if page == PAGE:
        app.query_params["example"] = chosen
        check(app.run())
    for body in bodies(app):
        assert "<img" not in body
    for text in markdown(app):
        assert "![](" not in text and ":red[" not in text and "**b**" not in text
    for figure in figures(app):
        assert "<img" not in str(figure["data"]) + str(figure["layout"])


def test_texts_are_shown_in_the_table_and_in_full(open_page, home: Path) -> None:
    app = check(open_page(home, "run=digits&set=texts&sort=order+of+the+set", PAGE))
    assert table(app)["input text"][3] == f"{EVIL} text 3"
    key = app.dataframe[0].key
    app.session_state[key] = {"selection": {"rows": [3], "columns": [], "cells": []}}
    check(app.run())
    assert f"{EVIL} text 3" in [code.value for code in app.code]


def test_a_refused_stage_is_named_and_has_no_number(open_page, home: Path) -> None:
    app = check(open_page(home, "run=digits&set=texts"))
    assert "shortcut: refused" in words(app)
    assert "Without shortcut" not in words(app)
    assert "✕ refused" in str(figures(app)[0]["layout"]["yaxis"]["ticktext"])
    app = check(open_page(home, "run=digits&set=texts&stage=shortcut&side=blame", PAGE))
    assert "0 of 30 texts" in words(app)


def test_examples_without_a_label_are_left_out_and_counted(open_page, home: Path) -> None:
    said = words(check(open_page(home, "run=digits&set=texts")))
    assert "Measured on 24 texts" in said and "6 texts without a label left out" in said


def test_an_effect_within_training_noise_is_said_to_be(open_page, home: Path) -> None:
    link = "run=digits&set=texts&measure=loss&sort=order+of+the+set"
    app = check(open_page(home, link, PAGE))
    key = app.dataframe[0].key
    app.session_state[key] = {"selection": {"rows": [2], "columns": [], "cells": []}}
    said = words(check(app.run()))
    assert re.search("Without pretrain, the loss [^;]*; this is within training noise", said)


def test_boundaries_that_were_not_measured_are_left_out(open_page, home: Path) -> None:
    app = check(open_page(home, "run=digits&set=texts"))
    assert "Accuracy at base" not in figures(app)[1]["alt"]


def test_nothing_is_computed_on_inputs_of_another_kind(open_page, home: Path) -> None:
    app = check(open_page(home, "run=digits&set=texts"))
    assert "Set texts holds texts, but the models of this run take images" in words(app)
    assert not [job for job in jobs.registry()._jobs.values() if str(home) in str(job.command)]
