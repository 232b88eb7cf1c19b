"""Results on disk: effect tables and what is known of them. Tables only; nothing imports torch.

A result describes itself and is keyed by (run digest, set digest, estimator, settings), so it is
never mistaken for one of another recording, another set or other settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict

from stagelens.contracts import Behaviour
from stagelens.estimators.registry import method_of
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs import fact_tables
from stagelens.runs.run import Run
from stagelens.runs.schema import digest
from stagelens.runs.sets.evaluation_set import EvaluationSet

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_OWN_GROUPS = 5_000
"""From this many examples on, each stage's rows of one behaviour form their own row group, so that
pages read only the behaviour that they show, stage by stage."""


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


Kind = Literal["effects", "boundaries", "scores", "score-boundaries"]
"""What a table holds: stage effects or values after every boundary, by measuring or by scoring."""

_OF_BOUNDARIES: tuple[Kind, ...] = ("boundaries", "score-boundaries")

FIRST = ""
"""In place of a behaviour's name: the first that was measured."""


class BehaviourFacts(BaseModel):
    """A behaviour as a result describes it, so that pages need no task."""

    model_config = ConfigDict(frozen=True)

    name: str
    better: Literal["higher", "lower"]
    unit: str = ""
    description: str = ""
    lowest: float | None = None
    """None where there is no bound: JSON has no infinity."""
    highest: float | None = None

    @classmethod
    def of(cls, kind: Behaviour) -> BehaviourFacts:
        """Describes a behaviour."""
        bounds = {name: getattr(kind, name) for name in ("lowest", "highest")}
        known = {name: bound for name, bound in bounds.items() if isfinite(bound)}
        own = {name: getattr(kind, name) for name in ("name", "better", "unit", "description")}
        return cls.model_validate({**own, **known})

    def behaviour(self) -> Behaviour:
        """The same as the contract's dataclass."""
        return Behaviour(**self.model_dump(exclude_none=True))


class ResultFacts(BaseModel):
    """Everything that a result says about itself.

    An effect table may hold only some stages of its run, those of ``stages``.
    """

    model_config = ConfigDict(frozen=True)

    kind: Kind
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


def is_large(count: int) -> bool:
    """Whether the effects on a set of so many examples are read stage by stage."""
    return count >= _OWN_GROUPS


def result_key(run: Run, set_name: str, kind: str, estimator: str, settings: dict[str, Any]) -> str:
    """The name of a result on disk."""
    return _key(kind, run.digest, run.evaluation_set(set_name).digest, estimator, settings)


def _key(
    kind: str, run_digest: str, set_digest: str, estimator: str, settings: dict[str, Any]
) -> str:
    parts = (method_of(estimator), kind, run_digest, set_digest, estimator, settings)
    return digest(*parts)[:32]


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
        row_group_size=count if is_large(count) else None,
    )
    return path


def joined(parts: Sequence[Result], stages: Sequence[str]) -> Result:
    """What several tables of a set hold, in one: each stage from the first that has it.

    Args:
        parts: At least one; the facts are those of the first.
        stages: Which of them, and in which order; those that no table has are left out.
    """
    of = {name: part for part in reversed(parts) for name in part.trust}
    names = [name for name in stages if name in of]
    if len(parts) == 1 and names == list(parts[0].trust):
        return parts[0]  # a large table is not copied
    facts = parts[0].facts.model_copy(update={"stages": [of[name].trust[name] for name in names]})
    rows = [(table := of[name].table)[table["stage"] == name] for name in names]
    return Result(facts, pd.concat(rows or [parts[0].table[:0]], ignore_index=True))


def add_stages(run: Run, found: Result) -> Result:
    """Store stages of a table beside those that are stored already.

    Returns:
        The stored table, with all of its stages in training order.
    """
    facts = found.facts
    # Read again: another process may have stored further stages in the meantime.
    stored = load_result(run, facts.set_name, "effects", facts.estimator, facts.settings)
    if stored is not None:
        found = joined([found, stored], [stage.name for stage in run.stages])
    save_result(run, found)
    return found


def stored_results(run: Run, set_name: str, kind: Kind = "effects") -> list[ResultFacts]:
    """The facts of all tables of a kind that are stored for a set in its present form.

    Only these descriptions are read.
    """
    set_digest = run.evaluation_set(set_name).digest
    found = []
    for path in sorted((run.path / "results" / "tables").glob("*.parquet")):
        facts = fact_tables.facts_of(path, ResultFacts)
        if facts is None or facts.kind != kind or facts.set_digest != set_digest:
            continue
        key = _key(facts.kind, run.digest, set_digest, facts.estimator, facts.settings)
        if path.stem == key:  # not of another recording, nor by an older method
            found.append(facts)
    return found


