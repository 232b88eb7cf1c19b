"""Runs on file systems of fsspec, through a local copy that is bounded and checked."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
import torch

import stagelens
from stagelens.assembling.assemble import assemble
from stagelens.cli import main
from stagelens.contracts import RunError, StageLensError
from stagelens.effects.computing import attribute
from stagelens.runs import remote
from stagelens.runs.remote import Origin
from stagelens.runs.run import open_run
from tests.support.checkpoints import classifiers
from tests.support.loops import Plan, make_batches, make_task, record_plans

URL = "memory://bucket/run"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three stages and a set; nothing computed."""
    path = tmp_path_factory.mktemp("remote") / "run"
    plans = [
        Plan(name, lambda model, _: torch.optim.SGD(model.parameters(), lr=0.2))
        for name in ("first", "second", "third")
    ]
    record_plans(path, make_task(), plans)
    images, labels = make_batches(1, seed=5, size=30)[0]
    recorder = stagelens.Recorder(path, make_task(), resume=True)
    recorder.add_set("test", images=images, labels=labels.tolist())
    recorder.close()
    (path / ".recording.lock").unlink(missing_ok=True)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("STAGELENS_CACHE", str(folder))
    return folder


@pytest.fixture
def there(recorded: Path, cache: Path) -> fsspec.AbstractFileSystem:
    """A file system in memory that has the run at :data:`URL`."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    files.put(str(recorded), "/bucket/run", recursive=True)
    return files


def fetched(cache: Path) -> set[str]:
    """Files of the only copy that come when they are used."""
    (root,) = cache.glob("*/run")
    files = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    return {name for name in files if name.endswith(("safetensors", "examples.parquet"))}


def test_a_run_elsewhere_gives_the_numbers_of_the_run_and_fetches_what_is_used(
    recorded: Path, there: fsspec.AbstractFileSystem, cache: Path, tmp_path: Path
) -> None:
    run = open_run(URL)
    assert [stage.name for stage in run.stages] == ["first", "second", "third"]
    assert run.set_names == ["test"]
    assert fetched(cache) == set()
    shutil.copytree(recorded, tmp_path / "here")
    here = open_run(tmp_path / "here")
    assert run.digest == here.digest
    own = attribute(run, "test", "task-vector")
    pd.testing.assert_frame_equal(own.table, attribute(here, "test", "task-vector").table)
    used = fetched(cache)
    assert "sets/test/examples.parquet" in used
    assert not any("batches" in name for name in used)
    assert attribute(run, "test", "replay").trust["first"].trust == "exact"
    assert any("batches" in name for name in fetched(cache))


def test_a_file_that_was_changed_there_is_refused(there: fsspec.AbstractFileSystem) -> None:
    name = "/bucket/run/stages/02-third/end.model.safetensors"
    content = bytearray(there.cat(name))
    content[-1] ^= 1
    there.pipe(name, bytes(content))
    run = open_run(URL)
    with pytest.raises(RunError, match=r"memory://.*end\.model\.safetensors was changed after"):
        run.last.end()


@pytest.mark.parametrize("damaged", [b"", b"\0" * 8])
def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(
    damaged: bytes, recorded: Path, there: fsspec.AbstractFileSystem
) -> None:
    reference = open_run(URL).last.facts.end.model
    path = open_run(URL).files.path(reference)
    whole = path.read_bytes()
    path.write_bytes(damaged and whole[:-8] + damaged)
    assert open_run(URL).files.path(reference).read_bytes() == whole


def test_a_file_of_another_size_or_a_missing_one_is_told_at_once(
    there: fsspec.AbstractFileSystem,
) -> None:
    name = "/bucket/run/stages/02-third/end.model.safetensors"
    content = there.cat(name)
    there.pipe(name, content[:-8])
    with pytest.raises(RunError, match=r"was changed after it was recorded"):
        open_run(URL)
    there.rm(name)
    with pytest.raises(RunError, match=r"end\.model\.safetensors is missing; restore it"):
        open_run(URL)


def test_the_cache_keeps_within_its_size_and_fetches_again(
    recorded: Path, there: fsspec.AbstractFileSystem, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(URL)
    small = sum(path.stat().st_size for path in cache.rglob("run/**/*") if path.is_file())
    model = max(path.stat().st_size for path in recorded.rglob("*.model.safetensors"))
    most = small + int(2.5 * model)
    monkeypatch.setattr(remote, "cache_size", lambda: most)
    for stage in run.stages:
        again = run.files.path(stage.facts.end.model)
        assert again.is_file()
        held = sum(path.stat().st_size for path in cache.rglob("run/**/*") if path.is_file())
        assert held <= most
    assert "stages/00-first/end.model.safetensors" not in fetched(cache)
    first = run.files.path(run.stages[0].facts.end.model)
    assert first.read_bytes() == (recorded / "stages/00-first/end.model.safetensors").read_bytes()
    assert "stages/02-third/end.model.safetensors" in fetched(cache)  # it was used last
    monkeypatch.setattr(remote, "cache_size", lambda: model - 1)
    with pytest.raises(RunError, match="STAGELENS_CACHE_SIZE to more"):
        run.files.path(run.stages[1].facts.end.model)


def test_what_a_command_computes_is_brought_to_the_run(
    there: fsspec.AbstractFileSystem,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["stagelens", "attribute", URL, "--estimator", "replay"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    tables = there.glob("/bucket/run/results/tables/*.parquet")
    assert len(tables) == 2  # boundaries and effects
    assert not there.glob("/bucket/run/results/shards/**")
    shutil.rmtree(cache)  # as on another machine
    run = open_run(URL)
    stored = attribute(run, "test", "replay")
    assert np.isfinite(stored.table["effect"]).all()
    assert not any("batches" in name for name in fetched(cache))
    assert Origin(run.path).upload() == []  # nothing is new

    def refuse(*_args: object, **_more: object) -> None:
        raise PermissionError("read-only bucket")

    attribute(run, "test", "task-vector")
    monkeypatch.setattr(type(there), "put_file", refuse)
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    told = capsys.readouterr().err
    assert f"Note: results are kept only in {run.path}: {URL} cannot be written" in told


def test_results_that_are_written_there_are_seen_and_those_that_are_gone_are_not(
    there: fsspec.AbstractFileSystem,
) -> None:
    there.pipe("/bucket/run/findings/one.json", b"{}")
    path = open_run(URL).path / "findings" / "one.json"
    assert path.read_bytes() == b"{}"
    there.pipe("/bucket/run/findings/one.json", b"[]")
    open_run(URL)
    assert path.read_bytes() == b"[]"
    there.rm("/bucket/run/findings/one.json")
    (path.parent / "own.json").write_bytes(b"{}")
    open_run(URL)
    assert not path.exists()
    assert (path.parent / "own.json").exists()  # was written here


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("memory://bucket/nothing", r"is not a run folder \(it has no run.json\)|cannot be read"),
        ("nonsense://bucket/run", "cannot be read .*nonsense"),
    ],
)
def test_an_address_that_leads_to_no_run_is_refused(
    url: str, told: str, there: fsspec.AbstractFileSystem
) -> None:
    with pytest.raises(RunError, match=told):
        open_run(url)


def test_names_that_lead_out_of_the_copy_are_refused(
    there: fsspec.AbstractFileSystem, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find: Callable[..., dict[str, object]] = type(there).find

    def hostile(self: object, *args: object, **more: object) -> dict[str, object]:
        return find(self, *args, **more) | {"/bucket/run/../../outside.json": {"size": 2}}

    monkeypatch.setattr(type(there), "find", hostile)
    with pytest.raises(RunError, match="is not a plain path inside the run folder"):
        open_run(URL)


def test_a_folder_that_calls_itself_a_copy_is_none(recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded, tmp_path / "elsewhere" / "run")
    (tmp_path / "elsewhere" / "origin.json").write_text('{"url": "memory://x", "files": {}}')
    assert Origin.of(tmp_path / "elsewhere" / "run") is None
    assert open_run(tmp_path / "elsewhere" / "run").set_names == ["test"]


@pytest.mark.parametrize("text", ["much", "-1GB", "5 kB"])
def test_a_cache_size_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGELENS_CACHE_SIZE", text)
    with pytest.raises(StageLensError, match="STAGELENS_CACHE_SIZE"):
        remote.cache_size()


def test_checkpoints_elsewhere_make_the_run_that_they_make_here(
    there: fsspec.AbstractFileSystem, cache: Path, tmp_path: Path
) -> None:
    folders = classifiers(tmp_path / "saved", ("base", "sft"))
    (tmp_path / "saved" / "output").mkdir()
    for name in ("checkpoint-9", "checkpoint-10"):
        shutil.copytree(folders["sft"], tmp_path / "saved" / "output" / name)
    there.put(str(tmp_path / "saved"), "/bucket/saved", recursive=True)
    named = {"base": "memory://bucket/saved/base", "sft": "memory://bucket/saved/output"}
    run = assemble(named, tmp_path / "run")
    local = {"base": folders["base"], "sft": tmp_path / "saved" / "output"}
    here = assemble(local, tmp_path / "here", name="run")
    assert run.digest == here.digest
    assert run.problems == here.problems
    assert not list(cache.glob("checkpoints-*"))
    with pytest.raises(RunError, match=r"memory://bucket/none (holds no files|cannot be read)"):
        assemble({"base": named["base"], "sft": "memory://bucket/none"}, tmp_path / "none")


def test_a_run_on_s3_gives_the_numbers_of_the_run_and_takes_the_results(
    recorded: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a local server of moto, where it is installed: ``pip install "moto[server]" s3fs``."""
    server_of = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        files = fsspec.filesystem("s3", skip_instance_cache=True)
        files.mkdir("bucket")
        files.put(str(recorded), "bucket/runs/mine", recursive=True)
        monkeypatch.setattr(
            sys,
            "argv",
            ["stagelens", "attribute", "s3://bucket/runs/mine", "--estimator", "replay"],
        )
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        files.invalidate_cache()
        assert len(files.glob("bucket/runs/mine/results/tables/*.parquet")) == 2
        shutil.rmtree(cache)
        own = attribute(open_run("s3://bucket/runs/mine"), "test", "replay")
        assert not any("batches" in name for name in fetched(cache))
        shutil.copytree(recorded, tmp_path / "here")
        here = attribute(open_run(tmp_path / "here"), "test", "replay")
        pd.testing.assert_frame_equal(own.table, here.table)
        with pytest.raises(
            RunError, match=r"s3://nowhere/run (cannot be read|is not a run folder)"
        ):
            open_run("s3://nowhere/run")
    finally:
        server.stop()


def test_files_that_were_used_at_the_same_time_make_room(
    there: fsspec.AbstractFileSystem, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_run(URL)
    origins = [Origin(next(cache.glob("*/run"))) for _ in range(2)]
    held = [(5, 7, origin, "stages/x.safetensors") for origin in origins]
    dropped: list[Origin] = []
    monkeypatch.setattr(remote, "_held", lambda: iter(held))
    monkeypatch.setattr(remote, "cache_size", lambda: 10)
    monkeypatch.setattr(Origin, "drop", lambda own, _name: dropped.append(own))
    origins[0]._make_room(3, "y")
    assert len(dropped) == 1
