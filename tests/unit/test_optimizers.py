"""Which optimisers are refused, and that facts make the same optimiser again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from stagelens.contracts import SUPPORTED_OPTIMIZERS, RecordingError, RunError
from stagelens.replaying.optimizers import (
    build_optimizer,
    check_optimizer,
    group_hyperparameters,
    optimizer_facts,
    set_group_hyperparameters,
    update,
    update_in_lists,
)
from stagelens.runs.schema import OptimizerFacts

Parameters = dict[str, nn.Parameter]


@pytest.fixture
def parameters() -> Parameters:
    return {name: nn.Parameter(torch.full((2, 3), 0.5)) for name in ("weight", "bias", "head")}


def names_of(parameters: Parameters) -> dict[int, str]:
    return {id(parameter): name for name, parameter in parameters.items()}


class OwnAdamW(torch.optim.AdamW):
    """A subclass may update otherwise."""


class Accelerated(torch.optim.Optimizer):
    """As accelerate wraps: an optimiser that holds the real one."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


FORMULAS = {name: rule for name, rule in SUPPORTED_OPTIMIZERS.items() if rule.formula}


@pytest.mark.parametrize("name", FORMULAS)
def test_every_optimizer_of_the_table_passes_as_torch_makes_it(
    name: str, parameters: Parameters
) -> None:
    for flags in ({}, {"foreach": True}, {"fused": True}):
        check_optimizer(getattr(torch.optim, name)(parameters.values(), lr=0.1, **flags))


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        (name, {option: True}, f"{name} with {option}=True is not supported; {remedy}")
        for name, rule in FORMULAS.items()
        for option, remedy in rule.refused.items()
    ],
)
def test_every_refused_option_is_named_with_its_remedy(
    name: str, options: dict[str, Any], says: str, parameters: Parameters
) -> None:
    optimizer = getattr(torch.optim, name)(parameters.values(), lr=0.1)
    optimizer.param_groups[0].update(options)
    with pytest.raises(RecordingError) as error:
        check_optimizer(optimizer)
    assert says in str(error.value)


def test_an_option_of_the_second_group_is_refused_too(parameters: Parameters) -> None:
    groups: list[dict[str, Any]] = [
        {"params": [parameters["weight"]]},
        {"params": [parameters["bias"]], "maximize": True},
    ]
    with pytest.raises(RecordingError, match=r"negate the loss instead \(parameter group 1\)"):
        check_optimizer(torch.optim.SGD(groups, lr=0.1))


def test_other_classes_are_refused(parameters: Parameters) -> None:
    for optimizer, says in [
        (torch.optim.LBFGS(parameters.values()), r"torch.optim.LBFGS; use another one of torch"),
        (OwnAdamW(parameters.values()), "OwnAdamW is not a registered .* torch.optim, or register"),
        (None, "NoneType is not a registered optimiser.*use one of torch.optim, or register"),
    ]:
        with pytest.raises(RecordingError, match=says):
            check_optimizer(optimizer)


def test_a_wrapper_is_refused_and_the_inner_optimizer_named(parameters: Parameters) -> None:
    wrapper = Accelerated(torch.optim.AdamW(parameters.values()))
    with pytest.raises(RecordingError, match="wraps the optimiser AdamW; pass the inner one"):
        check_optimizer(wrapper)
    check_optimizer(wrapper.optimizer)


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("SGD", {"lr": torch.tensor(0.1)}, "lr"),
        ("Adam", {"betas": (torch.tensor(0.9), torch.tensor(0.99))}, "betas"),
    ],
)
def test_a_tensor_hyperparameter_is_refused(
    name: str, options: dict[str, Any], key: str, parameters: Parameters
) -> None:
    optimizer = getattr(torch.optim, name)(parameters.values(), lr=0.1)
    optimizer.param_groups[0].update(options)
    with pytest.raises(RecordingError, match=f"tensor as {key}; pass a float"):
        check_optimizer(optimizer)


def test_groups_with_different_flags_are_refused(parameters: Parameters) -> None:
    groups: list[dict[str, Any]] = [
        {"params": [parameters["weight"]]},
        {"params": [parameters["bias"]], "fused": True},
    ]
    with pytest.raises(RecordingError, match="pass fused once"):
        check_optimizer(torch.optim.SGD(groups, lr=0.1))


def test_a_tensor_that_is_no_parameter_of_the_model_is_refused(parameters: Parameters) -> None:
    stray = nn.Parameter(torch.zeros(7))
    optimizer = torch.optim.SGD([*parameters.values(), stray], lr=0.1)
    with pytest.raises(RecordingError, match=r"shape \(7,\) that is not a parameter of the model"):
        optimizer_facts(optimizer, names_of(parameters))


