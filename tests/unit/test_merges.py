"""Weights of a merge are recovered by least squares, and what is no merge is not called one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stagelens.contracts import RunError
from stagelens.runs.merge_words import is_average, merge_words
from stagelens.runs.merges import fit

Weights = dict[str, Tensor]


def parents(count: int, apart: float = 0.01, dtype: torch.dtype = torch.float32) -> list[Weights]:
    """Models that were trained from one base: their values differ by about ``apart``."""
    generator = torch.Generator().manual_seed(7)
    shapes = {"body.weight": (400, 300), "head.weight": (64, 300), "head.bias": (64,)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return [
        {
            name: (tensor + apart * torch.randn(tensor.shape, generator=generator)).to(dtype)
            for name, tensor in base.items()
        }
        for _ in range(count)
    ]


def combined(models: list[Weights], weights: list[float], dtype: torch.dtype) -> Weights:
    return {
        name: sum(w * m[name].double() for w, m in zip(weights, models, strict=True)).to(dtype)
        for name in models[0]
    }


def recovered(merged: Weights, models: list[Weights]) -> tuple[list[float], bool]:
    found = fit(merged, {f"p{number}": each for number, each in enumerate(models)})
    return list(found.weights.values()), found.exact


@pytest.mark.parametrize(
    "weights", [[0.6, 0.4], [0.2, 0.3, 0.5], [1.3, -0.3], [1.0, 0.7, -0.4], [0.5, 0.4]]
)
def test_weights_are_recovered(weights: list[float]) -> None:
    models = parents(len(weights))
    found, exact = recovered(combined(models, weights, torch.float32), models)
    assert found == pytest.approx(weights, abs=1e-5)
    assert exact


@pytest.mark.parametrize("weights", [[0.6, 0.4], [0.2, 0.3, 0.5]])
def test_weights_are_recovered_from_storage_in_half_precision(weights: list[float]) -> None:
    # Far apart, as the noise of rounding then leaves the fifth decimal.
    models = parents(len(weights), apart=10.0, dtype=torch.bfloat16)
    merged = combined(models, weights, torch.bfloat16)
    found, exact = recovered(merged, models)
    assert found == pytest.approx(weights, abs=1e-5)
    assert exact


def test_a_sum_that_is_rounded_after_each_step_is_still_one() -> None:
    models = parents(3, apart=0.3, dtype=torch.bfloat16)
    third = torch.tensor(1 / 3, dtype=torch.bfloat16)
    merged = {n: models[0][n] * third + models[1][n] * third + models[2][n] * third
              for n in models[0]}  # fmt: skip
    found, exact = recovered(merged, models)
    assert found == pytest.approx([1 / 3] * 3, abs=2e-3)
    assert exact


def test_what_was_trained_afterwards_is_none() -> None:
    models = parents(2)
    merged = combined(models, [0.5, 0.5], torch.float32)
    generator = torch.Generator().manual_seed(1)
    for tensor in merged.values():
        tensor += 1e-5 * torch.randn(tensor.shape, generator=generator)
    merge = fit(merged, {"a": models[0], "b": models[1]})
    assert not merge.exact
    assert list(merge.weights.values()) == pytest.approx([0.5, 0.5], abs=1e-3)
    assert merge.residual == pytest.approx(1e-5 / (0.01 * 0.5 * 2**0.5), rel=0.05)
    assert "not a weighted average of its parents" in merge_words("soup", merge)


def test_another_model_is_none() -> None:
    first, second, third = parents(3)
    merge = fit(third, {"a": first, "b": second})
    assert not merge.exact and merge.residual > 0.5


def test_it_is_said_whether_the_weights_are_those_of_an_average() -> None:
    models = parents(2)
    said = {}
    for name, weights in {"soup": [0.75, 0.25], "sum": [1.2, -0.3]}.items():
        merged = combined(models, weights, torch.float32)
        merge = fit(merged, {"a": models[0], "b": models[1]})
        said[name] = is_average(merge), merge_words(name, merge)
    assert (
        said["soup"][0]
        and "a weighted average of its parents: 0.750 a + 0.250 b" in said["soup"][1]
    )
    assert not said["sum"][0]
    assert "no average (task arithmetic): 1.200 a − 0.300 b" in said["sum"][1]
    assert "add up to 0.900" in said["sum"][1]


def test_parents_that_are_alike_share_what_they_gave() -> None:
    (model,) = parents(1)
    merge = fit(model, {"a": model, "b": dict(model)})
    assert merge.exact and merge.residual == 0
    assert sum(merge.weights.values()) == pytest.approx(1, abs=1e-9)


def test_running_statistics_and_counts_take_no_part() -> None:
    plain = parents(2)
    merged = combined(plain, [0.5, 0.5], torch.float32)
    merged |= {"norm.running_var": torch.full((5,), 9.0), "norm.seen": torch.tensor(9)}
    others = {"norm.running_var": torch.rand(5), "norm.seen": torch.tensor(1)}
    assert recovered(merged, [{**each, **others} for each in plain])[1]


def test_a_parent_of_another_shape_is_refused_by_name() -> None:
    first, second = parents(2)
    second["head.bias"] = torch.zeros(3)
    with pytest.raises(RunError, match=r"head\.bias .* parent 'b'"):
        fit(first, {"a": first, "b": second})
