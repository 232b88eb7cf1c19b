"""Ids on the Hugging Face hub: read from a cache made here, and what is missing is told."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import peft
import pytest
import torch
import transformers
from huggingface_hub import constants, errors

import stagelens
from stagelens.assembling.hub import HubId, hub_id
from stagelens.contracts import RunError
from tests.support.checkpoints import changed, save
from tests.support.small_texts import gpt, gpt_tokenizer

CAUSAL = transformers.AutoModelForCausalLM


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return folder


def cached(cache: Path, identity: str, model: Any, **options: Any) -> Path:
    """A revision as the hub's client keeps it: blobs, a snapshot of links, and a branch."""
    wanted = hub_id(identity)
    assert wanted is not None
    root = cache / f"models--{wanted.repository.replace('/', '--')}"
    commit = hashlib.sha1(identity.encode()).hexdigest()
    plain = save(model, root / "plain", gpt_tokenizer(), **options)
    snapshot = root / "snapshots" / commit
    for folder in (snapshot, root / "blobs", root / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    for file in plain.iterdir():
        blob = root / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(blob)
    shutil.rmtree(plain)
    (root / "refs" / wanted.revision).write_text(commit)
    return snapshot


def test_revisions_in_the_cache_are_stages(cache: Path, tmp_path: Path) -> None:
    cached(cache, "lab/tiny@step0", gpt(gpt_tokenizer()))
    last = cached(cache, "lab/tiny@step1000", changed(gpt(gpt_tokenizer()), 1))
    run = stagelens.assemble({"base": "lab/tiny@step0", "later": "hf://lab/tiny@step1000"}, "run")
    state = run.last.end().model
    for name, parameter in CAUSAL.from_pretrained(last).named_parameters():
        assert torch.equal(state[name], parameter), name
    said = run.last.facts.description
    assert f"lab/tiny@step1000, commit {last.name[:12]}" in said
    assert "from base (lab/tiny@step0, commit " in said
    assert run.problems == []


def test_an_adapter_lies_on_the_hub_id_that_it_names(cache: Path, tmp_path: Path) -> None:
    cached(cache, "lab/tiny@main", gpt(gpt_tokenizer()))
    config = peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(gpt(gpt_tokenizer()), config)
    adapted.peft_config["default"].base_model_name_or_path = "lab/tiny"
    cached(cache, "lab/tiny-lora@main", adapted)
    run = stagelens.assemble({"base": "lab/tiny", "sft": "lab/tiny-lora"}, "run")
    assert run.problems == [
        "sft: an adapter (LORA) on base, merged into it in float32",
        "sft changed nothing: its weights are exactly those of base",
    ]


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("EleutherAI/pythia-70m@step1000", HubId("EleutherAI/pythia-70m", "step1000")),
        ("hf://gpt2", HubId("gpt2", "main")),
        ("gpt2@e7da7f2", HubId("gpt2", "e7da7f2")),
        ("lab/model", HubId("lab/model", "main")),
        ("lab/model@refs/pr/3", HubId("lab/model", "refs/pr/3")),
        ("out/sft", None),  # a folder that is missing, beside others
        ("gpt2", None),
        ("/models/sft", None),
        ("../sft", None),
        ("s3://bucket/sft", None),
    ],
)
def test_what_is_an_id_and_what_a_folder(
    address: str, wanted: HubId | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    assert hub_id(address) == wanted


def test_without_a_network_it_says_what_is_missing(cache: Path) -> None:
    cached(cache, "lab/tiny@step0", gpt(gpt_tokenizer()))
    says = (
        r"later: lab/tiny is no folder here, its revision 'step7' is not in the hub's cache .* "
        r"HF_HUB_OFFLINE is set; .* hf download lab/tiny --revision step7"
    )
    with pytest.raises(RunError, match=says):
        stagelens.assemble({"base": "lab/tiny@step0", "later": "lab/tiny@step7"}, "run")


def test_pickles_are_asked_for(cache: Path) -> None:
    snapshot = cached(cache, "lab/tiny@step0", gpt(gpt_tokenizer()))
    torch.save({}, snapshot / "pytorch_model.bin")
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"lab/tiny@step0 holds no weights .*\(--allow-bin\)"):
        stagelens.assemble({"base": "lab/tiny@step0", "later": "lab/tiny@step0"}, "run")


REFUSED = [
    (errors.GatedRepoError, "is gated: accept its terms on https://huggingface.co/lab/tiny, then"),
    (errors.RepositoryNotFoundError, "neither a folder here nor a repository on the hub; check"),
    (errors.RevisionNotFoundError, "has no revision 'step9'; its branches and tags are listed on"),
    (errors.LocalEntryNotFoundError, "and the hub is out of reach; download it where there is"),
    (errors.HfHubHTTPError, "at 'step9' cannot be fetched (a reason of two lines)"),
]


@pytest.mark.parametrize(("kind", "says"), REFUSED, ids=[kind.__name__ for kind, _ in REFUSED])
def test_what_the_hub_refuses_is_told_in_words(
    kind: type[Exception],
    says: str,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = kind.__new__(kind, "a reason\nof two lines")
    Exception.__init__(error, "a reason\nof two lines")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Mock(side_effect=error))
    with pytest.raises(RunError) as told:
        stagelens.assemble({"base": "lab/tiny@step9", "later": "lab/tiny"}, "run")
    assert str(told.value).startswith("base: lab/tiny")
    assert says in str(told.value)
    assert not Path("run").exists()