MADE = [
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4, "foreach": True}),
    ("SGD", {"momentum": 0.9, "dampening": 0.1}),
    ("Adam", {"betas": (0.8, 0.95), "eps": 1e-6, "foreach": False}),
    ("AdamW", {"weight_decay": 0.1, "fused": True}),
]


@pytest.mark.parametrize(("name", "options"), MADE, ids=str)
def test_facts_through_json_make_an_optimizer_that_steps_alike(
    name: str, options: dict[str, Any], parameters: Parameters
) -> None:
    groups: list[dict[str, Any]] = [
        {"params": [parameters["weight"]]},
        {"params": [parameters["bias"], parameters["head"]], "lr": 1 / 3, "weight_decay": 0.0},
        {"params": []},
    ]
    optimizer = getattr(torch.optim, name)(groups, lr=0.1, **options)

    facts = optimizer_facts(optimizer, names_of(parameters))
    read = OptimizerFacts.model_validate_json(facts.model_dump_json())
    copies = {n: nn.Parameter(p.detach().clone()) for n, p in parameters.items()}
    built = build_optimizer(read, copies)

    assert read == facts
    assert type(built) is type(optimizer)
    assert optimizer_facts(built, names_of(copies)) == facts
    rule = SUPPORTED_OPTIMIZERS[name]
    for mine, theirs in zip(built.param_groups, optimizer.param_groups, strict=True):
        for key in (*(rule.hyperparameters or ()), *rule.flags):
            assert mine[key] == theirs[key]
            assert isinstance(mine[key], tuple) == isinstance(theirs[key], tuple)
    for _ in range(3):
        for p, q in zip(parameters.values(), copies.values(), strict=True):
            p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
        optimizer.step()
        built.step()
    assert all(torch.equal(parameters[n], copies[n]) for n in parameters)


def test_a_parameter_that_the_model_lacks_is_named(parameters: Parameters) -> None:
    facts = optimizer_facts(torch.optim.SGD(parameters.values(), lr=0.1), names_of(parameters))
    del parameters["head"]
    with pytest.raises(RunError, match="trains head, which the model"):
        build_optimizer(facts, parameters)


def test_hyperparameters_are_plain_and_can_be_set_again(parameters: Parameters) -> None:
    groups: list[dict[str, Any]] = [
        {"params": [parameters["weight"]]},
        {"params": [parameters["bias"]], "lr": 0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.1)

    values = group_hyperparameters(optimizer)

    assert values[0] == {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
    assert type(values[1]["lr"]) is float

    from_json: list[dict[str, Any]] = [{**v, "betas": [0.5, 0.6], "lr": 0.7} for v in values]
    set_group_hyperparameters(optimizer, from_json)
    assert [g["betas"] for g in optimizer.param_groups] == [(0.5, 0.6)] * 2
    assert [g["lr"] for g in optimizer.param_groups] == [0.7, 0.7]

    with pytest.raises(ValueError, match="shorter"):
        set_group_hyperparameters(optimizer, from_json[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"weight_decay": 0.1}),
        ("SGD", {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
        ("SGD", {"momentum": 0.9, "nesterov": True, "foreach": False}),
        ("Adam", {"betas": (0.8, 0.95), "weight_decay": 0.1}),
        ("AdamW", {"eps": 1e-3, "weight_decay": 0.1}),
    ],
)
def test_lists_are_updated_as_their_members_are_to_the_last_bit(
    name: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    ended, lists = [], []
    for in_lists in (False, True):
        generator = torch.Generator().manual_seed(0)
        shapes = ((40, 30), (17,), (), (3, 5, 7))
        own = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
        groups = [{"params": own[:2]}, {"params": own[2:], "lr": 0.03}]
        optimizer = getattr(torch.optim, name)(groups, lr=0.1, **options)
        if in_lists:
            update_in_lists(optimizer)
        lists.append([group["foreach"] for group in optimizer.param_groups])
        for step in range(6):
            for number, parameter in enumerate(own):
                gradient = torch.randn(parameter.shape, generator=generator).to(dtype)
                # One that begins late, as a counterfactual's may.
                parameter.grad = None if number == 1 and step < 2 else gradient
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            update(optimizer)
        ended.append([*own, *(v for state in optimizer.state.values() for v in state.values())])
    assert lists == [[options.get("foreach")] * 2, [True] * 2]
    for one, other in zip(*ended, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_only_a_small_model_in_float32_or_float64_is_updated_in_lists() -> None:
    large, small = nn.Parameter(torch.zeros(1_000_001)), nn.Parameter(torch.zeros(3))
    half = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    for parameters, flags in (
        ([large, small], {}),
        ([small], {"fused": True}),
        ([small, half], {}),
    ):
        optimizer = torch.optim.AdamW(parameters, lr=0.1, **flags)
        before = [group["foreach"] for group in optimizer.param_groups]
        update_in_lists(optimizer)
        assert [group["foreach"] for group in optimizer.param_groups] == before
