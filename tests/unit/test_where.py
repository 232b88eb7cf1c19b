"""The filter language: what it chooses, and what it says of what it cannot read."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from stagelens.runs.where import FilterError, where

TABLE = pd.DataFrame(
    {
        "label": pd.array(["4", "4", "9", None], dtype="string"),
        "source": ["forum", "Wiki talk", "forum", "book"],
        "length": [10, 200, 35, 7],
        "score": [0.5, np.nan, -1.0, 2.0],
        "kind of text": ["a & b", "x", 'say "so"', "x"],
        "seen": [True, False, True, False],
    }
)
COLUMNS = tuple(TABLE.columns)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("label=4", [0, 1]),
        ("label = 4 & source=forum", [0]),
        ("label=4 | source=book", [0, 1, 3]),
        ("label=9 | label=4 & length>100", [1, 2]),
        ("(label=9 | label=4) & length>100", [1]),
        ("!label=4", [2, 3]),
        ("label!=4", [2, 3]),
        ("!(label=4 | label=9)", [3]),
        ("source~wiki", [1]),
        ("length>=35", [1, 2]),
        ("length=35.0", [2]),
        ("length!=35", [0, 1, 3]),
        ("score<1", [0, 2]),
        ("label<5", [0, 1]),
        ("seen=True", [0, 2]),
        ("'kind of text'='a & b'", [0]),
        ('"kind of text"="say \\"so\\""', [2]),
        ("source=.*", []),
        ("score=-1e0", [2]),
        ("label=''", []),
    ],
)
def test_a_filter_chooses_rows(text: str, rows: list[int]) -> None:
    assert np.flatnonzero(where(TABLE, text, COLUMNS)).tolist() == rows


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "at character 1: a column is missing"),
        ("label", "at character 6: after 'label' there has to be =, !=, ~"),
        ("label=", "at character 7: a value is missing"),
        ("label=4 &", "at character 10: a column is missing"),
        ("(label=4", "at character 9: a bracket is not closed"),
        ("label=4)", "at character 8: ')' does not belong there"),
        ("label=4 source=forum", "at character 9: 'source' does not belong there"),
        ("source='forum", "at character 8: a quote is not closed"),
        ("length>many", "at character 7: 'many' is not a number"),
        ("(" * 99 + "label=4" + ")" * 99, "too many brackets"),
        ("colour=red", "asks for 'colour', which there is not; there are label, source"),
        ("__class__=x", "asks for '__class__', which there is not"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(text: str, said: str) -> None:
    with pytest.raises(FilterError, match=re.escape(said)):
        where(TABLE, text, COLUMNS)
