"""Results on disk: effect tables and what is known of them. Tables only; nothing imports torch.

A result describes itself and is keyed by (run digest, set digest, estimator, settings), so it is
never mistaken for one of another recording, another set or other settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict

from stagelens.contracts import Behaviour
from stagelens.estimators.protocol import METHOD
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs import fact_tables
from stagelens.runs.run import Run
from stagelens.runs.schema import digest

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_OWN_GROUPS = 5_000
"""From this many examples on, each stage's rows of one behaviour form their own row group, so that
pages read only the behaviour that they show."""


EFFECT_COLUMNS = (
    "set",
    "example_id",
    "stage",
    "behaviour",
    "final",
    "without",
    "effect",
    "estimator",
    "prediction",
    "prediction_without",
    "confidence",
    "confidence_without",
    "within_noise",
)
"""Columns of an effect table; the set's own columns (label first) follow."""

BOUNDARY_COLUMNS = (
    "set",
    "example_id",
    "boundary",
    "behaviour",
    "value",
    "prediction",
    "confidence",
)
"""Columns of a boundary table; ``boundary`` is ``base`` or the stage that ends there."""


FIRST = ""
"""In place of a behaviour's name: the first that was measured."""


class BehaviourFacts(BaseModel):
    """A behaviour as a result describes it, so that pages need no task."""

    model_config = ConfigDict(frozen=True)

    name: str
    better: Literal["higher", "lower"]
    unit: str = ""
    description: str = ""

    def behaviour(self) -> Behaviour:
        """The same as the contract's dataclass."""
        return Behaviour(self.name, self.better, self.unit, self.description)


class ResultFacts(BaseModel):
    """Everything that a result says about itself."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["effects", "boundaries"]
    run_digest: str
    set_name: str
    set_digest: str
    estimator: str
    settings: dict[str, Any] = {}
    behaviours: list[BehaviourFacts]
    stages: list[StageTrust] = []


@dataclass(frozen=True)
class Result:
    """A table with its facts."""

    facts: ResultFacts
    table: pd.DataFrame

    @property
    def behaviours(self) -> dict[str, Behaviour]:
        """Behaviours of the table by name."""
        return {b.name: b.behaviour() for b in self.facts.behaviours}

    @property
    def trust(self) -> dict[str, StageTrust]:
        """What is known of each stage's counterfactual."""
        return {stage.stage: stage for stage in self.facts.stages}


def result_key(run: Run, set_name: str, kind: str, estimator: str, settings: dict[str, Any]) -> str:
    """The name of a result on disk."""
    return _key(kind, run.digest, run.evaluation_set(set_name).digest, estimator, settings)


def _key(
    kind: str, run_digest: str, set_digest: str, estimator: str, settings: dict[str, Any]
) -> str:
    return digest(METHOD, kind, run_digest, set_digest, estimator, settings)[:32]


def _path(run: Run, key: str) -> Path:
    return run.files.inside(f"results/tables/{key}.parquet")


def result_path(run: Run, facts: ResultFacts) -> Path:
    """The file of a stored table."""
    return _path(run, result_key(run, facts.set_name, facts.kind, facts.estimator, facts.settings))


def save_result(run: Run, result: Result) -> Path:
    """Store a table under its key. Atomic."""
    import pyarrow as pa

    facts, path = result.facts, result_path(run, result.facts)
    count = run.evaluation_set(facts.set_name).count
    table = pa.Table.from_pandas(result.table, preserve_index=False)
    fact_tables.write(
        path,
        table,
        facts,
        use_dictionary=_texts(table.schema),  # numbers hardly repeat
        row_group_size=count if count >= _OWN_GROUPS else None,
    )
    return path


def stored_results(run: Run, set_name: str) -> list[ResultFacts]:
    """The facts of all effect tables stored for a set in its present form.

    Only these descriptions are read.
    """
    set_digest = run.evaluation_set(set_name).digest
    found = []
    for path in sorted((run.path / "results" / "tables").glob("*.parquet")):
        facts = fact_tables.facts_of(path, ResultFacts)
        if facts is None or facts.kind != "effects" or facts.set_digest != set_digest:
            continue
        key = _key(facts.kind, run.digest, set_digest, facts.estimator, facts.settings)
        if path.stem == key:  # not of another recording, nor by an older method
            found.append(facts)
    return found


