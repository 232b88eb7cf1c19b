"""Readers of what is kept beside a recording: results, findings, slices, names, jobs."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pyarrow.parquet as pq
from hypothesis import strategies as st

from stagelens.analyses.removal import measurements
from stagelens.analyses.slices.saved import stored_slices
from stagelens.effects import results as stored
from stagelens.effects.results import FIRST, load_result, stored_results
from stagelens.report.store import FOLDER, FindingStore
from stagelens.runs import fact_tables
from stagelens.runs.files import sealed
from stagelens.runs.run import Run
from stagelens.trust import noise, verification
from stagelens.ui.server import interrupted_jobs, settings
from tests.fuzz.inputs import NAMES, changed, changed_json
from tests.fuzz.reader import Reader, put


def results(found: dict[str, Reader], copy: Callable[[str], Run]) -> None:
    run = copy("results")
    with patch.object(stored, "_OWN_GROUPS", 1):  # one is kept as those of large sets are
        whole = load_result(run, "test", "effects", "replay")
        assert whole is not None
        stored.save_result(run, whole)
    examples = run.evaluation_set("test")
    edit = measurements.grid("task-vector", {}, ["first"])[-1]
    results = run.path / "results"
    files = sorted(results.rglob("*.parquet"))
    contents = {path: path.read_bytes() for path in files}
    facts = {
        path: json.loads(described)
        for path in files
        if (described := (pq.read_schema(path).metadata or {}).get(b"stagelens"))
    }

    def read(content: tuple[Path, bytes]) -> None:
        path, data = content
        put(path, data)
        try:
            stored_results(run, "test")
            for estimator in ("task-vector", "replay"):
                for behaviour in (None, FIRST, "loss"):
                    load_result(run, "test", "effects", estimator, coded=True, behaviour=behaviour)
            load_result(run, "test", "boundaries", coded=True)
            verification.load_verification(run)
            noise.load_orders(run, "test")
            measurements.load_measurement(run, examples, edit)
        finally:
            put(path, contents[path])

    def broken(path: Path) -> st.SearchStrategy[tuple[Path, bytes]]:
        made = changed(contents[path])
        if path in facts:
            made = made | changed_json(facts[path]).map(partial(_described, contents[path]))
        return st.tuples(st.just(path), made)

    found["results"] = Reader(st.sampled_from(files).flatmap(broken), read, weight=0.3)


def checked(data: bytes) -> bytes:
    """With a checksum that fits, so that what it says is read at all."""
    content = json.loads(data)
    return json.dumps(sealed(content)).encode() if isinstance(content, dict) else data


def _described(parquet: bytes, facts: bytes) -> bytes:
    """A table that says something else of itself, with a checksum that fits."""
    table = pq.read_table(io.BytesIO(parquet))
    metadata = {**(table.schema.metadata or {}), b"stagelens": facts}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        pq.write_table(table.replace_schema_metadata(metadata), path)
        fact_tables.seal(path)
        return path.read_bytes()


def added(found: dict[str, Reader], copy: Callable[[str], Run]) -> None:
    run = copy("findings")
    pinned = next((run.path / FOLDER).iterdir())
    edits = sorted((pinned / "edits").iterdir())
    files = {path: path.read_bytes() for path in (pinned / "seen.json", edits[-1])}

    def broken(path: Path) -> st.SearchStrategy[tuple[Path, bytes]]:
        content = json.loads(files[path])
        return st.tuples(st.just(path), changed_json(content).map(checked) | changed(files[path]))

    def read(content: tuple[Path, bytes]) -> None:
        path, data = content
        put(path, data)
        FindingStore(run).read()
        put(path, files[path])

    found["findings"] = Reader(st.sampled_from(list(files)).flatmap(broken), read, weight=2)

    sliced = copy("slices")
    path = next((sliced.path / "slices").iterdir())
    whole = path.read_bytes()
    examples = sliced.evaluation_set("test")

    def read_slice(data: bytes) -> None:
        put(path, data)
        slices, _ = stored_slices(sliced, examples)
        for one in slices:
            _ = one.words(), one.column, one.by_outcome

    found["slices"] = Reader(
        changed_json(json.loads(whole)).map(checked) | changed(whole), read_slice, weight=4
    )


def by_name(found: dict[str, Reader], folder: Path) -> None:
    roots = folder / "roots"
    (roots / "run").mkdir(parents=True)
    (roots / "run" / "run.json").write_text("{}")
    (roots / "link").symlink_to(folder / "outside")
    parts = st.sampled_from([*NAMES, "run", "run", "outside", str(roots), "run.json"]) | st.text(
        max_size=8
    )
    paths = st.lists(parts, min_size=1, max_size=4).map("/".join)

    def open_by_name(text: str) -> None:
        for look in (settings.resolve, lambda t: settings.allowed(t, "file")):
            reached = look(text)
            if not any(reached.is_relative_to(root) for root in settings.roots()):
                raise AssertionError(f"{text!r} led out: {reached}")

    found["links and paths"] = Reader(paths, open_by_name, weight=10)

    record = {"title": "x", "server": {"pid": 2**30}, "child": {"pid": 2**30}, "unfinished": None}
    kept = folder / "home" / interrupted_jobs.FOLDER / "a.json"
    kept.parent.mkdir(parents=True)

    def read_record(data: bytes) -> None:
        put(kept, data)
        interrupted_jobs.found()

    found["records of jobs"] = Reader(changed_json(record), read_record, weight=4)
