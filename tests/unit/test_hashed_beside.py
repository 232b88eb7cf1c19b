"""Saving an edited model reads every state once: digests are checked while it is written."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import stagelens
from stagelens.analyses.removal import saving
from stagelens.analyses.removal.spec import Edit
from stagelens.contracts import Refused, RunError
from stagelens.runs import checked_files
from stagelens.runs.files import is_as_recorded
from tests.support.checkpoints import classifiers

EDIT = Edit(estimator="task-vector", strengths={"sft": 1.0})


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return classifiers(tmp_path, max_shard_size="8KB")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """How often each file was hashed."""
    counts: Counter[Path] = Counter()

    def counted(path: Path, *args: Any, **kwargs: Any) -> bool:
        counts[path] += 1
        return is_as_recorded(path, *args, **kwargs)

    monkeypatch.setattr(checked_files, "is_as_recorded", counted)
    return counts


def test_every_file_is_hashed_once(
    folders: dict[str, Path], hashed: Counter[Path], tmp_path: Path
) -> None:
    run = stagelens.assemble(folders, tmp_path / "run")
    saving.save(run, EDIT, tmp_path / "out", None)
    weights = [run.path / f.path for stage in run.stages for f in stage.facts.end.shards]
    assert len(weights) > 4
    assert {hashed[path] for path in weights} == {1}
    saving.save(run, EDIT, tmp_path / "again", None)
    assert {hashed[path] for path in weights} == {1}  # and is known to be right after that


@pytest.mark.parametrize("damage", [b"\x00", b"\xff"], ids=["zeros", "NaN"])
@pytest.mark.parametrize("which", ["start", "end"])
def test_a_damaged_file_is_told_of_and_leaves_nothing_behind(
    which: str, damage: bytes, folders: dict[str, Path], tmp_path: Path
) -> None:
    run = stagelens.assemble(folders, tmp_path / "run")
    path = run.path / getattr(run.stage("sft").facts, which).shards[-1].path
    content = path.read_bytes()
    path.write_bytes(content[:-64] + 64 * damage)
    with pytest.raises(RunError, match="was changed after it was recorded"):
        saving.save(stagelens.open_run(run.path), EDIT, tmp_path / "out", None)
    assert not [*tmp_path.glob("*out*")]
    path.write_bytes(content)
    saving.save(stagelens.open_run(run.path), EDIT, tmp_path / "out", None)


def test_a_file_that_is_written_to_meanwhile_is_told_of(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    run = stagelens.assemble(folders, tmp_path / "run")
    reference = run.stage("sft").facts.end.model
    with pytest.raises(RunError, match="was changed"), run.files.hashed_beside():
        path = run.files.path(reference)
        path.write_bytes(path.read_bytes())  # the same bytes, but who knows when
        path.touch()
    with pytest.raises(KeyError), run.files.hashed_beside():  # nothing wrong with the files
        run.files.path(reference)
        raise KeyError


def test_another_thread_is_given_nothing_unchecked(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    run = stagelens.assemble(folders, tmp_path / "run")
    run = stagelens.open_run(run.path)
    reference = run.stage("sft").facts.end.model
    path = run.path / reference.path
    path.write_bytes(path.read_bytes()[:-8] + b"\xff" * 8)
    damaged = pytest.raises(RunError, match="was changed after it was recorded")
    with ThreadPoolExecutor(1) as other, damaged, run.files.hashed_beside():
        assert run.files.path(reference) == path  # checked at the end of the block
        for ask in (run.files.path, lambda one: list(run.files.paths([one]))):
            with pytest.raises(RunError, match="was changed after it was recorded"):
                other.submit(ask, reference).result()


def test_weights_that_were_not_finite_before_are_refused_by_name(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    (file,) = [p for p in folders["sft"].glob("*.safetensors") if "classifier.bias" in load_file(p)]
    tensors = load_file(file)
    tensors["classifier.bias"][0] = torch.inf
    save_file(tensors, file, {"format": "pt"})
    run = stagelens.assemble(folders, tmp_path / "run")
    with pytest.raises(Refused, match=r"NaN or infinite \(classifier.bias\)"):
        saving.save(run, EDIT, tmp_path / "out", None)
    assert not [*tmp_path.glob("*out*")]
