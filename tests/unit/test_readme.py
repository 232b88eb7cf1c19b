"""What the README and the documents tell people to type works."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from torch import nn
from typer.testing import CliRunner

import stagelens
from stagelens.cli import app
from stagelens.effects.computing import attribute
from tests.support.checkpoints import classifiers
from tests.support.small_texts import bert, bert_tokenizer
from tests.support.small_trainings import arguments, examples, made

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
}
EVERYTHING = "\n".join(TEXTS.values())


def _blocks(language: str, text: str = EVERYTHING) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def _block_with(text: str) -> str:
    (block,) = (block for block in _blocks("python") if text in block)
    return block


def test_the_ten_lines_record_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def make_net(_config: object) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))

    model = make_net({})
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    own = {
        "names": ["cat", "dog"],
        "make_net": make_net,
        "model": model,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer),
        "loader": [(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 1, 0])) for _ in range(3)],
        "x": torch.rand(5, 3, 32, 32),
        "y": [0, 1, 0, 1, 1],
        "group": ["a", "a", "b", "b", "b"],
    }
    exec(_blocks("python", README)[0], own)
    run = stagelens.open_run("runs/mine", task=own["task"])
    assert [stage.steps for stage in run.stages] == [3]
    assert run.set_names == ["test"]


def test_the_callback_records_a_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, tokenizer = made("bert")
    own = {
        "model": model,
        "tokenizer": tokenizer,
        "args": arguments(tmp_path / "out", max_steps=2),
        "articles": examples("bert", tokenizer),
        "chats": examples("bert", tokenizer, seed=1),
    }
    exec(_block_with("from transformers import Trainer\n"), own)
    run = stagelens.open_run("runs/chat")
    assert [(stage.name, stage.steps) for stage in run.stages] == [("general", 2), ("sft", 2)]


def test_checkpoints_that_exist_become_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = classifiers(tmp_path, ["bert", "out/sft", "out/dpo"])
    rows = [f"{text},{label}" for text, label in (("a dog barked", "loud"), ("birds sing", "calm"))]
    Path("test.csv").write_text("\n".join(["text,label", *rows]))
    exec(_block_with("stagelens.assemble"), {})
    shutil.move("runs/mine", "from-python")
    told = TEXTS["docs/checkpoints.md"]
    for line in re.findall(r"^stagelens .* runs/mine$", told, re.MULTILINE):
        answer = CliRunner().invoke(app, line.split()[1:])
        assert answer.exit_code == 0, answer.output
    one, other = (stagelens.open_run(path) for path in ("from-python", "runs/mine"))
    assert [stage.name for stage in one.stages] == ["sft", "dpo"]
    assert one.digest == other.digest
    assert len(folders) == len(one.stages) + 1


@pytest.fixture
def ages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The task of one's own as an installed package, whose runs stand beside it."""
    (tmp_path / "ages.py").write_text(_block_with("class Ages(Task)"))
    (entry,) = (block for block in _blocks("toml") if "stagelens.tasks" in block)
    facts = tmp_path / "ages-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: ages\nVersion: 1.0\n")
    entries = entry.replace("project.entry-points.", "").replace('"', "")
    (facts / "entry_points.txt").write_text(entries)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("ages", None)


def test_a_task_of_ones_own_records_and_attributes(ages: Path) -> None:
    assert len(_block_with("class Ages(Task)").splitlines()) < 25
    task = importlib.import_module("ages").Ages()
    torch.manual_seed(0)
    model = task.build_model()
    recorder = stagelens.Recorder("run", task)
    images = torch.randint(256, (40, 8, 8), dtype=torch.uint8)
    years = images.float().mean((1, 2)) / 2
    for name in ("first", "second"):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        with recorder.stage(name, model=model, optimizer=optimizer) as stage:
            for rows in torch.randperm(40).split(8):
                batch = (images[rows] / 255, years[rows])
                loss = task.loss(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                stage.step(batch, loss)
    recorder.add_set("test", images=images[:9], labels=[*years[:8].tolist(), None])
    recorder.close()
    run = stagelens.open_run("run")  # found by its registered name
    assert type(run.task) is type(task)
    table = attribute(run, "test", "replay").table
    assert table["effect"].notna().sum() == 2 * 8
    assert set(table["behaviour"]) == {"loss"}
    final = run.task.behaviours(model(images[:8] / 255), (None, years[:8]))["loss"]
    np.testing.assert_allclose(table["final"][:8], final.detach(), rtol=1e-5)
    for option in ([], ["--task", "ages:Ages"]):
        done = CliRunner().invoke(app, ["attribute", "run", "--estimator", "replay", *option])
        assert done.exit_code == 0, done.output


def _comments(count: int, columns: Sequence[str], seed: int) -> datasets.Dataset:
    """Invented comments in the columns of CivilComments."""
    random = np.random.default_rng(seed)
    words = ["cat", "dog", "mat", "women", "muslim", "rain", "birds", "man"]
    texts = [" ".join(random.choice(words, 5)) for _ in range(count)]
    scores = {name: random.random(count).astype(np.float32).tolist() for name in columns}
    return datasets.Dataset.from_dict({"text": texts, **scores})


CIVIL = ["toxicity", "severe_toxicity", "obscene", "threat", "insult", "identity_attack"]


@pytest.mark.parametrize("identities", [[], ["male", "female", "muslim", "black"]])
def test_civil_comments_on_comments_with_the_same_columns(
    identities: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = []

    def load_dataset(name: str, split: str) -> datasets.Dataset:
        asked.append((name, split))
        return _comments(60, [*CIVIL, *identities], seed=len(asked))

    tokenizer = bert_tokenizer()

    def load_model(_name: str, id2label: dict[int, str], attn_implementation: str) -> Any:
        assert attn_implementation == "eager"
        return bert(tokenizer, id2label=id2label)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda _name: tokenizer)
    auto = transformers.AutoModelForSequenceClassification
    monkeypatch.setattr(auto, "from_pretrained", load_model)
    own: dict[str, Any] = {}
    exec(_block_with("load_dataset("), own)
    exec(_block_with('effects = stagelens.attribute(stagelens.open_run("runs/civil")'), own)
    assert [name for name, _ in asked] == ["google/civil_comments"] * 2
    run = stagelens.open_run("runs/civil")
    assert [stage.name for stage in run.stages] == ["general", "identities"]
    columns = run.evaluation_set("test").columns
    assert columns == ("mention", *sorted({"male", "female", "muslim"} & set(identities)))
    assert own["effects"]["effect"].notna().all()
    assert set(own["effects"]["mention"]) <= {"yes", "no"}


@pytest.mark.slow
def test_every_command_that_they_name_exists() -> None:
    commands = set(re.findall(r"^stagelens ([a-z-]+)", EVERYTHING, re.MULTILINE))
    assert commands >= {"demo", "attribute", "verify", "add-set"}
    for command in commands:
        shown = CliRunner().invoke(app, [command, "--help"])
        assert shown.exit_code == 0, command
        for option in re.findall(rf"^stagelens {command} .*$", EVERYTHING, re.MULTILINE):
            for flag in re.findall(r"--[a-z-]+", option):
                assert flag in shown.output, (command, flag)


def _anchors(text: str) -> set[str]:
    """What links can name in a document, made from its headings as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_and_picture_leads_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert target.exists(), link
        if anchor:
            assert anchor in _anchors(target.read_text()), link


def test_every_target_of_make_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make ([a-z-]+)", EVERYTHING)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
