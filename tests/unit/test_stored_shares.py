"""Which coalitions shares are read off, which are computed, and how pages use them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stagelens.analyses.shares import orders, stored
from stagelens.analyses.shares.share_table import SEEN_AFTER, SHARE, WITHOUT, share_table, shares_of
from stagelens.analyses.shares.stored import best_coalitions, wanted_masks
from stagelens.contracts import Behaviour, StageLensError
from stagelens.effects.coalition_measuring import measure_coalitions
from stagelens.effects.computing import attribute
from stagelens.estimators.parties import parties_of
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


def test_all_coalitions_of_few_parties_are_wanted_and_of_many_those_of_orders(
    own: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    parties = parties_of(own)
    assert wanted_masks(own, parties) == list(range(8))
    with pytest.raises(StageLensError, match="3 stages or parties take 8 models"):
        wanted_masks(own, parties, 7)
    monkeypatch.setattr(orders, "MOST_PARTIES", 2)
    with pytest.raises(StageLensError, match=r"9 models are too few .* --models 10 or more"):
        wanted_masks(own, parties, 9)
    drawn = orders.sampled_orders(3, 2)
    wanted = wanted_masks(own, parties, 10)
    # What is recorded comes on top, whatever was drawn.
    assert set(wanted) == {*orders.masks_of(drawn, 3), 0b000, 0b001, 0b011, 0b111}
    apart = wanted_masks(own, (("first", "third"), ("second",)), None)
    assert apart == list(range(4))
    found = measure_coalitions(own, "test", "task-vector", wanted)
    assert np.isfinite(shares_of(found, "margin").reading(SEEN_AFTER)).all()


def test_only_prefixes_that_are_recorded_are_free(
    own: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "MOST_PARTIES", 1)
    monkeypatch.setattr(orders, "masks_of", lambda *_: [3, 0])
    # The first party alone is the first stage and the third, which would have to be trained.
    assert wanted_masks(own, (("first", "third"), ("second",))) == [3, 0]
    assert wanted_masks(own, (("first", "second"), ("third",))) == [3, 0, 1]


def test_by_default_many_parties_get_four_pairs_of_orders(
    own: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(stored, "stage_masks", lambda *_: {})
    monkeypatch.setattr(orders, "sampled_orders", lambda m, pairs: asked.append(pairs) or [])
    for m in (7, 20):
        wanted_masks(own, tuple((f"{k}",) for k in range(m)))
    assert asked == [5, 4]  # as many as 64 models allow, and no fewer than four


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
