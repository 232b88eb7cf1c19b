"""Digests of a run's files: sha256 says what one is, xxh3-128 whether it is as it was written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import xxhash

import stagelens
from stagelens.contracts import RunError
from stagelens.runs.checked_files import CheckedFiles
from stagelens.runs.files import is_as_recorded, reference_of, write_file
from stagelens.runs.identity import stage_identity
from stagelens.runs.schema import FileRef
from stagelens.trust.checking import check_run
from tests.support.checkpoints import classifiers

CONTENT = bytes(range(256)) * 9000


def test_a_file_is_read_once_for_both_digests(tmp_path: Path) -> None:
    reference = write_file(tmp_path, "a/b.bin", lambda path: path.write_bytes(CONTENT))
    assert reference == reference_of(tmp_path / "a/b.bin", "a/b.bin")
    assert reference.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert reference.xxh3 == xxhash.xxh3_128_hexdigest(CONTENT)
    assert reference.bytes == len(CONTENT)


@pytest.mark.parametrize("wrong", ["sha256", "xxh3"])
def test_use_asks_the_quicker_digest_and_a_check_asks_both(wrong: str, tmp_path: Path) -> None:
    right = write_file(tmp_path, "b.bin", lambda path: path.write_bytes(CONTENT))
    other = {"sha256": 64 * "0", "xxh3": 32 * "0"}[wrong]
    reference, path = right.model_copy(update={wrong: other}), tmp_path / "b.bin"
    assert is_as_recorded(path, right) and is_as_recorded(path, right, whole=True)
    assert is_as_recorded(path, reference) is (wrong == "sha256")
    assert not is_as_recorded(path, reference, whole=True)
    with pytest.raises(RunError, match="was changed after it was recorded"):
        CheckedFiles(tmp_path).verified(reference)


def test_what_an_earlier_version_wrote_is_checked_by_sha256_and_stays_as_it_is(
    tmp_path: Path,
) -> None:
    new = write_file(tmp_path, "b.bin", lambda path: path.write_bytes(CONTENT))
    old = FileRef(path=new.path, sha256=new.sha256, bytes=new.bytes)
    assert json.loads(old.model_dump_json()).keys() == {"path", "sha256", "bytes"}
    CheckedFiles(tmp_path).path(old)
    (tmp_path / "b.bin").write_bytes(CONTENT[:-1] + b"\x00")
    with pytest.raises(RunError, match="was changed after it was recorded"):
        CheckedFiles(tmp_path).path(old)


def test_the_quicker_digest_is_no_part_of_what_a_run_is(tmp_path: Path) -> None:
    run = stagelens.assemble(classifiers(tmp_path), tmp_path / "run")
    for facts in (stage.facts for stage in run.stages):
        assert facts.end is not None and facts.end.model.xxh3 is not None
        # As an earlier version would have written it.
        plain = facts.model_validate_json(_without(facts.model_dump_json()))
        assert plain.end is not None and plain.end.model.xxh3 is None
        assert stage_identity(plain) == stage_identity(facts)
    found = [one for one in check_run(run) if one.what.endswith(": files")]
    assert found and all(one.holds for one in found)


def _without(text: str) -> str:
    def stripped(value: object) -> object:
        if isinstance(value, dict):
            return {key: stripped(each) for key, each in value.items() if key != "xxh3"}
        return [stripped(each) for each in value] if isinstance(value, list) else value

    return json.dumps(stripped(json.loads(text)))
