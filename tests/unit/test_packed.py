"""Packed whole numbers of batches: what comes back is what was recorded, in few bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import stagelens
from stagelens.contracts import RunError
from stagelens.runs import packed
from stagelens.runs.files import reference_of
from stagelens.runs.packed import KEY, PackedStacks, pack
from tests.support.loops import train
from tests.support.small_texts import language

TOKENS, SHAPE, ROWS = "int64 8x512", (8, 512), 40


def named(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stacks by place, with dtype and shape in their names as a part has them."""
    return {
        f"{place} {str(stack.dtype).removeprefix('torch.')} "
        f"{'x'.join(map(str, stack.shape[1:]))}".rstrip(): stack
        for place, stack in values.items()
    }


def packed_and_back(
    stacks: Mapping[str, Tensor], steps: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Tensor]:
    """The file's tensors, after every row was found to be what it was."""
    steps = steps or {name: range(len(stack)) for name, stack in stacks.items()}
    kept, metadata = pack(stacks, steps)
    found = PackedStacks(metadata, kept.__getitem__)
    for name, stack in stacks.items():
        for number in reversed(range(len(stack))):
            row = found.row(name, number) if name in found else kept[name][number]
            assert row.dtype == stack.dtype and row.shape == stack.shape[1:]
            assert torch.equal(row, stack[number])
    return kept


def tokens(vocabulary: int, seed: int = 0) -> Tensor:
    """Ids as frequent as words are: the k-th one 1/k times as often as the first."""
    share = 1 / np.arange(1, vocabulary + 1)
    drawn = np.random.default_rng(seed).choice(
        vocabulary, size=(ROWS, *SHAPE), p=share / share.sum()
    )
    return torch.from_numpy(drawn)


@pytest.mark.parametrize("vocabulary", [32_000, 50_257, 128_256])
def test_a_token_takes_two_bytes_where_it_took_24(vocabulary: int) -> None:
    ids = tokens(vocabulary)
    mask = torch.ones_like(ids)
    mask[:, 2, 400:] = 0
    labels = torch.where(mask == 1, ids, -100)
    labels[:, :, :100] = -100
    stacks = named({"0.0": ids, "0.1": mask, "0.2": labels})
    assert sum(stack.nbytes for stack in stacks.values()) == 24 * ids.numel()
    kept = packed_and_back(stacks)
    assert sum(tensor.nbytes for tensor in kept.values()) < 2 * ids.numel()
    # Without the compressor's luck, too: ids that are all as frequent as each other.
    even = torch.randint(vocabulary, ids.shape, generator=torch.Generator().manual_seed(0))
    stacks = named({"0.0": even, "0.1": mask, "0.2": torch.where(mask == 1, even, -100)})
    kept = packed_and_back(stacks)
    assert sum(tensor.nbytes for tensor in kept.values()) < 4 * even.numel()


@pytest.mark.parametrize(
    "other",
    [
        lambda ids: ids.clone(),
        lambda ids: torch.full_like(ids, -100),
        lambda ids: torch.where(ids > 5, ids, 7),
        lambda ids: torch.where(ids > 5, ids, -(2**40)),
        lambda ids: ids.roll(1, dims=-1),
        lambda ids: torch.arange(ids.shape[-1]).expand_as(ids).contiguous(),
    ],
    ids=["equal", "nothing left", "a mark that occurs", "far below", "shifted", "positions"],
)
def test_what_stands_beside_the_ids_comes_back(other) -> None:
    ids = tokens(100)
    kept = packed_and_back(named({"0.0": ids, "0.1": other(ids)}))
    assert sum(tensor.nbytes for tensor in kept.values()) < 0.3 * 2 * ids.nbytes


def test_stacks_of_other_steps_or_micro_batches_are_not_taken_for_the_same() -> None:
    ids = tokens(100)
    stacks = named({"0.0": ids, "0.1": ids.clone(), "1.0": ids.clone()})
    first, second, third = stacks
    steps = {first: range(ROWS), second: range(1, ROWS + 1), third: range(ROWS)}
    _, metadata = pack(stacks, steps)
    assert '"masked"' not in metadata[KEY]
    packed_and_back(stacks, steps)


