"""``--leaf`` on the commands that take a run: one history is meant, and has to be named."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import stagelens
from stagelens import cli
from stagelens.effects.results import load_result
from tests.support.branching import record_branching

COMMANDS: dict[str, tuple[str, ...]] = {
    "attribute": ("--estimator", "replay", "--set", "test"),
    "verify": ("--estimator", "task-vector", "--orders", "1"),
    "shares": ("--estimator", "replay"),
    "draws": ("--number", "3", "--cost"),
    "paths": ("--json",),
    "contributions": ("--behaviour", "margin", "--since", "sft", "--example", "0"),
    "features": ("--estimator", "task-vector"),
    "saliency": ("--stage", "sft", "--example", "0", "--estimator", "task-vector"),
    "network": ("--stage", "sft", "--estimator", "task-vector"),
    "remove": ("--stage", "sft", "--estimator", "task-vector"),
    "check": (),
    "dossier": ("--out", "{out}/dossier.html"),
    "report": ("--out", "{out}/report.html"),
    "card": ("--example", "0", "--out", "{out}/card.html"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_branching(tmp_path_factory.mktemp("leaf") / "run", soup=False).path


def command(*words: object) -> int:
    with pytest.raises(SystemExit) as end, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["stagelens", *map(str, words)])
        patch.setenv("STAGELENS_PROCESSES", "1")
        cli.main()
    return int(end.value.code or 0)


def words(name: str, out: Path) -> list[str]:
    return [word.format(out=out) for word in COMMANDS[name]]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "check"])
def test_without_a_leaf_each_command_lists_them(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(name, run, *words(name, tmp_path)) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "has several leaves: 'dpo', 'rl'; say whose history is meant with --leaf NAME" in said
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
def test_each_command_works_along_the_path_of_the_leaf(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in COMMANDS:
        code = command(name, run, "--leaf", "rl", *words(name, tmp_path))
        said = capsys.readouterr()
        assert code == 0, (name, said.err)
        assert "dpo" not in said.out, name
    assert {each.name for each in tmp_path.iterdir()} == {
        "dossier.html",
        "report.html",
        "card.html",
    }
    assert "leaf=rl" in (tmp_path / "card.html").read_text()
    opened = {leaf: stagelens.open_run(run, leaf=leaf) for leaf in ("dpo", "rl")}
    assert load_result(opened["rl"], "test", "effects", "replay") is not None
    assert load_result(opened["dpo"], "test", "effects", "replay") is None


def test_all_leaves_are_checked_unless_one_is_named(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("check", run) == 0
    said = capsys.readouterr().out
    for stage in ("sft", "dpo", "rl"):
        assert said.count(f"stage {stage}: files") == 1
    assert command("check", run, "--leaf", "dpo") == 0
    assert "stage rl" not in capsys.readouterr().out


def test_sizes_and_sets_are_those_of_the_whole_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("size", run, "--json") == 0
    where = {each["where"] for each in json.loads(capsys.readouterr().out)}
    assert {"sft", "dpo", "rl"} <= where


def test_a_leaf_that_is_not_there_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("attribute", run, "--leaf", "ppo") == 1
    assert "no finished stage 'ppo' that could be a leaf" in capsys.readouterr().err
    assert command("compare", run, "--leaf", "rl") == 2
    assert command("compare", run, "--leaf", "rl", "--leaf", "rl") == 1
    assert "'rl' is compared with itself" in capsys.readouterr().err
    assert command("soup", run, "--leaf", "rl") == 1
    assert "'rl' is no merge of other stages" in capsys.readouterr().err


def test_two_leaves_are_compared_by_the_estimator_that_is_named(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaves = ("compare", run, "--leaf", "dpo", "--leaf", "rl", "--json")
    assert command(*leaves, "--estimator", "replay") == 0
    said = json.loads(capsys.readouterr().out)
    assert {row["estimator"] for row in said["effects"]} == {"replay"}
    assert [row["stage"] for row in said["effects"]] == [
        *said["since"]["dpo"],
        *said["since"]["rl"],
    ]
    assert command(*leaves, "--estimator", "task-vector") == 0
    said = json.loads(capsys.readouterr().out)
    assert {row["estimator"] for row in said["effects"]} == {"task-vector"}
    assert command(*leaves, "--estimator", "guess") == 1
    assert "guess" in capsys.readouterr().err
