"""Folders of sharded trainings are made whole, and nothing that is pickled in them runs."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

import stagelens
from stagelens.contracts import RunError
from stagelens.runs.run import Run
from tests.support.checkpoints import changed, save
from tests.support.fsdp_folders import save_sharded
from tests.support.small_texts import gpt, gpt_tokenizer

pytestmark = pytest.mark.slow  # its processes begin by importing torch
CAUSAL = transformers.AutoModelForCausalLM


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as it was saved whole, and sharded over two processes in a Trainer's folder."""
    root = tmp_path_factory.mktemp("sharded")
    tokenizer = gpt_tokenizer()
    save(gpt(tokenizer), root / "base", tokenizer)
    model = changed(CAUSAL.from_pretrained(root / "base"), 1)
    save(model, root / "whole")
    save_sharded(model.state_dict(), root / "out" / "checkpoint-4")
    (root / "out" / "checkpoint-4" / "trainer_state.json").write_text('{"global_step": 4}')
    return root


@pytest.fixture
def folders(trained: Path, tmp_path: Path) -> dict[str, Path]:
    copy = Path(shutil.copytree(trained, tmp_path / "models"))
    return {"base": copy / "base", "sft": copy / "out" / "checkpoint-4"}


def check_end(run: Run, whole: Path) -> None:
    state = run.last.end().model
    for name, tensor in CAUSAL.from_pretrained(whole).named_parameters():
        assert torch.equal(state[name], tensor), name


def beside(folder: Path, base: Path) -> Path:
    """A Trainer's folder that has the model's configuration and tokenizer too."""
    for file in base.iterdir():
        if file.name != "model.safetensors":
            shutil.copy(file, folder / file.name)
    return folder


PLACES: list[tuple[str, Callable[[dict[str, Path]], Path], list[str]]] = [
    ("with its configuration", lambda f: beside(f["sft"], f["base"]), []),
    ("its Trainer's folder", lambda f: beside(f["sft"].parent, f["base"]), []),
    ("within one that has it", lambda f: beside(f["sft"].parent, f["base"]) / f["sft"].name, []),
    (
        "the parts alone",
        lambda f: f["sft"] / "pytorch_model_fsdp_0",
        ["sft: without config.json, so that of base is taken"],
    ),
]


@pytest.mark.parametrize(("place", "notes"), [p[1:] for p in PLACES], ids=[p[0] for p in PLACES])
def test_the_parts_of_fsdp_are_put_together_bit_for_bit(
    place: Callable[[dict[str, Path]], Path],
    notes: list[str],
    folders: dict[str, Path],
    trained: Path,
    tmp_path: Path,
) -> None:
    run = stagelens.assemble({"base": folders["base"], "sft": place(folders)}, tmp_path / "run")
    check_end(run, trained / "whole")
    assert run.problems == [*notes, "sft: put together from the parts of a sharded training"]
    assert run.last.updates == 4
    assert not list(tmp_path.glob(".*"))


def test_a_first_stage_without_a_configuration_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=r"sft: .* has no config.json, as a sharded training saves"):
        stagelens.assemble({"sft": folders["sft"], "dpo": folders["base"]}, tmp_path / "run")


class Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def rewritten(folder: Path, change: Callable[[Metadata], object]) -> None:
    path = folder / ".metadata"
    index = pickle.loads(path.read_bytes())
    change(index)
    path.write_bytes(pickle.dumps(index))


def cut(folder: Path) -> None:
    file = folder / "__1_0.distcp"
    file.write_bytes(file.read_bytes()[:-9])


def lose_a_part(index: Metadata) -> None:
    stored = next(iter(index.state_dict_metadata.values()))
    assert isinstance(stored, TensorStorageMetadata)
    stored.chunks.pop()


def point_elsewhere(index: Metadata) -> None:
    next(iter(index.storage_data.values())).relative_path = "../../../etc/hostname.distcp"


def name_two_models(index: Metadata) -> None:
    assert index.planner_data is not None
    key = next(iter(index.planner_data))
    index.planner_data[key] = ("model", "critic", "weight")


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (
        lambda f: rewritten(f, lambda index: setattr(index, "version", Code(f / "was-run"))),
        r"names \w+\.mkdir, which torch never writes into one and which may run code",
    ),
    (
        lambda f: (f / ".metadata").write_bytes(pickle.dumps(print)),
        r"names builtins.print, which torch never writes into one and which may run code",
    ),
    (
        lambda f: (f / ".metadata").write_bytes(pickle.dumps({"a": 1})),
        "no index of a distributed checkpoint .*holds something else",
    ),
    (lambda f: (f / ".metadata").write_bytes(b"\x80\x04"), "no index of a distributed checkpoint"),
    (lambda f: rewritten(f, lose_a_part), "do not make it whole"),
    (lambda f: rewritten(f, point_elsewhere), "is not the name of a part beside it"),
    (lambda f: rewritten(f, name_two_models), r"holds model\.critic, model, not one model"),
    (cut, "__1_0.distcp is cut short"),
    (lambda f: (f / "__1_0.distcp").write_bytes(bytes(10**6)), "cannot be read"),
    (lambda f: (f / "__1_0.distcp").unlink(), "__1_0.distcp"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGES, ids=[says[:30] for _, says in DAMAGES])