@given(
    dtype=st.sampled_from([torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool]),
    shape=st.sampled_from([(), (1,), (3, 5), (0,), (2, 1, 2)]),
    rows=st.integers(1, 4),
    span=st.sampled_from([1, 2, 250, 70_000, 2**31, 2**63 - 1]),
    seed=st.integers(0, 2**20),
)
def test_any_whole_numbers_come_back(
    dtype: torch.dtype, shape: tuple[int, ...], rows: int, span: int, seed: int
) -> None:
    drawn = np.random.default_rng(seed).integers(-span, span, size=(3, rows, *shape))
    stacks = named({f"0.{k}": torch.from_numpy(each).to(dtype) for k, each in enumerate(drawn)})
    mark = torch.from_numpy(drawn[0] % 2 == 0)
    (name, stack), *_ = stacks.items()
    stacks[name.replace("0.0", "0.9", 1)] = torch.where(mark, stack, stack.flatten()[:1].sum())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "_SMALLEST", 1)
        packed_and_back({key: value.to(dtype) for key, value in stacks.items()})


def test_floating_point_small_stacks_and_random_states_stay_as_they_lie() -> None:
    stacks = named(
        {
            "0.0": torch.zeros(ROWS, *SHAPE),
            "0.1": torch.zeros(4, 3, dtype=torch.int64),
            "0.cpu": torch.zeros(ROWS, 5056, dtype=torch.uint8),
        }
    )
    kept, metadata = pack(stacks, {name: range(len(stack)) for name, stack in stacks.items()})
    assert kept == stacks and not metadata


def recorded(path: Path) -> stagelens.Run:
    """A language model whose batches are long enough to be packed."""
    task, model = language()
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(12):
        ids = torch.randint(1, 300, (8, 40), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 30:] = 0
        labels = torch.where(mask == 1, ids, -100)
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    torch.manual_seed(0)
    with closing(stagelens.Recorder(path, task, name="packed")) as recorder:
        for name in ("first", "second"):
            optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
            with recorder.stage(name, model=model, optimizer=optimizer) as stage:
                train(task, model, optimizer, batches, stage=stage)
        recorder.add_set("test", texts=["the cat sat", "a dog barked"])
    run = stagelens.open_run(path)
    for stage in run.stages:
        for step, batch in zip(stage.read_steps(), batches, strict=True):
            assert step.batches is not None
            torch.testing.assert_close(step.batches[0].batch, batch, rtol=0, atol=0)
    return run


def test_a_recording_with_packed_batches_is_replayed_bit_for_bit(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run")
    file = next((tmp_path / "run").rglob("batches-*"))
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata()[KEY].count('"kind"') == 3
    held = sum(tensor.nbytes for name, tensor in load_file(file).items() if "cpu" not in name)
    # Ids that are drawn evenly from 300 need 8.2 bits each.
    assert held < 1.6 * 12 * 8 * 40
    found = stagelens.attribute(run, "test", "replay")
    assert {one.trust for one in found.trust.values()} == {"exact"}


@pytest.mark.parametrize("damage", ["another kind", "cut", "no such stack"])
def test_what_was_never_written_is_told_with_its_file(damage: str, tmp_path: Path) -> None:
    run = recorded(tmp_path / "run")
    stage = run.stages[0]
    reference = stage.facts.parts[0].batches
    assert reference is not None
    path = tmp_path / "run" / reference.path
    tensors = load_file(path)
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    if damage == "another kind":
        metadata[KEY] = metadata[KEY].replace("narrow", "wide")
    elif damage == "no such stack":
        metadata[KEY] = metadata[KEY].replace('"of": "0.0', '"of": "0.7')
    else:
        name = next(name for name in tensors if name.endswith(" ends"))
        tensors[name] = tensors[name] - 1
    save_file(tensors, path, metadata)
    # The digest would tell first; a recording that was killed has none yet.
    known = reference_of(path, reference.path)
    part = stage.facts.parts[0].model_copy(update={"batches": known})
    stage.facts.parts[0] = part
    with pytest.raises(RunError, match="does not hold steps as StageLens records them"):
        list(stage.read_steps())