def load_result(
    run: Run,
    examples: str | EvaluationSet,
    kind: Kind,
    estimator: str = "",
    settings: dict[str, Any] | None = None,
    coded: bool = False,
    behaviour: str | None = None,
    stage: str | None = None,
    columns: Sequence[str] | None = None,
) -> Result | None:
    """A stored table, or None where there is none or it cannot be used (it is then recomputed).

    Args:
        run: The run.
        examples: One of its evaluation sets, or its name: opening one takes as long as reading a
            column.
        kind: Of the table.
        estimator: As stored.
        settings: As stored.
        coded: Whether texts become categories, which take a tenth of the memory and are compared
            in a tenth of the time. Answers and labels share theirs, so that they can be compared.
            Ids become categories only where all behaviours are read, which repeat them.
        behaviour: The only one whose rows are read; :data:`FIRST` for the first that was measured,
            None for all.
        stage: The only stage, or boundary, whose rows are read, of one behaviour; None for all.
        columns: The only ones that are read, as far as the table has them; None for all.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if isinstance(examples, str):
        examples = run.evaluation_set(examples)
    key = _key(kind, run.digest, examples.digest, estimator, settings or {})
    path = _path(run, key)
    if not fact_tables.is_intact(path):
        return None
    try:
        names = _texts(pq.read_schema(path)) if coded else []
        with pq.ParquetFile(path, page_checksum_verification=True, read_dictionary=names) as file:
            facts = fact_tables.facts_in(file.schema_arrow, ResultFacts)
            known = set(file.schema_arrow.names)
            wanted = None if columns is None else [each for each in columns if each in known]
            if behaviour is None:
                table = _joined(file, range(file.num_row_groups), wanted)
            else:
                measured = [each.name for each in facts.behaviours]
                name = behaviour or measured[0]
                only = {"behaviour": name}
                rows = file.metadata.num_rows // len(measured) if name in measured else 0
                if stage is not None:
                    only["boundary" if kind in _OF_BOUNDARIES else "stage"] = stage
                    rows = examples.count
                table = _read_only(file, only, wanted)
                # Page checksums do not cover the statistics that say where rows are.
                if len(table) != rows:
                    return None
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError):  # if it is damaged
        return None
    own = _key(facts.kind, facts.run_digest, facts.set_digest, facts.estimator, facts.settings)
    if (
        own != key
        or not set(BOUNDARY_COLUMNS if kind in _OF_BOUNDARIES else EFFECT_COLUMNS) <= known
    ):
        return None  # another file was stored or copied under this name
    if coded and behaviour is None:
        table = _coded_ids(table)
    frame = _as_frame(table) if coded else table.to_pandas()
    del table
    # What was read is kept by pyarrow's allocator otherwise, for as long as the server runs.
    pa.default_memory_pool().release_unused()
    if facts.set_name != examples.name:  # the same examples under another name
        facts = facts.model_copy(update={"set_name": examples.name})
        if "set" in frame:
            frame["set"] = examples.name
    return Result(facts, frame)


def _read_only(
    file: pq.ParquetFile, only: Mapping[str, str], columns: list[str] | None
) -> pa.Table:
    """The rows with these values in these columns; row groups that hold none are not read."""
    import pyarrow.compute as pc

    places = {name: place for place, name in enumerate(file.schema_arrow.names)}
    # Tables of small sets have all behaviours in one group; groups without statistics may hold any.
    wanted, mixed = [], set()
    for group in range(file.metadata.num_row_groups):
        about = file.metadata.row_group(group)
        ends = {}
        for name in only:
            found = about.column(places[name]).statistics
            known = found is not None and found.has_min_max
            ends[name] = (found.min, found.max) if known else None
        if all(e is None or e[0] <= only[name] <= e[1] for name, e in ends.items()):
            wanted.append(group)
            mixed |= {name for name, e in ends.items() if e is None or e[0] != e[1]}
    # The columns that tell rows apart are read in any case.
    table = _joined(file, wanted, columns and list(dict.fromkeys([*columns, *mixed])))
    for name in mixed:
        table = table.filter(pc.equal(table[name], only[name]))
    return table if columns is None else table.select(columns)


def _joined(file: pq.ParquetFile, groups: Sequence[int], columns: list[str] | None) -> pa.Table:
    """Row groups one below the other."""
    return file.read_row_groups(list(groups), columns=columns)


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


def _as_frame(table: pa.Table) -> pd.DataFrame:
    """The rows with categories for texts, which their columns share where they are compared."""
    # Column by column, each given up once it is converted: half the memory at the largest.
    return _alike(table.unify_dictionaries().to_pandas(split_blocks=True, self_destruct=True))


def _texts(schema: pa.Schema) -> list[str]:
    """Names of the columns that hold texts, except the ids."""
    import pyarrow as pa

    kinds = (pa.types.is_string, pa.types.is_large_string)
    return [
        field.name
        for field in schema
        if field.name != "example_id" and any(is_kind(field.type) for is_kind in kinds)
    ]


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
