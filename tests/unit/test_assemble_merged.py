"""A checkpoint that was averaged from others is no step of training, and is said to be none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import stagelens
from tests.support.checkpoints import changed, save
from tests.support.small_texts import bert, bert_tokenizer

Folders = dict[str, Path]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Three checkpoints of a classifier; two stages go in much the same direction."""
    root = tmp_path_factory.mktemp("trained")
    tokenizer = bert_tokenizer()
    model = bert(tokenizer).to(request.param)
    base = save(model, root / "base", tokenizer)
    sft = save(changed(model, 1, 0.005), root / "sft", tokenizer)
    dpo = save(changed(changed(model, 1, 0.004), 2, 0.002), root / "dpo", tokenizer)
    return {"base": base, "sft": sft, "dpo": dpo}


def mix(folders: Folders, shares: dict[str, float], to: Path) -> Path:
    """Average checkpoints, in the precision that they have."""
    states = {name: load_file(folders[name] / "model.safetensors") for name in shares}
    shutil.copytree(folders["dpo"], to)
    mixed = {}
    for key, like in states[next(iter(shares))].items():
        total = sum(share * states[name][key].float() for name, share in shares.items())
        mixed[key] = total.to(like.dtype)
    save_file(mixed, to / "model.safetensors", {"format": "pt"})
    return to


@pytest.mark.parametrize(
    ("shares", "says"),
    [
        ({"base": 0.5, "dpo": 0.5}, "an average of earlier checkpoints (0.50 of base, 0.50 of dpo"),
        ({"base": 0.2, "sft": 0.3, "dpo": 0.5}, "(0.20 of base, 0.30 of sft, 0.50 of dpo)"),
        ({"sft": -0.5, "dpo": 1.5}, "a linear combination of earlier checkpoints (-0.50 of sft"),
    ],
    ids=["two", "three", "beyond"],
)
def test_an_average_of_earlier_checkpoints_is_noted(
    shares: dict[str, float], says: str, trained: Folders, tmp_path: Path
) -> None:
    folders = {**trained, "soup": mix(trained, shares, tmp_path / "soup")}
    (note,) = stagelens.assemble(folders, tmp_path / "run").problems
    assert note.startswith("soup looks like ") and says in note
    assert note.endswith("no step of training, and its effect is that of merging")


def test_steps_in_much_the_same_direction_are_no_average(trained: Folders, tmp_path: Path) -> None:
    assert stagelens.assemble(trained, tmp_path / "run").problems == []


def test_a_recipe_beside_the_weights_is_noted(trained: Folders, tmp_path: Path) -> None:
    sft = shutil.copytree(trained["sft"], tmp_path / "sft")
    (sft / "mergekit_config.yml").write_text("merge_method: ties\n")
    (note,) = stagelens.assemble({**trained, "sft": sft}, tmp_path / "run").problems
    assert note.startswith("sft was merged from other models (mergekit_config.yml)")
