"""Tables with their facts: what was stored comes back, and what is damaged is no table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

from stagelens.runs import fact_tables


class Facts(BaseModel):
    stage: str
    budget: float


class OtherFacts(BaseModel):
    layers: int


FACTS = Facts(stage="shortcut", budget=0.25)
TABLE = pd.DataFrame(
    {
        "example_id": [f"clean-{n:03}" for n in range(200)],
        "effect": np.linspace(-1, 1, 200),
        "answer": pd.array([None, "seven"] * 100, dtype="string"),
    }
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    fact_tables.write(tmp_path / "tables" / "one.parquet", TABLE, FACTS)
    return tmp_path / "tables" / "one.parquet"


def test_what_was_stored_comes_back(path: Path) -> None:
    found = fact_tables.read(path, Facts, ["example_id", "effect"])
    assert found is not None and found[0] == FACTS == fact_tables.facts_of(path, Facts)
    pd.testing.assert_frame_equal(found[1], TABLE)
    pd.testing.assert_frame_equal(fact_tables.read_plain(path), TABLE)
    one = fact_tables.read_arrow(path, Facts, filters=[("example_id", "in", ["clean-007"])])
    assert one is not None and one[1]["example_id"].to_pylist() == ["clean-007"]


def test_a_table_of_another_kind_or_without_a_column_is_none(path: Path, tmp_path: Path) -> None:
    assert fact_tables.read(path, OtherFacts) is None is fact_tables.facts_of(path, OtherFacts)
    assert fact_tables.read(path, Facts, ["effect", "noise_sd"]) is None
    assert fact_tables.read_plain(path, ["noise_sd"]) is None
    fact_tables.write(tmp_path / "plain.parquet", TABLE)
    assert fact_tables.read(tmp_path / "plain.parquet", Facts) is None
    assert fact_tables.read(tmp_path / "missing.parquet", Facts) is None
    assert fact_tables.read_plain(tmp_path) is None  # a folder


def test_a_table_of_earlier_versions_without_checksums_is_read(tmp_path: Path) -> None:
    table = pa.Table.from_pandas(TABLE, preserve_index=False)
    own = {b"stagelens": FACTS.model_dump_json().encode()}
    table = table.replace_schema_metadata({**table.schema.metadata, **own})
    pq.write_table(table, tmp_path / "old.parquet", compression="zstd")
    found = fact_tables.read(tmp_path / "old.parquet", Facts)
    assert found is not None
    pd.testing.assert_frame_equal(found[1], TABLE)


@pytest.mark.parametrize("length", [0, 1, 0.5, 0.99])
def test_a_table_that_was_cut_off_is_none(length: float, path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(length if length == 1 else length * len(whole))])
    assert fact_tables.read(path, Facts) is None is fact_tables.read_plain(path)
    assert fact_tables.facts_of(path, Facts) is None


def test_a_byte_that_changed_is_noticed_wherever_it_is(path: Path) -> None:
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert fact_tables.read(path, Facts) is None, place
        assert fact_tables.facts_of(path, Facts) is None is fact_tables.read_plain(path)


def test_an_edited_table_is_none_however_it_was_written(path: Path) -> None:
    table = pq.read_table(path)
    edited = table.set_column(1, "effect", pa.array(TABLE["effect"][::-1]))
    pq.write_table(edited, path, compression="zstd", write_page_checksum=True)
    assert pq.read_table(path).schema.metadata == table.schema.metadata
    assert fact_tables.read(path, Facts) is None is fact_tables.facts_of(path, Facts)
    pq.write_table(table, path)  # nor is a copy by another program the file that was written
    assert fact_tables.read(path, Facts) is None
    pd.DataFrame(TABLE).to_parquet(path)
    assert fact_tables.read(path, Facts) is None


def test_a_description_of_columns_that_cannot_be_followed_is_none(tmp_path: Path) -> None:
    table = pa.Table.from_pandas(TABLE, preserve_index=False)
    own = {b"stagelens": FACTS.model_dump_json().encode(), b"pandas": b'{"index_columns": [7]}'}
    pq.write_table(table.replace_schema_metadata(own), tmp_path / "odd.parquet")
    assert fact_tables.read(tmp_path / "odd.parquet", Facts) is None


def test_nothing_is_left_where_a_table_cannot_be_written(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(pa.ArrowException):
        fact_tables.write(path, pd.DataFrame({"a": [1, "x"]}), FACTS)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
