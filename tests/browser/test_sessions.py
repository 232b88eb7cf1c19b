"""Several people at once on one server, each on a websocket of its own, each with own numbers."""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.load import PAGE_SIZE, Asked, Truth, together
from tests.benchmarks.wire import Client
from tests.browser.conftest import Server


def test_three_sessions_see_their_own_numbers_and_choices(server: Server, read_home: Path) -> None:
    sessions = together(
        server.url, Truth.of(read_home / "digits", "test"), "test", 3, 0.0, fewest=6
    )
    assert [each.wrong for each in sessions] == [[], [], []]
    assert len({str(each.asked) for each in sessions}) == 3  # they did look at different things


def test_who_comes_back_to_earlier_filters_begins_at_their_first_page(
    server: Server, read_home: Path
) -> None:
    ids = Truth.of(read_home / "digits", "test").ids(Asked())
    query = "run=digits&set=test&estimator=replay&measure=loss&sort=id"
    with closing(Client(server.url, "Examples", query)) as client:
        client.put("pagination", "", 3)
        assert client.table["id"].tolist() == ids[2 * PAGE_SIZE : 3 * PAGE_SIZE]
        client.put("selectbox", "Label", "3")
        client.put("selectbox", "Label", None)
        assert client.table["id"].tolist() == ids[:PAGE_SIZE]
        client.put("pagination", "", 2)
        client.put("text_input", "Search by id", "no such id")
        assert re.search(r"^0 of [\d,]+ images$", client.words, re.MULTILINE)
        client.put("text_input", "Search by id", "")
        assert client.table["id"].tolist() == ids[:PAGE_SIZE]


def test_a_wrong_number_would_be_noticed(server: Server, read_home: Path) -> None:
    truth = Truth.of(read_home / "digits", "test")
    half = replace(truth, labels=truth.labels.iloc[::2], effects=truth.effects.iloc[::2])
    (session,) = together(server.url, half, "test", 1, 0.0, fewest=1)
    assert any("there are" in each for each in session.wrong)
