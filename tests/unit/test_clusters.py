"""Examples that share a source: by the column of that name, by the same prompt or input."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stagelens.analyses.shares.share_table import SEEN_AFTER, shares_of
from stagelens.contracts import Behaviour
from stagelens.effects.coalition_measuring import measure_coalitions
from stagelens.effects.computing import attribute
from stagelens.effects.summary import stage_summary
from stagelens.report.sections import Basis, default_sections
from stagelens.runs.run import Run, open_run
from stagelens.runs.sets.clusters import Clusters, clusters
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.sets.writer import write_set

PAIRS = {
    "prompt": ["one", "one", "two", None, "three", "two"],
    "completion": ["a", "b", "c", "c", "d", "e"],
}


def of(folder: Path, name: str = "made", **content) -> Clusters | None:
    write_set(folder, None, name, **content)
    return clusters(EvaluationSet.open(folder, name))


def test_examples_with_one_prompt_share_a_source_whatever_else_they_say(tmp_path: Path) -> None:
    found = of(tmp_path, inputs=PAIRS)
    assert found is not None and (found.by, found.sources) == ("prompt", 4)
    joined = found.joined(pd.DataFrame({"example_id": list("543210")}))["cluster"]
    assert joined.isna().tolist() == [False, True, True, False, False, False]
    assert joined[0] == joined[3] != joined[4] == joined[5]
    assert found.words("6 texts") == (
        "Intervals over examples are clustered by prompt: 6 texts from 4 sources."
    )


def test_without_a_prompt_the_whole_input_counts(tmp_path: Path) -> None:
    found = of(tmp_path, texts=["one", "two", "one", "one two"])
    assert found is not None and (found.by, found.sources) == ("input", 3)
    assert set(found.shared.index) == {"0", "2"}
    # Cells that are one text when joined are two inputs.
    inputs = {"first": ["ab", "a"], "second": ["c", "bc"]}
    assert of(tmp_path, "other", inputs=inputs) is None


def test_a_column_of_that_name_wins_over_the_inputs(tmp_path: Path) -> None:
    column = ["x", "x", "y", "y", None, None]
    found = of(tmp_path, inputs=PAIRS, columns={"cluster": column})
    assert found is not None and (found.by, found.sources) == ("the column cluster", 4)
    rows = pd.DataFrame({"example_id": list("012345"), "cluster": column})
    assert found.joined(rows) is rows


@pytest.mark.parametrize("prompts", [["one"] * 4, ["one", "two", "three", "four"]])
def test_what_all_or_none_share_clusters_nothing(tmp_path: Path, prompts: list[str]) -> None:
    assert of(tmp_path, inputs={"prompt": prompts, "completion": list("abcd")}) is None


MARGIN = Behaviour("margin", "higher")
STANDS_OUT = "What stands out"


def test_duplicate_rows_do_not_narrow_an_interval(run: Run, tmp_path: Path) -> None:
    path = shutil.copytree(run.path, tmp_path / "run")
    random = np.random.default_rng(1)
    images, labels = random.normal(size=(30, 4, 4)).astype(np.float32), [n % 3 for n in range(30)]
    for times in (1, 4):
        every = np.concatenate([images] * times)
        write_set(path, run.task, f"{times}-times", images=every, labels=labels * times)
    opened = open_run(path, run.task)
    errors, shares = [], []
    for name in ("1-times", "4-times"):
        attribute(opened, name, "task-vector", progress=lambda *_: None)
        basis = Basis.of(opened, name)
        means = stage_summary(basis.effects.of("margin"), MARGIN, basis.stages)
        errors.append(means["error"].to_numpy())
        measured = shares_of(measure_coalitions(opened, name, "task-vector"), "margin")
        shares.append([measured.means(SEEN_AFTER)[0].interval.sampling, len(measured.final)])
    np.testing.assert_allclose(errors[1], errors[0], rtol=1e-6)
    assert shares == [pytest.approx([shares[0][0], n], rel=1e-6) for n in (30, 120)]
    about = [
        {section.title: section.about for section in default_sections(opened, name)}[STANDS_OUT]
        for name in ("1-times", "4-times")
    ]
    assert "clustered by input: 120 images from 30 sources" in about[1]
    assert "clustered" not in about[0]
