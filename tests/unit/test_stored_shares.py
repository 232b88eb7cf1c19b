"""Which coalitions shares are read off, which are computed, and how pages use them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stagelens.analyses.shares.orders import masks_of, measured_pairs
from stagelens.analyses.shares.share_table import SHARE, WITHOUT, share_table, shares_of
from stagelens.analyses.shares.stored import MOST_MODELS, best_coalitions, wanted_masks
from stagelens.contracts import Behaviour, StageLensError
from stagelens.effects.computing import attribute
from stagelens.runs.run import Run, open_run
from stagelens.ui.reading import browse
from stagelens.ui.reading.browse import Every, Filters, effect_column
from tests.support.coalitions import made, store
from tests.support.stage_trust import trust

MARGIN = Behaviour("margin", "higher")
STAGES = ["one", "two"]


@pytest.fixture
def own(run: Run, tmp_path: Path) -> Run:
    """Three stages in a folder of its own, with effects by task vector."""
    copied = open_run(shutil.copytree(run.path, tmp_path / "run"), run.task)
    attribute(copied, "test", "task-vector")
    return copied


def test_the_best_estimator_that_gives_shares_is_read(own: Run) -> None:
    assert best_coalitions(own, "test") is None
    store(own, "test", estimator="task-vector")
    found = best_coalitions(own, "test")
    assert found is not None and found.facts.estimator == "task-vector"
    store(own, "test", leave_out=frozenset([3]))  # a replay that has not come to all of them
    found = best_coalitions(own, "test")
    assert found is not None and found.facts.estimator == "task-vector"
    store(own, "test")
    found = best_coalitions(own, "test")
    assert found is not None and found.facts.estimator == "replay"
    joined = best_coalitions(own, "test", ["first", "third"])
    assert joined is not None and shares_of(joined, "margin").names == ("first + third", "second")


def test_an_estimator_that_refuses_all_shares_stands_back(own: Run) -> None:
    refused = trust("refused", estimator="coarse-replay", reason="no step is stable")
    store(own, "test", known={1: refused}, estimator="coarse-replay")
    found = best_coalitions(own, "test")  # there is nothing else
    assert found is not None and found.facts.estimator == "coarse-replay"
    store(own, "test", estimator="task-vector")
    found = best_coalitions(own, "test")
    assert found is not None and found.facts.estimator == "task-vector"


def test_all_coalitions_of_few_parties_are_wanted_and_of_many_those_of_orders() -> None:
    assert wanted_masks(4) == list(range(16)) and len(wanted_masks(6)) == MOST_MODELS
    many = wanted_masks(8)
    assert len(many) <= MOST_MODELS and len(measured_pairs(many, 8)) >= 4
    assert set(masks_of(measured_pairs(many, 8), 8)) <= set(many)
    with pytest.raises(StageLensError, match=r"too few for shares of 40 parties; allow 158"):
        wanted_masks(40)


def every() -> Every:
    """Two stages whose shares order three examples in another way than their effects do."""
    frame = pd.DataFrame(
        {
            "example_id": ["a", "b", "c"],
            "label": "x",
            "prediction": "x",
            "right": 1.0,
            effect_column("one"): [3.0, 2.0, 1.0],
            effect_column("two"): [0.0, 0.0, 0.0],
        }
    )
    shares = {"one": np.array([-1.0, 2.0, 5.0]), "two": np.array([0.5, 0.5, np.nan])}
    return Every.of(frame, STAGES).with_shares({SHARE: shares})


def ids(**asked: object) -> list[str]:
    filters = Filters(stage="one", **asked)  # type: ignore[arg-type]
    return browse.select(every(), filters, MARGIN, STAGES).ids


def test_examples_are_filtered_and_sorted_by_what_is_shown() -> None:
    assert ids(sort="most credit") == ["a", "b", "c"]
    assert ids(sort="most credit", credit=SHARE) == ["c", "b", "a"]
    assert ids(side="blame", credit=SHARE) == ["a"]
    assert ids(side="blame", credit=WITHOUT) == []
    assert ids(strength=1.5, credit=SHARE) == ["c", "b"]
    assert every().largest_in(SHARE, STAGES) == 5.0 and every().largest == 3.0


def test_a_filter_by_shares_says_so() -> None:
    asked = Filters(stage="one", side="blame", credit=SHARE)
    assert asked.asked()["credit by"] == "share"
    assert "credit by" not in Filters(stage="one", side="blame").asked()
    assert asked.key != Filters(stage="one", side="blame").key


def test_shares_of_chosen_examples_are_exported_in_their_order() -> None:
    v = {mask: np.full(3, float(mask)) for mask in range(4)}
    table = share_table(made(v, ("one", "two")))
    text = browse.export(table, ["e2", "e0"], ["score"]).decode().splitlines()
    assert text[0].startswith("set,example_id,stage,behaviour,share,alone,without_it,seen_after")
    assert [line.split(",")[1:3] for line in text[1:]] == [
        ["e2", "one"], ["e2", "two"], ["e0", "one"], ["e0", "two"],
    ]  # fmt: skip
