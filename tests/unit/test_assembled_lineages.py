"""Checkpoint folders with branches and merges become one run with several leaves."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import stagelens
from stagelens import cli
from stagelens.analyses.lineages.soup import credit
from stagelens.analyses.lineages.soup_table import given
from stagelens.assembling.parents import descent
from stagelens.contracts import ACCURACY, Refused, StageLensError
from stagelens.effects.computing import boundaries
from tests.support.checkpoints import changed, labelled_texts, save
from tests.support.loops import differing, refused
from tests.support.small_texts import bert, bert_tokenizer

Folders = dict[str, Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """base, then sft, from which dpo and rl come, and a soup of both."""
    root = tmp_path_factory.mktemp("branches")
    tokenizer = bert_tokenizer()
    found = {}
    for name, seeds in {"base": [0], "sft": [0, 1], "dpo": [0, 1, 2], "rl": [0, 1, 3]}.items():
        model = bert(tokenizer)
        for seed in seeds:
            changed(model, seed)
        found[name] = save(model, root / name, tokenizer)
    states = {name: load_file(found[name] / "model.safetensors") for name in ("dpo", "rl")}
    shutil.copytree(found["dpo"], root / "soup")
    mixed = {n: 0.7 * states["dpo"][n] + 0.3 * states["rl"][n] for n in states["dpo"]}
    save_file(mixed, root / "soup" / "model.safetensors", {"format": "pt"})
    return {**found, "soup": root / "soup"}


@pytest.fixture(scope="module")
def run(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("assembled") / "run"
    parents = {"rl": "sft", "soup": ["dpo", "rl"]}
    file = labelled_texts(out.parent / "few.jsonl")
    stagelens.assemble(folders, out, parents=parents, evaluation=file)
    return out


def command(*words: object) -> int:
    with pytest.raises(SystemExit) as end, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["stagelens", *map(str, words)])
        cli.main()
    return int(end.value.code or 0)


def names(run: stagelens.Run) -> list[str]:
    return [stage.name for stage in run.stages]


def test_a_branch_starts_at_its_parent(run: Path, folders: Folders) -> None:
    rl = stagelens.open_run(run, leaf="rl")
    assert names(rl) == ["sft", "rl"]
    start = load_file(folders["sft"] / "model.safetensors")
    assert differing(start, {name: rl.last.start().model[name] for name in start}) == []


def test_a_history_has_the_digest_of_a_line(run: Path, folders: Folders, tmp_path: Path) -> None:
    line = {name: folders[name] for name in ("base", "sft", "rl")}
    assert stagelens.assemble(line, tmp_path / "line").digest == (
        stagelens.open_run(run, leaf="rl").digest
    )


def test_each_checkpoint_is_stored_once(run: Path) -> None:
    assert len([*run.rglob("model.safetensors")]) == 5


def test_a_soup_is_told_with_its_weights(run: Path) -> None:
    soup = stagelens.open_run(run)
    merge = soup.last.facts.merge
    assert merge is not None and merge.exact
    assert merge.weights == pytest.approx({"dpo": 0.7, "rl": 0.3}, abs=1e-5)
    assert any("weighted average of its parents: 0.700 dpo + 0.300 rl" in p for p in soup.problems)
    assert not any("looks like" in problem for problem in soup.problems)
    assert soup.last.facts.description.startswith("merge of dpo and rl: ")


def test_a_parent_is_credited_with_what_the_merge_without_it_lacks(run: Path) -> None:
    soup = stagelens.open_run(run)
    found = credit(soup, "few")
    dpo = stagelens.open_run(run, leaf="dpo")
    final = boundaries(dpo, "few").table
    end = final[(final["boundary"] == "dpo") & (final["behaviour"] == "loss")]
    rows = found.table[(found.table["part"] == "parent") & (found.table["stage"] == "rl")]
    rows = rows[rows["behaviour"] == "loss"]
    # Without the one parent, the merge is the other.
    assert rows["without"].to_numpy() == pytest.approx(end["value"].to_numpy(), abs=1e-5)
    assert credit(soup, "few").table.equals(found.table)
    said = given(found, ACCURACY, soup.evaluation_set("few"))
    assert list(said["part"]) == ["parent", "parent", "stage", "stage"]
    assert list(said["weight"]) == pytest.approx([0.7, 0.3, 0.7, 0.3], abs=1e-5)
    for part in found.facts.parts:
        assert part.trust.reason.startswith("No counterfactual of a training")


def test_what_is_no_soup_is_credited_to_nobody(folders: Folders, tmp_path: Path) -> None:
    parents = {"rl": "base", "odd": ["sft", "rl"]}
    given_ = {name: folders[name] for name in ("base", "sft", "rl")} | {"odd": folders["soup"]}
    shutil.copytree(folders["soup"], tmp_path / "odd")
    state = load_file(tmp_path / "odd" / "model.safetensors")
    noisy = {n: t + 0.01 * torch.randn_like(t) for n, t in state.items()}
    save_file(noisy, tmp_path / "odd" / "model.safetensors", {"format": "pt"})
    given_["odd"] = tmp_path / "odd"
    file = labelled_texts(tmp_path / "few.jsonl")
    made = stagelens.assemble(given_, tmp_path / "run", parents=parents, evaluation=file)
    assert any("not a weighted average of its parents" in problem for problem in made.problems)
    with refused("not a weighted average of its parents", by=Refused):
        credit(made, "few")
    with refused("'sft' is no merge", by=Refused):
        credit(stagelens.open_run(tmp_path / "run", leaf="sft"), "few")


@pytest.mark.parametrize(
    ("parents", "says"),
    [
        ({"rl": "ppo"}, "'ppo' is no stage"),
        ({"base": "rl"}, "a parent of 'base'"),
        ({"sft": "rl", "rl": "sft"}, "in a circle"),
        ({"rl": ["sft", "sft"]}, "given twice"),
        ({"rl": []}, "a parent of 'rl'"),
    ],
)
def test_parents_that_cannot_be_are_refused(parents: dict[str, str], says: str) -> None:
    with pytest.raises(StageLensError, match=says):
        descent(["base", "sft", "rl"], parents)


def test_stages_are_ordered_by_what_they_came_from() -> None:
    found = descent(["base", "rl", "sft", "dpo"], {"rl": "sft", "sft": "base", "dpo": "sft"})
    assert found.names == ("base", "sft", "rl", "dpo")
    assert found.leaves == [2, 3]
    assert [found.listed(number) for number in (1, 2, 3)] == [None, None, ["sft"]]


def test_the_command_takes_parents_and_merges(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "run", labelled_texts(tmp_path / "few.jsonl")
    words = [w for n in ("base", "sft", "dpo", "rl") for w in ("--stage", f"{n}={folders[n]}")]
    words += ["--parent", "rl=sft", "--merge", f"soup={folders['soup']}"]
    given_ = ["assemble", *words, "--eval", file, "--out"]
    assert command(*given_, tmp_path / "other") == 1
    assert "--parents soup=a,b" in capsys.readouterr().err
    assert command(*given_, out, "--parents", "soup=dpo,rl") == 0
    assert "4 stages, sets few" in capsys.readouterr().out
    assert command("soup", out, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["weights"] == pytest.approx({"dpo": 0.7, "rl": 0.3}, abs=1e-5)
    assert {row["trust"] for row in said["rows"]} == {"rough"}
    assert command("compare", out, "--leaf", "dpo", "--leaf", "rl", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["common"], said["since"]) == (["sft"], {"dpo": ["dpo"], "rl": ["rl"]})
    assert command("shares", out) == 1
    assert "'soup' is a merge of 'dpo' and 'rl'" in capsys.readouterr().err


def test_a_recipe_names_parents(folders: Folders, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    lines = ["stages:"]
    for name, more in {"base": "", "sft": "", "dpo": "", "rl": ", parent: sft"}.items():
        lines.append(f"  - {{name: {name}, model: {folders[name]}{more}}}")
    lines.append(f"  - {{name: soup, model: {folders['soup']}, parents: [dpo, rl]}}")
    recipe.write_text("\n".join(lines))
    assert command("assemble", recipe, "--out", tmp_path / "run") == 0
    made = stagelens.open_run(tmp_path / "run")
    assert made.lineage.parents("soup") == ("dpo", "rl")
    assert names(made) == ["sft", "soup"]
