"""The form on the start page that makes a run of checkpoint folders."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from streamlit.testing.v1 import AppTest

from stagelens.cli import options
from stagelens.runs.run import open_run
from stagelens.runs.sets.columns import ROLES
from stagelens.ui.opening import assembling
from stagelens.ui.server import jobs
from tests.pages.reading import check, words
from tests.support.checkpoints import classifiers, labelled_texts

Form = Callable[..., AppTest]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints of one classifier, the last also as a pickle, and a file of texts."""
    root = tmp_path_factory.mktemp("models")
    classifiers(root)
    base, dpo = (load_file(root / name / "model.safetensors") for name in ("base", "dpo"))
    for name, change in {"rl": {k: base[k].sin() for k in base}, "soup": {}}.items():
        made = change or {k: 0.5 * (dpo[k] + base[k].sin()) for k in dpo}
        folder = Path(shutil.copytree(root / "dpo", root / name))
        save_file(made, folder / "model.safetensors", {"format": "pt"})
    pickled = Path(shutil.copytree(root / "dpo", root / "pickled"))
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    labelled_texts(root / "texts.jsonl")
    return root


@pytest.fixture
def form(open_page, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Form:
    """``form(name="mine", sft=DIR, ...)``: the start page with the form filled in, not yet sent."""
    monkeypatch.setenv("STAGELENS_ROOTS", str(models))

    def fill(name: str, *stages: tuple[str, str]) -> AppTest:
        app = check(open_page(tmp_path / "home"))
        app.text_input(key="assemble-name").input(name)
        for number, (stage, folder) in enumerate(stages):
            if number > 1:
                app.button(key="assemble-add").click().run()
            app.text_input(key=f"assemble-name-{number}").input(stage)
            app.text_input(key=f"assemble-folder-{number}").input(folder)
        return check(app.run())

    return fill


def test_the_form_and_the_commands_name_every_column_that_a_set_can_have() -> None:
    assert set(options._COLUMNS) == set(ROLES)
    assert set(assembling._COLUMNS) == set(ROLES) - {"image"}  # models on images: Python only


def make(app: AppTest) -> AppTest:
    app.button(key="assemble-make").click()
    return check(app.run())


def ended(app: AppTest) -> AppTest:
    """The page after its job ended."""
    until = time.monotonic() + 60
    while any(job.running for job in jobs.registry()._jobs.values()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return check(app.run())


def test_checkpoints_become_a_run_that_opens(form: Form, tmp_path: Path) -> None:
    app = form("mine", ("", "base"), ("sft", "sft"), ("dpo", "dpo"))
    app.text_input(key="assemble-file").input("texts.jsonl").run()
    app.text_input(key="assemble-id").input("text")
    assert app.selectbox(key="assemble-task").value == "What config.json names"
    make(app)
    app = ended(app)
    run = open_run(tmp_path / "home" / "mine")
    assert [stage.name for stage in run.stages] == ["sft", "dpo"]
    assert run.evaluation_set().table()["example_id"].str.contains(" ").any()  # the texts are ids
    assert [title.value for title in app.title] == ["mine"]
    assert app.query_params["run"] == "mine"


def test_everything_that_is_wrong_is_said_at_once_and_nothing_is_lost(
    form: Form, tmp_path: Path
) -> None:
    app = make(form("", ("../up", "base"), ("", "/etc")))
    said = words(app)
    assert "the run has no name yet" in said
    assert "Base: '../up' is not a usable name" in said
    assert "Stage 1: it has no name yet" in said
    app.text_input(key="assemble-name-1").input("sft")
    app = make(app)
    assert "Stage 1: /etc is not below a folder that the dashboard may open" in words(app)
    assert app.text_input(key="assemble-folder-0").value == "base"
    assert not (tmp_path / "home").exists()


def test_branches_and_merges_are_made_of_what_each_stage_came_from(
    form: Form, tmp_path: Path
) -> None:
    app = form("mine", ("base", "base"), ("sft", "sft"), ("dpo", "dpo"), ("rl", "rl"))
    assert not [each for each in app.text_input if "came from" in each.label]
    app.checkbox(key="assemble-branches").check().run()
    assert [each.label for each in app.text_input if "came from" in each.label] == [
        f"Stage {number}: came from" for number in (1, 2, 3)
    ]
    app.button(key="assemble-add").click().run()
    for key, value in (("name", "soup"), ("folder", "soup"), ("from", "dpo, rl")):
        app.text_input(key=f"assemble-{key}-4").input(value)
    app.text_input(key="assemble-from-3").input("ppo")
    app = ended(make(check(app.run())))
    assert "'ppo'" in words(app) and "--parent" not in words(app)
    app.text_input(key="assemble-from-3").input("sft")
    app = ended(make(check(app.run())))
    run = open_run(tmp_path / "home" / "mine", leaf="soup")
    assert run.lineage.parents("rl") == ("sft",) and run.lineage.parents("soup") == ("dpo", "rl")
    assert app.query_params["run"] == "mine"


def test_a_run_that_fails_says_why_and_the_form_stays(form: Form, tmp_path: Path) -> None:
    app = ended(make(form("mine", ("base", "base"), ("sft", "pickled"))))
    assert "Making the run failed: sft:" in words(app) and "a pickle" in words(app)
    assert "without running any by a tick at 'Open pickles of weights too'" in words(app)
    folder = app.text_input(key="assemble-folder-1")
    assert folder.value == "pickled" and not folder.disabled
    assert [each for each in (tmp_path / "home").iterdir() if "mine" in each.name] == []
    app.checkbox(key="assemble-pickles").check()
    app = ended(make(app))
    assert app.query_params["run"] == "mine"
    assert "This run has no evaluation set" in words(app)


def test_rows_are_added_and_taken_out_and_keep_what_was_typed(form: Form) -> None:
    app = form("mine", ("base", "a"), ("sft", "b"), ("dpo", "c"))
    app.button(key="assemble-remove-1").click()
    app = check(app.run())
    names = [t.value for t in app.text_input if str(t.key).startswith("assemble-name-")]
    assert names == ["base", "dpo"]
    assert app.button(key="assemble-remove-2").disabled  # a run has two checkpoints at least


def test_a_run_that_is_there_is_never_written_over(form: Form, tmp_path: Path) -> None:
    (tmp_path / "home" / "mine").mkdir(parents=True)
    app = make(form("mine", ("base", "base"), ("sft", "sft")))
    assert "mine already exists; choose another name for the run" in words(app)


def test_a_file_that_does_not_fit_is_told_in_the_words_of_the_form(
    form: Form, models: Path, tmp_path: Path
) -> None:
    (models / "bare.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    app = form("mine", ("base", "base"), ("dpo", "dpo"))
    app = check(app.text_input(key="assemble-file").input("bare.jsonl").run())
    app = ended(make(app))
    assert "as the field 'Labels', or a tick at 'Without labels' for a set" in words(app)
    assert "--" not in words(app).split("Last output of the process")[0]
    app.checkbox(key="assemble-unlabelled").check()
    ended(make(app))
    assert open_run(tmp_path / "home" / "mine").evaluation_set().table()["label"].isna().all()
