"""``stagelens check``: what it says of a run as it was recorded, and of one that was changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import stagelens
from stagelens import cli
from stagelens.effects.computing import attribute, boundaries
from stagelens.effects.results import result_path, stored_results
from stagelens.runs import fact_tables
from stagelens.runs.files import is_sealed, sealed
from tests.support.damage import flip_a_bit_in_the_middle
from tests.support.odd_runs import record

RUNS = Path(__file__).parents[1] / "fixtures" / "runs"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = record(tmp_path_factory.mktemp("whole") / "run", {"even": (2, 0.05), "odd": (2, 0.05)})
    attribute(run, "test", "replay")
    boundaries(run, "test")
    done = CliRunner().invoke(
        cli.app, ["report", str(run.path), "--out", str(run.path.parent / "report.html")]
    )
    assert done.exit_code == 0, done.output
    return run.path


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def check(path: Path, *options: str) -> tuple[int, dict[str, bool | None], str]:
    """Exit status, what holds, and what is said of what does not."""
    done = CliRunner().invoke(cli.app, ["check", str(path), "--json", *options])
    found = json.loads(done.stdout)
    said = " ".join(each["said"] for each in found if not each["holds"])
    return done.exit_code, {each["what"]: each["holds"] for each in found}, said


@pytest.mark.parametrize("options", [(), ("--full",)], ids=["a sample", "every step"])
def test_all_holds_of_a_run_as_it_was_recorded(whole: Path, options: tuple[str, ...]) -> None:
    report = ("--report", str(whole.parent / "report.html"))
    status, holds, said = check(whole, *options, *report)
    assert (status, said) == (0, "")
    assert {"run.json", "stage odd: files", "stage odd: steps", "set test", "results"} <= set(holds)
    assert {"effects by replay on set test", "report report.html"} <= set(holds)


FILES = {
    "stages/01-odd/end.model.safetensors": "stage odd: files",
    "stages/01-odd/batches-00000.safetensors": "stage odd: files",
    "stages/00-even/steps-00000.parquet": "stage even: files",
    "sets/test/examples.parquet": "set test",
    "run.json": "run",
}


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_was_changed_is_named(file: str, copy: Path) -> None:
    flip_a_bit_in_the_middle(copy / file)
    status, holds, said = check(copy)
    assert status == cli.checking.WRONG
    assert holds[FILES[file]] is False
    assert Path(file).name in said


@pytest.mark.parametrize("kind", ["tables/*.parquet", "checks/*.json"])
def test_a_result_that_was_changed_is_named(kind: str, copy: Path) -> None:
    path, *others = sorted((copy / "results").glob(kind))
    flip_a_bit_in_the_middle(path)
    spoiled = [path]
    if kind.endswith("json"):
        # A damaged name of the checksum does not make a file one of an earlier version.
        others[0].write_bytes(others[0].read_bytes().replace(b'"checksum"', b'"checksun"'))
        spoiled.append(others[0])
    status, holds, said = check(copy)
    assert status == cli.checking.WRONG
    assert [holds[f"results/{path.parent.name}/{path.name}"] for path in spoiled] == [
        False for _ in spoiled
    ]
    assert "computed again" in said


def test_numbers_that_no_model_gives_are_found_behind_a_checksum_that_fits(copy: Path) -> None:
    """As where a table was written by a program that was not right."""
    run = stagelens.open_run(copy)
    (facts,) = stored_results(run, "test")
    path = result_path(run, facts)
    table = pq.read_table(path).to_pandas()
    own = table["stage"] == "odd"
    table.loc[own, "effect"] *= 1.5
    fact_tables.write(path, table, facts)
    status, holds, said = check(copy)
    assert status == cli.checking.WRONG
    assert holds["effects by replay on set test"] is False
    assert "stage odd" in said and "stage even" not in said


def test_an_edited_report_is_told(whole: Path, tmp_path: Path) -> None:
    page = (whole.parent / "report.html").read_text()
    for name, text, holds in [
        ("edited.html", page.replace("blame", "praise"), False),
        ("longer.html", page + "<p>accuracy is 99 points higher</p>", False),
        ("other.html", "<html></html>", None),
    ]:
        (tmp_path / name).write_text(text)
        status, found, _ = check(whole, "--report", str(tmp_path / name))
        assert found[f"report {name}"] is holds
        assert status == (cli.checking.COULD_NOT_TELL if holds is None else cli.checking.WRONG)


def test_a_report_whose_table_was_computed_again_cannot_be_compared(
    whole: Path, copy: Path
) -> None:
    shutil.rmtree(copy / "results" / "tables")
    run = stagelens.open_run(copy)
    report = ("--report", str(whole.parent / "report.html"))
    for again in (False, True):
        if again:
            attribute(run, "test", "replay")
        status, holds, said = check(copy, *report)
        assert status == cli.checking.COULD_NOT_TELL
        assert holds["report report.html: effects by replay on set test"] is None
        assert ("computed again since" if again else "no longer has") in said


def test_a_json_export_is_checked_too(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    done = CliRunner().invoke(cli.app, ["report", str(whole), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert check(whole, "--report", str(out))[0] == 0
    out.write_text(out.read_text().replace('"even"', '"odd"'))
    assert check(whole, "--report", str(out))[1]["report rows.json"] is False


@pytest.mark.parametrize("said", [[1], {"run": "abc"}, {"run": {"digest": 7}, "tables": [3]}])
def test_what_is_sealed_but_no_report_is_not_known(said: Any, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    out.write_text(json.dumps(sealed(said) if isinstance(said, dict) else said))
    status, found, _ = check(whole, "--report", str(out))
    assert status != 0 and not found["report rows.json"]


@pytest.mark.parametrize("name", ["missing.html", "rows.csv"])
def test_a_report_that_cannot_be_checked_is_told_first(
    name: str, whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n")
    done = CliRunner().invoke(cli.app, ["check", str(whole), "--report", str(tmp_path / name)])
    assert done.exit_code == 1 and done.stdout == ""


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["check", str(tmp_path)])
    assert done.exit_code == 1


def test_a_run_of_the_first_layout_cannot_be_told_until_it_is_upgraded(tmp_path: Path) -> None:
    path = Path(shutil.copytree(RUNS / "classifier", tmp_path / "run"))
    before = stagelens.open_run(path).digest
    status, holds, said = check(path)
    assert status == cli.checking.COULD_NOT_TELL
    assert holds["run.json"] is None and "stagelens upgrade" in said
    for words in ("set.json, run.json rewritten", "already in the present layout"):
        done = CliRunner().invoke(cli.app, ["upgrade", str(path)])
        assert done.exit_code == 0 and words in done.output
    assert is_sealed(path / "run.json") and is_sealed(path / "sets" / "test" / "set.json")
    assert stagelens.open_run(path).digest == before
    status, holds, _ = check(path)
    assert holds["run.json"] is True is holds["set test"]
    assert holds["stage marks: steps"] is True


def test_a_damaged_run_is_not_upgraded(tmp_path: Path) -> None:
    path = Path(shutil.copytree(RUNS / "classifier", tmp_path / "run"))
    flip_a_bit_in_the_middle(next(path.glob("stages/*/end.model.safetensors")))
    before = (path / "run.json").read_bytes()
    done = CliRunner().invoke(cli.app, ["upgrade", str(path)])
    assert done.exit_code == 1
    assert (path / "run.json").read_bytes() == before
