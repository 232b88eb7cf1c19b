"""Every reader of files and links, with broken input for it."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from PIL import Image

import stagelens
from stagelens.analyses.removal import measurements
from stagelens.analyses.slices.saved import save_slice
from stagelens.report.store import FindingStore
from stagelens.runs.files import sealed
from stagelens.runs.run import Run, open_run
from stagelens.runs.sets.readers import read_set_file
from stagelens.runs.sets.uploads import fit_image
from stagelens.runs.sets.values import checked_ids, checked_inputs, checked_labels
from stagelens.runs.streaming import MappedTensors
from tests.fuzz.inputs import changed, changed_json, names
from tests.fuzz.kept import added, by_name, checked, results
from tests.fuzz.links import home_with, links, open_link
from tests.fuzz.reader import Reader, put
from tests.support import odd_runs
from tests.support.findings import seen


def recorded(folder: Path) -> Run:
    """A small run with results, a finding and a slice."""
    run = odd_runs.record(folder, {"first": (3, 0.05), "last": (2, 0.05)})
    odd_runs.measure_all(run, "test")
    examples = run.evaluation_set("test")
    edit = measurements.grid("task-vector", {}, ["first"])[-1]
    measurements.measure_edits(run, examples, [edit])
    ids = examples.table([])["example_id"].tolist()
    save_slice(run, examples, "mine", ids[:5], {"label": "a"}, "task-vector", "loss")
    finding = FindingStore(run).pin(seen(), "a note")
    FindingStore(run).edit(finding, place=2.0)
    return run


def _sealed(run: Run, stage: int, file: str, data: bytes) -> None:
    """Write a stage's file as somebody would who also mends every sha256 of it."""
    index = json.loads((run.path / "run.json").read_bytes())
    folder = index["stages"][stage]["folder"]
    described = run.path / folder / "stage.json"
    if file == "stage.json":
        put(described, data)
    else:
        relative = f"{folder}/{file}"
        put(run.path / relative, data)
        own = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        facts = json.loads(described.read_bytes())
        for reference in _references(facts):
            if reference["path"] == relative:
                reference.update(own)
        described.write_text(json.dumps(facts))
    index["stages"][stage]["sha256"] = hashlib.sha256(described.read_bytes()).hexdigest()
    (run.path / "run.json").write_text(json.dumps(sealed(index)))


def _references(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, list):
        return [found for each in value for found in _references(each)]
    if not isinstance(value, dict):
        return []
    own = [value] if {"path", "sha256", "bytes"} <= value.keys() else []
    return own + [found for each in value.values() for found in _references(each)]


def _everything(path: Path) -> None:
    """Read what pages read of a recording."""
    run = open_run(path)
    _ = run.digest, run.set_names, run.problems
    for stage in (*run.stages, *run.unfinished):
        stage.table()
        for step in stage.read_steps():
            _ = step.loss, step.batches
        stage.start()
    if run.stages:
        run.last.end()
        _ = run.task.config


def readers(folder: Path) -> Mapping[str, Reader]:
    """Every reader by name, with a run folder of its own below ``folder``.

    Args:
        folder: Empty; everything that is written goes below it.
    """
    whole = recorded(folder / "run")
    (folder / "outside").mkdir()
    (folder / "outside" / "run.json").write_text("{}")

    def copy(name: str) -> Run:
        made = folder / name / "run"
        shutil.copytree(whole.path, made)
        (made / "link").symlink_to(folder / "outside")
        return open_run(made)

    found: dict[str, Reader] = {}
    _recording(found, copy)
    _sets(found, copy, folder)
    _images(found)
    results(found, copy)
    added(found, copy)
    by_name(found, folder)
    ids = home_with(whole, folder)
    found["links to pages"] = Reader(links(ids), open_link, weight=0.3, watched=False)
    return found