def load_result(
    run: Run,
    set_name: str,
    kind: Literal["effects", "boundaries"],
    estimator: str = "",
    settings: dict[str, Any] | None = None,
    coded: bool = False,
    behaviour: str | None = None,
) -> Result | None:
    """A stored table, or None where there is none or it cannot be used (it is then recomputed).

    Args:
        run: The run.
        set_name: One of its evaluation sets.
        kind: Of the table.
        estimator: As stored.
        settings: As stored.
        coded: Whether texts become categories, which take a tenth of the memory and are compared
            in a tenth of the time. Answers and labels share theirs, so that they can be compared.
            Ids become categories only where all behaviours are read, which repeat them.
        behaviour: The only one whose rows are read; :data:`FIRST` for the first that was measured,
            None for all.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    key = result_key(run, set_name, kind, estimator, settings or {})
    path = _path(run, key)
    if not fact_tables.is_intact(path):
        return None
    try:
        names = _texts(pq.read_schema(path)) if coded else []
        with pq.ParquetFile(path, page_checksum_verification=True, read_dictionary=names) as file:
            facts = fact_tables.facts_in(file.schema_arrow, ResultFacts)
            if behaviour is None:
                table = file.read()
            else:
                measured = [each.name for each in facts.behaviours]
                name = behaviour or measured[0]
                table = _read_behaviour(file, name)
                # Page checksums do not cover the statistics that say where a behaviour's rows are.
                if len(table) * len(measured) != file.metadata.num_rows * (name in measured):
                    return None
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError):  # if it is damaged
        return None
    columns = EFFECT_COLUMNS if kind == "effects" else BOUNDARY_COLUMNS
    own = _key(facts.kind, facts.run_digest, facts.set_digest, facts.estimator, facts.settings)
    if own != key or not set(columns) <= set(table.column_names):
        return None  # another file was stored or copied under this name
    if coded and behaviour is None:
        table = _coded_ids(table)
    frame = _alike(table.unify_dictionaries().to_pandas()) if coded else table.to_pandas()
    if facts.set_name != set_name:  # the same examples under another name
        facts = facts.model_copy(update={"set_name": set_name})
        frame["set"] = set_name
    return Result(facts, frame)


def _read_behaviour(file: pq.ParquetFile, behaviour: str) -> pa.Table:
    """The rows of one behaviour; row groups that hold none are not read."""
    import pyarrow.compute as pc

    places = {name: place for place, name in enumerate(file.schema_arrow.names)}
    column = places["behaviour"]
    # Tables of small sets have all behaviours in one group; groups without statistics may hold any.
    wanted, mixed = [], False
    for group in range(file.metadata.num_row_groups):
        found = file.metadata.row_group(group).column(column).statistics
        if found is None or not found.has_min_max or found.min <= behaviour <= found.max:
            wanted.append(group)
            mixed |= found is None or not found.has_min_max or found.min != found.max
    table = file.read_row_groups(wanted)
    return table.filter(pc.equal(table["behaviour"], behaviour)) if mixed else table


def _texts(schema: pa.Schema) -> list[str]:
    """Names of the columns that hold texts, except the ids."""
    import pyarrow as pa

    kinds = (pa.types.is_string, pa.types.is_large_string)
    return [
        field.name
        for field in schema
        if field.name != "example_id" and any(is_kind(field.type) for is_kind in kinds)
    ]


def _coded_ids(table: pa.Table) -> pa.Table:
    """Ids as categories. All stages and behaviours repeat them, so one round is encoded for all."""
    import numpy as np
    import pyarrow as pa

    ids = table["example_id"].combine_chunks()
    count = _round(ids)
    one = ids.slice(0, count).dictionary_encode()
    codes = one.indices
    if count < len(ids):
        codes = pa.array(np.tile(codes.to_numpy(), len(ids) // count))
    coded = pa.DictionaryArray.from_arrays(codes, one.dictionary)
    return table.set_column(table.column_names.index("example_id"), "example_id", coded)


def _round(ids: pa.Array) -> int:
    """How many ids come before they repeat, up to the end; all of them where they do not repeat."""
    import pyarrow.compute as pc

    if not len(ids) or ids.null_count:
        return len(ids)
    count = 1 + pc.index(ids.slice(1), ids[0]).as_py()
    if not count or len(ids) % count:
        return len(ids)
    first = ids.slice(0, count)
    again = (ids.slice(start, count).equals(first) for start in range(count, len(ids), count))
    return count if all(again) else len(ids)


def _alike(frame: pd.DataFrame) -> pd.DataFrame:
    """Give answers and labels one set of categories, where they are categorical."""
    names = [
        name
        for name in ("prediction", "prediction_without", "label")
        if name in frame and isinstance(frame[name].dtype, pd.CategoricalDtype)
    ]
    if not names:
        return frame
    # Without it pandas refuses to compare answers with labels.
    every = pd.Index([]).append([frame[name].cat.categories for name in names]).unique()
    return frame.assign(**{name: frame[name].cat.set_categories(every) for name in names})
