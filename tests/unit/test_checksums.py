"""Whatever a number depends on is covered by a checksum: no value can be edited unnoticed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

import stagelens
from stagelens.contracts import RunError
from stagelens.effects.computing import attribute
from stagelens.effects.results import load_result, result_path, stored_results
from tests.support.odd_runs import record


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = record(tmp_path_factory.mktemp("whole") / "run", {"even": (2, 0.05), "odd": (2, 0.05)})
    attribute(run, "test", "replay")
    return run.path


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def leaves(value: Any, *keys: Any) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in inner:
        if isinstance(each, dict | list):
            yield from leaves(each, *keys, key)
        else:
            yield (*keys, key)


def another(value: Any) -> Any:
    if isinstance(value, str):
        return value + "x"
    return 7 if value is None else value + 1


def everything(path: Path) -> None:
    run = stagelens.open_run(path)
    for name in run.set_names:
        run.evaluation_set(name).table()


@pytest.mark.parametrize("file", ["run.json", "sets/test/set.json", "stages/01-odd/stage.json"])
def test_no_value_of_a_description_can_be_edited_unnoticed(file: str, copy: Path) -> None:
    described = (copy / file).read_text()
    places = [each for each in leaves(json.loads(described)) if each != ("checksum",)]
    assert len(places) > 10
    for keys in places:
        content = json.loads(described)
        inner = reduce(getitem, keys[:-1], content)
        inner[keys[-1]] = another(inner[keys[-1]])
        (copy / file).write_text(json.dumps(content))
        with pytest.raises(RunError, match=r"was changed after it was|newer StageLens"):
            everything(copy)


@pytest.mark.parametrize("file", ["run.json", "sets/test/set.json"])
def test_a_checksum_cannot_be_left_out(file: str, copy: Path) -> None:
    content = json.loads((copy / file).read_text())
    del content["checksum"]
    (copy / file).write_text(json.dumps(content))
    with pytest.raises(RunError, match=rf"{Path(file).name}: checksum: missing"):
        everything(copy)


def test_rows_of_two_stages_that_were_swapped_are_no_result(copy: Path) -> None:
    run = stagelens.open_run(copy)
    (facts,) = stored_results(run, "test")
    path = result_path(run, facts)
    table = pq.read_table(path)
    frame = table.to_pandas()
    frame["stage"] = frame["stage"].map({"even": "odd", "odd": "even"})
    swapped = table.from_pandas(frame, preserve_index=False)
    pq.write_table(swapped.replace_schema_metadata(table.schema.metadata), path)
    assert stored_results(run, "test") == []
    assert load_result(run, "test", "effects", "replay") is None
    again = attribute(run, "test", "replay").table
    pd.testing.assert_frame_equal(again, table.to_pandas())
