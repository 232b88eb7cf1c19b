"""What the README tells people to type works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import stagelens
from stagelens.cli import app
from tests.small_trainings import arguments, examples, made

README = (Path(__file__).parents[2] / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


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
    exec(_blocks("python")[0], own)
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
    (block,) = [block for block in _blocks("python") if "StageRecorderCallback" in block]
    exec(block, own)
    run = stagelens.open_run("runs/chat")
    assert [(stage.name, stage.steps) for stage in run.stages] == [("general", 2), ("sft", 2)]


def test_every_command_that_it_names_exists() -> None:
    commands = set(re.findall(r"^stagelens ([a-z-]+)", README, re.MULTILINE))
    assert commands >= {"demo", "attribute", "verify", "add-set"}
    for command in commands:
        shown = CliRunner().invoke(app, [command, "--help"])
        assert shown.exit_code == 0, command
        for option in re.findall(rf"^stagelens {command} .*$", README, re.MULTILINE):
            for flag in re.findall(r"--[a-z-]+", option):
                assert flag in shown.output, (command, flag)


def test_its_picture_and_targets_exist() -> None:
    root = Path(__file__).parents[2]
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (root / picture).is_file()
    targets = set(re.findall(r"`?make ([a-z]+)", README))
    makefile = (root / "Makefile").read_text()
    for target in targets & {"app", "test", "lint", "bench"}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