def _recording(found: dict[str, Reader], copy: Callable[[str], Run]) -> None:
    one = copy("run.json")
    content = json.loads((one.path / "run.json").read_bytes())

    def read_run(data: bytes) -> None:
        put(one.path / "run.json", data)
        _everything(one.path)

    raw = (one.path / "run.json").read_bytes()
    found["run.json"] = Reader(changed_json(content).map(checked) | changed(raw), read_run)

    two = copy("stage.json")
    described = two.path / two.file.stages[1].folder / "stage.json"
    facts = json.loads(described.read_bytes())
    index = (two.path / "run.json").read_bytes()

    def read_stage(data: bytes) -> None:
        put(two.path / "run.json", index)
        _sealed(two, 1, "stage.json", data)
        _everything(two.path)

    found["stage.json"] = Reader(changed_json(facts), read_stage)

    three = copy("steps")
    steps = next((three.path / three.file.stages[1].folder).glob("steps-*.parquet"))
    table = pq.read_table(steps)
    whole_files = {
        path: path.read_bytes() for path in (three.path / "run.json", steps.parent / "stage.json")
    }

    def read_steps(data: bytes) -> None:
        for path, content in whole_files.items():
            put(path, content)
        _sealed(three, 1, steps.name, data)
        _everything(three.path)

    found["steps (bytes)"] = Reader(changed(steps.read_bytes()), read_steps)
    texts = st.one_of(
        changed_json(json.loads(table["batch"][0].as_py())).map(_text),
        changed_json(json.loads(table["groups"][0].as_py())).map(_text),
        names.map(_printable),
    )
    cells = st.fixed_dictionaries(
        {},
        optional={
            "step": st.integers(-2, 5),
            "groups": texts,
            "batch": texts | st.none(),
            "missing": st.lists(names.map(_printable), max_size=2),
            "micro_batches": st.integers(-2, 5),
            "divisors": st.none() | st.lists(st.none() | st.floats(), max_size=2),
            "tensors": st.none() | st.lists(names.map(_printable), max_size=3),
        },
    )
    rows = table.to_pylist()

    def table_of(changes: dict[str, Any]) -> bytes:
        file = io.BytesIO()
        pq.write_table(
            pa.Table.from_pylist([{**rows[0], **changes}, *rows[1:]], table.schema), file
        )
        return file.getvalue()

    found["steps (rows)"] = Reader(cells.map(table_of), read_steps)

    four = copy("tensors")
    weights = four.path / four.file.stages[0].folder / "end.model.safetensors"
    data = weights.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])

    def with_header(changed_header: bytes) -> bytes:
        return len(changed_header).to_bytes(8, "little") + changed_header + data[8 + size :]

    def read_tensors(content: bytes) -> None:
        put(weights, content)
        for tensor in MappedTensors(weights).values():
            tensor.sum()

    both = changed(data) | changed_json(header).map(with_header)
    found["safetensors"] = Reader(both, read_tensors, weight=10)


def _text(data: bytes) -> str:
    return data.decode()


def _printable(name: str) -> str:
    return name.encode(errors="replace").decode()


