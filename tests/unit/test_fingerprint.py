"""Fingerprints tell whether weights were changed, although they mostly look at a few of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from stagelens.recording.fingerprint import SampledFingerprint

HIDDEN = 5
"""A value of the first weight that is neither at an end nor an extreme."""


def network() -> nn.Module:
    """Weights between -1 and 1, the extremes of the first one away from its ends."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        first = model[0].weight.view(-1)
        first.uniform_(-0.5, 0.5)
        first[2], first[3] = -1.0, 1.0
    return model


def update(model: nn.Module) -> None:
    """An optimiser's update: everything moves."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.999)


def watched(model: nn.Module, updates: int) -> SampledFingerprint:
    """As it is behind so many updates that nothing disturbed."""
    fingerprint = SampledFingerprint(model)
    fingerprint.take()
    for _ in range(updates):
        assert fingerprint.changed() is None
        update(model)
        fingerprint.take()
    return fingerprint


def average(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(0.99)


def clamp(model: nn.Module) -> None:
    model[0].weight.data.clamp_(-0.9, 0.9)  # type: ignore[index, union-attr, operator]


def load(model: nn.Module) -> None:
    model.load_state_dict({name: 0.5 * own for name, own in model.state_dict().items()})


def draw_anew(model: nn.Module) -> None:
    nn.init.normal_(model[0].weight)  # type: ignore[index, arg-type]


def replace(model: nn.Module) -> None:
    model[0].weight.data = model[0].weight.data + 1e-6  # type: ignore[index]


@pytest.mark.parametrize("updates", range(1, 5))
@pytest.mark.parametrize("change", [average, clamp, load, draw_anew, replace])
def test_weights_that_are_changed_as_a_whole_are_seen_at_once(
    change: Callable[[nn.Module], None], updates: int
) -> None:
    model = network()
    fingerprint = watched(model, updates)
    change(model)
    assert fingerprint.changed() == "0.weight"


def hide(model: nn.Module) -> None:
    """Changes one value, where torch does not count it."""
    model[0].weight.data.view(-1)[HIDDEN] += 1e-3  # type: ignore[index, union-attr, operator]


@torch.no_grad()
def edit(model: nn.Module) -> None:
    """Changes one value, where torch counts it."""
    model[0].weight.view(-1)[HIDDEN] += 1e-3  # type: ignore[index, operator]


@pytest.mark.parametrize(("change", "times"), [(edit, 2), (hide, 16)])
def test_a_change_of_one_hidden_value_is_seen_when_it_comes_again(
    change: Callable[[nn.Module], None], times: int
) -> None:
    model = network()
    fingerprint = watched(model, 1)
    seen = []
    for _ in range(times):
        change(model)
        seen.append(fingerprint.changed())
        update(model)
        fingerprint.take()
    assert seen == [None] * (times - 1) + ["0.weight"]


def swap_values(model: nn.Module, others: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter, other in zip(model.parameters(), others, strict=True):
            parameter.copy_(other)


def swap_data(model: nn.Module, others: list[torch.Tensor]) -> None:
    for parameter, other in zip(model.parameters(), others, strict=True):
        parameter.data = other.clone()


@pytest.mark.parametrize("swap", [swap_values, swap_data])
def test_weights_may_be_swapped_for_an_evaluation_and_back(
    swap: Callable[[nn.Module, list[torch.Tensor]], None],
) -> None:
    model = network()
    fingerprint = watched(model, 1)
    for _ in range(20):
        own = [parameter.detach().clone() for parameter in model.parameters()]
        swap(model, [torch.zeros_like(parameter) for parameter in own])
        swap(model, own)
        assert fingerprint.changed() is None
        update(model)
        fingerprint.take()
    edit(model)
    assert fingerprint.changed() == "0.weight"  # such loops are looked at closely


def test_weights_in_another_order_of_memory_are_all_compared() -> None:
    model = network().to(memory_format=torch.channels_last)
    fingerprint = watched(model, 1)
    model[0].weight.data[1, 1, 1, 0] += 1e-3  # type: ignore[index, union-attr]
    assert fingerprint.changed() == "0.weight"


def test_weights_that_are_no_numbers_are_as_they_were() -> None:
    model = network()
    with torch.no_grad():
        model[2].bias.fill_(float("nan"))  # type: ignore[index, union-attr, operator]
    fingerprint = watched(model, 3)
    assert fingerprint.changed() is None


def test_a_write_that_torch_counts_is_seen_at_once_however_late() -> None:
    for updates in range(100, 104):
        model = network()
        fingerprint = watched(model, updates)
        load(model)
        assert fingerprint.changed() is not None


def test_a_change_that_torch_does_not_count_is_seen_late_when_it_comes_again() -> None:
    model = network()
    fingerprint = watched(model, 100)
    seen = []
    for _ in range(4):
        average(model)
        seen.append(fingerprint.changed())
        update(model)
        fingerprint.take()
    assert any(seen)
