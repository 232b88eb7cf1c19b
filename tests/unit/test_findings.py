"""Findings in the run folder: nothing is lost, whoever else writes, and damage is told."""

from __future__ import annotations

import errno
import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from stagelens.contracts import RunError
from stagelens.report import store as store_module
from stagelens.report.finding import Seen
from stagelens.report.store import FindingStore
from stagelens.runs.checked_files import CheckedFiles
from tests.support.findings import seen, trust_of

ROOT = Path(__file__).resolve().parents[2]


def opened(path: Path) -> FindingStore:
    """The findings of a folder; nothing else of a run is looked at."""
    return FindingStore(SimpleNamespace(files=CheckedFiles(path)))  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> FindingStore:
    return opened(tmp_path)


def test_what_was_seen_is_read_as_it_was_pinned(store: FindingStore, tmp_path: Path) -> None:
    first, second = seen(), seen(trust=(trust_of("one", math.nan),), sentences=())
    store.pin(first, "Look at this")
    store.pin(second)
    found = opened(tmp_path).read()  # as after a restart
    assert [each.id for each in found.kept] == [first.id, second.id]
    assert found.kept[0].seen == first and found.kept[0].note == "Look at this"
    assert math.isnan(found.kept[1].seen.trust[0].agreements[0].r)
    assert not found.problems


def test_files_are_plain_and_describe_themselves(store: FindingStore, tmp_path: Path) -> None:
    what = seen()
    store.pin(what, "mine")
    written = json.loads((tmp_path / "findings" / what.id / "seen.json").read_text())
    assert written["run_digest"] == "d" * 64 and written["estimator"] == "coarse-replay 1/4"
    assert written["figure"]["data"][0]["type"] == "bar"
    (edit,) = (tmp_path / "findings" / what.id / "edits").iterdir()
    assert json.loads(edit.read_text())["note"] == "mine"


def test_the_last_note_counts_and_the_others_are_kept(store: FindingStore) -> None:
    pinned = store.pin(seen(), "first")
    store.edit(pinned, note="mine")
    store.edit(pinned, note="theirs")  # of somebody who did not see mine
    (found,) = store.read().kept
    assert found.note == "theirs"
    assert [edit.note for edit in found.notes] == ["first", "mine", "theirs"]


def test_a_move_and_a_note_at_once_do_not_undo_each_other(store: FindingStore) -> None:
    one, two = store.pin(seen()), store.pin(seen())
    store.edit(one, note="a note")
    store.move([one, two], one, 1)  # by somebody who has not seen the note
    found = store.read().kept
    assert [each.id for each in found] == [two.id, one.id]
    assert found[1].note == "a note"


def test_a_clock_that_is_behind_does_not_lose_a_later_edit(
    store: FindingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = store.pin(seen(), "first")
    monkeypatch.setattr(store_module.time, "time_ns", lambda: 1)
    store.edit(pinned, note="second")
    assert store.read().kept[0].note == "second"


def test_what_is_taken_out_can_be_put_back(store: FindingStore) -> None:
    pinned = store.pin(seen(), "kept")
    store.edit(pinned, removed=True)
    found = store.read()
    assert found.kept == [] and found.removed[0].note == "kept"
    store.edit(found.removed[0], removed=False)
    assert store.read().kept[0].note == "kept"


def test_findings_can_be_moved_as_often_as_one_likes(store: FindingStore) -> None:
    ids = [store.pin(seen()).id for _ in range(3)]
    for _ in range(30):  # halves the room between two neighbours each time
        order = store.read().kept
        store.move(order, order[2], -1)
        expected = [order[0].id, order[2].id, order[1].id]
        assert [each.id for each in store.read().kept] == expected
    assert sorted(expected) == sorted(ids)
    order = store.read().kept
    store.move(order, order[0], -1)  # already the first
    store.move(order, order[2], 1)
    assert [each.id for each in store.read().kept] == expected


def test_the_stamp_changes_with_everything_that_is_written(store: FindingStore) -> None:
    stamps = [store.stamp()]
    pinned = store.pin(seen())
    stamps.append(store.stamp())
    for change in ({"note": "x"}, {"place": 1.0}, {"removed": True}):
        store.edit(pinned, **change)
        stamps.append(store.stamp())
    assert len(set(stamps)) == len(stamps)
    assert store.stamp() == stamps[-1]


# ------------------------------------------------------------------------------- many at once


def test_threads_that_write_at_once_lose_nothing(store: FindingStore) -> None:
    shared = store.pin(seen(), "start")

    def work(number: int) -> None:
        for step in range(5):
            store.pin(seen(title=f"{number}-{step}", figure=None))
            store.edit(shared, note=f"{number}-{step}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    found = store.read()
    assert not found.problems
    everything = {f"{number}-{step}" for number in range(4) for step in range(5)}
    assert {each.seen.title for each in found.kept} - {"Credit and blame"} == everything
    (now,) = (each for each in found.kept if each.id == shared.id)
    assert {edit.note for edit in now.notes} == everything | {"start"}
    assert now.note == now.notes[-1].note


_WRITER = """
import sys
from pathlib import Path
from types import SimpleNamespace
from stagelens.report.finding import Finding, Seen
from stagelens.report.store import FindingStore, new_id
from stagelens.runs.checked_files import CheckedFiles

folder, shared, name = sys.argv[1:]
store = FindingStore(SimpleNamespace(files=CheckedFiles(Path(folder))))
(start,) = (each for each in store.read().kept if each.id == shared)
print("ready", flush=True)
sys.stdin.readline()
for step in range(10):
    store.edit(start, note=f"{name}-{step}")
    store.pin(start.seen.model_copy(update={"id": new_id(), "title": f"{name}-{step}"}))
"""


@pytest.mark.slow
def test_processes_that_write_at_once_lose_nothing(store: FindingStore, tmp_path: Path) -> None:
    shared = store.pin(seen(figure=None), "start")
    command = [sys.executable, "-c", _WRITER, str(tmp_path), shared.id]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    writers = [subprocess.Popen([*command, name], **pipes) for name in ("a", "b")]  # type: ignore[call-overload]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    found = store.read()
    everything = {f"{name}-{step}" for name in "ab" for step in range(10)}
    assert {each.seen.title for each in found.kept} == everything | {"Credit and blame"}
    (now,) = (each for each in found.kept if each.id == shared.id)
    assert {edit.note for edit in now.notes} == everything | {"start"}
    assert not found.problems and not list(tmp_path.rglob("*.tmp"))


# ------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\x00",
        b"[]",
        b'{"version": 1}',
        b'{"version": 99}',
    ],
)
def test_a_damaged_finding_is_told_and_the_others_are_shown(
    store: FindingStore, tmp_path: Path, content: bytes
) -> None:
    bad, good = seen(), seen()
    store.pin(bad)
    store.pin(good)
    (tmp_path / "findings" / bad.id / "seen.json").write_bytes(content)
    found = store.read()
    assert [each.id for each in found.kept] == [good.id]
    (problem,) = found.problems
    assert f"findings/{bad.id}/seen.json" in problem and "Restore the file, or delete" in problem