def _sets(found: dict[str, Reader], copy: Callable[[str], Run], folder: Path) -> None:
    frame = pd.DataFrame({"text": ["one", "two, 2", 'three "3"'], "label": ["a", "b", "c"]})
    frame["group"] = ["x", "y", None]
    csv = frame.to_csv(index=False).encode()
    lines = frame.to_json(orient="records", lines=True).encode()
    parquet = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(frame), parquet)
    arrays = io.BytesIO()
    np.savez(arrays, images=odd_runs.images(3), labels=np.array(["a", "b", "c"]))
    files = {"csv": csv, "tsv": csv.replace(b",", b"\t"), "jsonl": lines}
    files |= {"parquet": parquet.getvalue(), "npz": arrays.getvalue()}
    task = odd_runs.task()

    def read_set(path: Path, data: bytes) -> None:
        put(path, data)
        _take(read_set_file(path), task if path.suffix == ".npz" else None)

    for ending, data in files.items():
        path = folder / f"set.{ending}"
        found[f"set .{ending}"] = Reader(changed(data), partial(read_set, path), weight=6)

    rows = json.loads(frame.to_json(orient="records"))

    def as_lines(data: bytes) -> bytes:
        value = json.loads(data)
        rows = value if isinstance(value, list) else [value]
        return "\n".join(json.dumps(row) for row in rows).encode()

    path = folder / "rows.jsonl"
    found["set .jsonl (values)"] = Reader(
        changed_json(rows).map(as_lines), partial(read_set, path), weight=6
    )
    saved = folder / "saved"
    saved.mkdir()
    schema = pa.schema([("text", pa.string()), ("label", pa.string())])
    table = pa.Table.from_pandas(frame[["text", "label"]], schema=schema, preserve_index=False)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    state = {"_data_files": [{"filename": "data.arrow"}], "_format_type": None}

    def read_saved(content: tuple[bytes, bytes]) -> None:
        put(saved / "state.json", content[0])
        put(saved / "data.arrow", content[1])
        _take(read_set_file(saved), None)

    arrow, described = sink.getvalue(), json.dumps(state).encode()
    found["set saved by datasets"] = Reader(
        st.tuples(changed_json(state) | changed(described), st.just(arrow))
        | st.tuples(st.just(described), changed(arrow)),
        read_saved,
        weight=6,
    )
    pictures = folder / "pictures"
    pictures.mkdir()
    picture = io.BytesIO()
    Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).save(picture, "PNG")
    put(pictures / "a.png", picture.getvalue())
    (pictures / "link").symlink_to(folder / "outside")
    listed = st.lists(st.tuples(names | st.just("a.png"), names), min_size=1, max_size=3)

    def read_pictures(lines: list[tuple[str, str]]) -> None:
        lines = [(_printable(name), _printable(label)) for name, label in lines]
        table = pd.DataFrame(lines, columns=["file_name", "label"])
        content = table.to_csv(index=False).encode(errors="replace")
        put(pictures / "metadata.csv", content)
        _take(read_set_file(pictures), None)

    found["image folder"] = Reader(listed, read_pictures, weight=3)

    one = copy("set.json")
    path = one.path / "sets/test/set.json"
    facts = json.loads(path.read_bytes())
    examples = one.path / "sets/test/examples.parquet"
    whole = examples.read_bytes()

    def read_stored(content: tuple[bytes, bytes]) -> None:
        put(path, content[0])
        put(examples, content[1])
        found_set = open_run(one.path).evaluation_set("test")
        found_set.table()
        for example in found_set.examples(0, 3):
            _ = example.input, example.label

    raw = path.read_bytes()
    found["set of the run"] = Reader(
        st.tuples(changed_json(facts), st.just(whole)) | st.tuples(st.just(raw), changed(whole)),
        read_stored,
        weight=2,
    )


def _take(given: Mapping[str, Any], task: stagelens.Task | None) -> None:
    """What ``write_set`` checks before it writes."""
    _, _, inputs = checked_inputs("x", given.get("images"), given.get("texts"), given.get("inputs"))
    ids = checked_ids("x", given["ids"], len(inputs))
    checked_labels("x", task, ids, given["labels"])


def _images(found: dict[str, Reader]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 10, 3)).astype(np.uint8)
    images = {"RGB": Image.fromarray(pixels)}
    images |= {mode: images["RGB"].convert(mode) for mode in ("L", "P", "1", "RGBA", "CMYK")}
    kinds = [("PNG", m) for m in ("RGB", "L", "P", "1", "RGBA")]
    kinds += [("JPEG", "RGB"), ("JPEG", "CMYK"), ("GIF", "P"), ("BMP", "RGB"), ("WEBP", "RGBA")]
    kinds += [("TIFF", "RGB"), ("TIFF", "CMYK"), ("PPM", "RGB")]
    files = []
    for kind, mode in kinds:
        file = io.BytesIO()
        images[mode].save(file, kind)
        files.append(file.getvalue())
    shapes = st.sampled_from([None, (1, 4, 4), (3, 8, 5), (4, 12, 10), (2, 4, 4), (3, 12, 10)])

    def read(content: tuple[bytes, tuple[int, ...] | None]) -> None:
        fit_image(*content)

    broken = st.sampled_from(files).flatmap(changed)
    found["images"] = Reader(st.tuples(broken, shapes), read, weight=20)