def test_what_is_no_sound_checkpoint_is_refused_and_runs_nothing(
    damage: Callable[[Path], object], says: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    parts = folders["sft"] / "pytorch_model_fsdp_0"
    damage(parts)
    with pytest.raises(RunError, match=says) as error:
        stagelens.assemble(folders, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (parts / "was-run").exists() and not (tmp_path / "run").exists()


def zero(folder: Path) -> Path:
    """Turn a Trainer's folder into one that DeepSpeed wrote."""
    shutil.rmtree(folder / "pytorch_model_fsdp_0")
    (folder / "global_step4").mkdir()
    for kind in ("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt"):
        torch.save({"a": torch.zeros(2)}, folder / "global_step4" / kind)
    (folder / "latest").write_text("global_step4")
    (folder / "zero_to_fp32.py").write_text("raise SystemExit")
    return folder


def test_a_folder_of_deepspeed_names_the_one_command_that_puts_it_together(
    folders: dict[str, Path], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = zero(folders["sft"])
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    for allow in (False, True):
        with pytest.raises(RunError) as error:
            stagelens.assemble(folders, tmp_path / "run", allow_bin=allow)
        assert str(error.value) == (
            f"sft: {folder} holds a checkpoint of DeepSpeed, in pickles; where DeepSpeed is "
            f"installed, run python {folder}/zero_to_fp32.py {folder} {folder}, then give this "
            "folder again, and allow to open pickles without their code (--allow-bin)"
        )
    # What that command writes:
    torch.save(load_file(trained / "whole" / "model.safetensors"), folder / "pytorch_model.bin")
    shutil.copy(trained / "whole" / "config.json", folder)
    run = stagelens.assemble(folders, tmp_path / "run", allow_bin=True)
    check_end(run, trained / "whole")


@pytest.fixture
def deepspeed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What DeepSpeed offers for its folders, in place of DeepSpeed itself."""
    module = ModuleType("deepspeed.utils.zero_to_fp32")
    package = ModuleType("deepspeed")
    package.__spec__ = SimpleNamespace(name="deepspeed")  # type: ignore[assignment]
    for name, each in (
        ("", package),
        (".utils", ModuleType("utils")),
        (".utils.zero_to_fp32", module),
    ):
        monkeypatch.setitem(sys.modules, f"deepspeed{name}", each)
    return module


def test_deepspeed_itself_puts_its_folders_together_where_it_is_installed(
    folders: dict[str, Path], trained: Path, tmp_path: Path, deepspeed: ModuleType
) -> None:
    zero(folders["sft"])

    def read(folder: str, lazy_mode: bool) -> dict[str, torch.Tensor]:
        print("Processing zero checkpoint")
        for file in sorted(Path(folder).rglob("*.pt")):
            torch.load(file, weights_only=False)
        assert lazy_mode
        return load_file(trained / "whole" / "model.safetensors")

    deepspeed.get_fp32_state_dict_from_zero_checkpoint = read  # type: ignore[attr-defined]
    with pytest.raises(
        RunError, match=r"in pickles; give this folder again, and allow .*\(--allow-bin\)"
    ):
        stagelens.assemble(folders, tmp_path / "run")
    run = stagelens.assemble(folders, tmp_path / "run", allow_bin=True)
    check_end(run, trained / "whole")
    assert (
        "sft: put together by DeepSpeed, in the float32 that it was trained in" in run.problems[1]
    )
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_code_in_deepspeed_pickles_never_runs(
    folders: dict[str, Path], tmp_path: Path, deepspeed: ModuleType
) -> None:
    folder = zero(folders["sft"])
    file = folder / "global_step4" / "mp_rank_00_model_states.pt"
    torch.save({"module": Code(tmp_path / "was-run")}, file)

    deepspeed.get_fp32_state_dict_from_zero_checkpoint = (  # type: ignore[attr-defined]
        lambda folder, lazy_mode: torch.load(file, weights_only=False)
    )
    with pytest.raises(RunError, match=r"sft: DeepSpeed cannot put .* together .*[Ww]eights.only"):
        stagelens.assemble(folders, tmp_path / "run", allow_bin=True)
    assert not (tmp_path / "was-run").exists()