def test_a_damaged_edit_is_told_and_the_others_count(store: FindingStore, tmp_path: Path) -> None:
    pinned = store.pin(seen(), "good")
    edits = tmp_path / "findings" / pinned.id / "edits"
    (edits / f"{10**19}-00000000.json").write_text("{")
    (edits / "notes.txt").write_text("of somebody else")
    found = store.read()
    assert found.kept[0].note == "good"
    assert "A change of the finding 'Credit and blame' is damaged" in found.problems[0]


def test_a_finding_that_is_only_half_there_is_not_shown(
    store: FindingStore, tmp_path: Path
) -> None:
    (tmp_path / "findings" / "0123456789abcdef").mkdir(parents=True)
    (tmp_path / "findings" / "of somebody else").mkdir()
    assert store.read().kept == [] and store.read().problems == []


def test_a_finding_under_the_name_of_another_is_refused(
    store: FindingStore, tmp_path: Path
) -> None:
    pinned = store.pin(seen())
    (tmp_path / "findings" / pinned.id).rename(tmp_path / "findings" / "0123456789abcdef")
    assert "it is that of another finding" in store.read().problems[0]


def test_a_finding_larger_than_any_is_not_opened(
    store: FindingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pin(seen())
    monkeypatch.setattr(store_module, "_LARGEST", 100)
    assert "more than any finding" in store.read().problems[0]


@pytest.mark.parametrize(
    ("figure", "said"),
    [
        ({"data": [{"type": "scattergeo"}], "layout": {}}, "'scattergeo', which is not drawn"),
        ({"data": ["bar"], "layout": {}}, "which is not drawn"),
        ({"data": [], "layout": None}, "no data or no layout"),
        (
            {"data": [], "layout": {"images": [{"source": "https://example.org/x.png"}]}},
            "lies elsewhere, and is not fetched",
        ),
        (
            {"data": [{"type": "image", "source": "//example.org/x"}], "layout": {}},
            "lies elsewhere",
        ),
    ],
)
def test_a_figure_that_would_ask_the_network_is_not_drawn(
    store: FindingStore, figure: dict[str, object], said: str
) -> None:
    store.pin(seen(figure=figure))
    found = store.read()
    assert found.kept == [] and said in found.problems[0]


def test_a_finding_that_lies_outside_of_the_run_is_not_read(tmp_path: Path) -> None:
    outside, run = tmp_path / "outside", tmp_path / "run"
    run.mkdir()
    opened(outside).pin(seen())
    (run / "findings").symlink_to(outside / "findings")
    found = opened(run).read()
    assert found.kept == [] and "leads out of the run folder" in found.problems[0]
    with pytest.raises(RunError, match="leads out of the run folder"):
        opened(run).pin(seen())


def test_what_stands_in_the_way_is_named(store: FindingStore, tmp_path: Path) -> None:
    (tmp_path / "findings").write_text("in the way")
    with pytest.raises(RunError, match=r"something else is in its place; rename it"):
        store.pin(seen())
    assert store.read().kept == []


def test_a_folder_that_may_not_be_written_says_what_to_do(
    store: FindingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, value: Seen) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(store_module, "write_json", refuse)
    with pytest.raises(RunError, match="allow writing there, or open a copy of the run"):
        store.pin(seen())
