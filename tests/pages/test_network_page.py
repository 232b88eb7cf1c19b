"""Where in the network, on its page and below an example."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from stagelens.analyses.network.measuring import measure_network
from stagelens.runs.run import open_run
from stagelens.ui.examples import network
from stagelens.ui.examples.shown_stage import shown_stage
from tests.pages.reading import check, words

_PAGE, _EXAMPLES = "pages/2_Spurious_features.py", "pages/1_Examples.py"
_LINK = "run=digits&estimator=replay&stage=shortcut&measure=margin"
_PART = f"{_LINK}&part=Where+in+the+network&group=stamped"


def test_the_map_of_a_group_and_the_examples_that_a_block_changes_most(
    demo_copy: Path, open_page, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(network, "_start", started.append)
    app = check(open_page(demo_copy.parent, _PART, _PAGE))
    (asked,) = started  # what is quick is measured without being asked for
    assert asked[0] == "network" and asked[2:] == (
        "--set", "test", "--stage", "shortcut", "--estimator", "replay",
    )  # fmt: skip
    assert "Undo it block by block" in [button.label for button in app.button]

    measure_network(open_run(demo_copy), "test", "shortcut", "replay")
    app = check(open_page(demo_copy.parent, _PART, _PAGE))
    said = words(app)
    assert "the mean margin on stamped images would be" in said and "linear carries" in said
    assert "What linear changes" in said and "are answered otherwise" in said
    assert "says 3; with linear undone: 5" in said and "an intervention, not a training" in said
    linked = check(open_page(demo_copy.parent, f"{_PART}&block=1", _PAGE))
    assert "What convolution 2 changes" in words(linked)
    # Without a choice it is the stage to blame for the behaviour of the group that is looked at.
    unchosen = _PART.replace("&stage=shortcut", "")
    assert "Shown is shortcut, the stage most to blame for the margin on stamped images;" in words(
        check(open_page(demo_copy.parent, unchosen, _PAGE))
    )
    for wrong in ("99", "-1", "x"):
        app = check(open_page(demo_copy.parent, f"{_PART}&block={wrong}", _PAGE))
        assert "What linear changes" in words(app)

    link = f"{_LINK}&look=Network&example=stamped-133"
    said = words(check(open_page(demo_copy.parent, link, _EXAMPLES)))
    assert "the margin would be" in said and "undone in linear alone it is 5" in said
    assert "all blocks and their interaction" in said


def test_no_stage_is_called_to_blame_where_all_are_to_credit() -> None:
    def shown(*gains: float) -> tuple[str, str]:
        return shown_stage(pd.Series(gains, ["a", "b"][: len(gains)], dtype=float), ["a", "b"])

    assert shown(1.0, -0.5) == ("b", "the stage most to blame")
    assert shown(1.0, 3.0) == ("b", "the stage with the largest effect")
    assert shown() == ("a", "the first stage")
