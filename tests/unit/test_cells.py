"""Text from data acts neither in a spreadsheet nor in a terminal."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import pandas as pd
import pytest

from stagelens.cli import terminal
from stagelens.ui.pieces import components
from stagelens.wording.cells import cells, for_terminal

HOSTILE = ["=cmd|'/c calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\tx", "\rx"]


def test_no_cell_and_no_heading_is_a_formula(tmp_path: Path) -> None:
    table = pd.DataFrame({"example_id": HOSTILE, "=effect": range(6), "n": [-1.5] * 6})
    cells(table).to_csv(tmp_path / "t.csv", index=False)
    with open(tmp_path / "t.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["example_id", "'=effect", "n"]
    assert [row[0] for row in rows] == [f"'{text}".replace("\r", "\n") for text in HOSTILE]
    assert {row[2] for row in rows} == {"-1.5"}  # a number stays one


def test_what_is_no_text_stays_as_it_is() -> None:
    table = pd.DataFrame({"a": [None, "x", 3], "b": [True, False, True]})
    pd.testing.assert_frame_equal(cells(table), table)


@pytest.mark.parametrize("text", ["\x1b[31mred", "\x1b]8;;http://x\x07y", "a\rb", "\x9b2J"])
def test_a_terminal_gets_no_escape_sequence(text: str, capsys) -> None:
    assert all(ord(c) >= 32 and not 127 <= ord(c) < 160 for c in for_terminal(text))
    terminal.say(text)
    table = terminal.Table(text)
    table.add_column("c")
    table.add_row(text)
    terminal._console().print(table, markup=False)
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x9b" not in out and "\r" not in out and "\x07" not in out


def test_words_of_any_language_and_line_breaks_stay() -> None:
    assert for_terminal("猫 é\n\t✓ ▲") == "猫 é\n\t✓ ▲"


def test_columns_of_one_kind_and_no_use_of_pandas_that_will_end() -> None:
    columns = {"both": [1, "a"], "texts": ["a", None], "numbers": [1.0, 2.0]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = components._one_kind(pd.DataFrame(columns))
    assert table["both"].tolist() == ["1", "a"] and table["texts"].isna().tolist() == [False, True]
