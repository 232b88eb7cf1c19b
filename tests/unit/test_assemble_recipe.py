"""A recipe file names the checkpoints of a run; ready ones name public histories."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

import stagelens
from stagelens import cli
from stagelens.assembling.hub import hub_id
from stagelens.assembling.recipe import Recipe, read_recipe
from stagelens.contracts import StageLensError
from tests.support.checkpoints import language_models

READY = sorted((Path(__file__).parents[2] / "docs/recipes").glob("*.yaml"))


def command(*words: object) -> int:
    with pytest.raises(SystemExit) as end, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["stagelens", *map(str, words)])
        cli.main()
    return int(end.value.code or 0)


def test_there_are_recipes_for_public_histories() -> None:
    names = " ".join(file.stem for file in READY)
    for history in ("pythia", "olmo-2", "olmo-3", "smollm3", "tulu-3", "zephyr"):
        assert history in names


@pytest.mark.parametrize("file", READY, ids=[file.stem for file in READY])
def test_a_ready_recipe_names_ids_on_the_hub(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_recipe(file)
    assert recipe.name == file.stem
    assert recipe.about
    monkeypatch.chdir(tmp_path)
    found = [hub_id(address) for _, address in recipe.checkpoints(file.parent)]
    assert None not in found
    assert len(set(found)) == len(found)
    assert len({stage.name for stage in recipe.stages}) == len(found)
    # People have to see what of it was never opened.
    assert "# Looked up:" in file.read_text() or "# Not checked:" in file.read_text()


def test_a_recipe_makes_a_run_of_folders_beside_it(tmp_path: Path) -> None:
    beside = tmp_path / "here"
    language_models(beside / "models")
    row = {"question": "two and two", "good": " make four"}
    (beside / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    recipe = {
        "name": "mine",
        "stages": [{"name": each, "model": f"models/{each}"} for each in ("base", "sft", "dpo")],
        "evaluation": "pairs.jsonl",
        "columns": {"prompt": "question", "completion": "good"},
    }
    (beside / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert command("assemble", beside / "recipe.yaml", "--out", tmp_path / "run") == 0
    run = stagelens.open_run(tmp_path / "run")
    assert run.name == "mine"
    assert [stage.name for stage in run.stages] == ["sft", "dpo"]
    (example,) = run.evaluation_set("pairs").examples()
    assert example.input["prompt"] == "two and two"


def test_a_recipe_and_stages_do_not_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["assemble", tmp_path / "r.yaml", "--stage", f"a={tmp_path}", "--out", tmp_path / "run"]
    assert command(*words) == 1
    assert "either a recipe or --stage" in capsys.readouterr().err


def test_an_id_has_its_revision() -> None:
    recipe = Recipe.model_validate(
        {
            "stages": [
                {"name": "a", "model": "lab/tiny", "revision": "step1"},
                {"name": "b", "model": "hf://lab/tiny"},
            ]
        }
    )
    assert recipe.checkpoints(Path("nowhere")) == [
        ("a", "lab/tiny@step1"),
        ("b", "hf://lab/tiny"),
    ]


STAGES = "stages: [{name: a, model: x/y}, {name: b, model: x/z}]\n"
WRONG = [
    ("just words", "is no recipe; it needs 'stages'"),
    ("a: [", "cannot be read as YAML"),
    ("!!python/object/apply:os.getcwd []", "cannot be read as YAML"),
    ("name: x", "stages: Field required"),
    ("stages: [{name: a, model: x/y}]", "stages: List should have at least 2 items"),
    ("stages: [{name: a, model: x/y}, {name: b}]", "stages.1.model: Field required"),
    (STAGES.replace("name: a", "name: ../a"), "stages.0.name: "),
    (STAGES + "evalution: test.csv", "evalution: Extra inputs are not permitted"),
    (STAGES + "columns: {labels: y}", "columns.labels"),
]


@pytest.mark.parametrize(("text", "says"), WRONG, ids=[says for _, says in WRONG])
def test_what_is_wrong_is_named(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(StageLensError) as told:
        read_recipe(file)
    assert str(file) in str(told.value)
    assert says in str(told.value)
