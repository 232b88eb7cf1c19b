"""Which code it was: the same in every process, another wherever the code computes otherwise."""

from __future__ import annotations

import copy
import functools
import os
import re
import subprocess
import sys
from argparse import Namespace
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from stagelens.runs.code_identity import code_identity, is_own_code
from tests.support.own_objectives import Preferred, focal

SOURCE = """
from __future__ import annotations
import functools
import helpers
from torch.nn import functional as F

WEIGHT = 2.0
NAMES = {"b": 1, "a": 2}

def scaled(value):  # a comment
    return 3 * value

class Base:
    def shared(self):
        return 4

class Callable(Base):
    factor = 1.5

    def __init__(self, power=2):
        self.power = power

    def __call__(self, model, batch):
        return self.factor * self.shared() ** self.power

@functools.lru_cache
def cached(value):
    return value - 7

def made(power):
    def inner(model, batch, ending=5):
        "What it is."
        whole = WEIGHT * scaled(F.relu(model)) ** power
        return whole + len(NAMES) + helpers.inner.more(batch) + cached(1)
    return inner

loss = made(2)
called = Callable()
"""


def loaded(source: str = SOURCE, helper: str = "def more(batch): return 6") -> dict[str, Any]:
    """The module of a user, freshly run, with another module of theirs beside it."""
    helpers, inner = ModuleType("helpers"), ModuleType("helpers.inner")
    helpers.__file__ = inner.__file__ = "/home/somebody/helpers.py"
    exec(compile(helper, helpers.__file__, "exec"), inner.__dict__)
    helpers.inner = inner  # type: ignore[attr-defined]
    inner.outer = helpers  # type: ignore[attr-defined]
    inner.unused = object()  # type: ignore[attr-defined]
    space = {"__name__": "losses", "__builtins__": __builtins__}
    before = sys.modules.get("helpers")
    sys.modules["helpers"] = helpers
    try:
        exec(compile(source, "/home/somebody/losses.py", "exec"), space)
    finally:
        del sys.modules["helpers"]
        if before is not None:
            sys.modules["helpers"] = before
    return space


def identities(**how: str) -> tuple[str, str]:
    space = loaded(**how)
    return code_identity(space["loss"]), code_identity(space["called"])


def test_the_same_code_has_the_same_identity_wherever_it_stands() -> None:
    moved = "\n\n# moved down\n" + SOURCE.replace("  # a comment", "")
    assert identities(source=moved) == identities()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("WEIGHT = 2.0", "WEIGHT = 2.5"),
        ('"b": 1', '"c": 1'),
        ("3 * value", "3 + value"),
        ("F.relu", "F.gelu"),
        ("value - 7", "value - 8"),
        ("made(2)", "made(3)"),
        ("ending=5", "ending=6"),
    ],
)
def test_a_function_is_another_where_what_it_refers_to_is(before: str, after: str) -> None:
    changed, usual = identities(source=SOURCE.replace(before, after)), identities()
    assert changed[0] != usual[0]
    assert changed[1] == usual[1]


@pytest.mark.parametrize(
    ("before", "after"),
    [("factor = 1.5", "factor = 2.5"), ("return 4", "return 5"), ("Callable()", "Callable(3)")],
)
def test_an_object_is_another_where_its_class_or_its_state_is(before: str, after: str) -> None:
    changed, usual = identities(source=SOURCE.replace(before, after)), identities()
    assert changed[1] != usual[1]
    assert changed[0] == usual[0]


def test_functions_of_another_module_of_the_users_count() -> None:
    assert identities(helper="def more(batch): return 7")[0] != identities()[0]


def test_numbers_that_a_function_holds_count() -> None:
    def weighted(weights: Any) -> Callable[..., Any]:
        return functools.partial(dict, weights=weights)

    weights = torch.tensor([1.0, 2.0])
    same = {code_identity(weighted(w)) for w in (weights, weights.clone())}
    others = {
        code_identity(weighted(w)) for w in (weights + 1, weights.double(), weights.numpy() * 3)
    }
    assert len(same) == 1 and len(others) == 3 and not same & others


def test_a_module_counts_by_its_weights_and_settings() -> None:
    def of(bias: float, smoothing: float) -> str:
        layer = torch.nn.Linear(1, 1)
        with torch.no_grad():
            layer.weight.fill_(1), layer.bias.fill_(bias)
        net = torch.nn.Sequential(layer, torch.nn.CrossEntropyLoss(label_smoothing=smoothing))
        return code_identity(lambda: net)

    assert of(0.0, 0.1) == of(0.0, 0.1)
    assert len({of(0.0, 0.1), of(1.0, 0.1), of(0.0, 0.2)}) == 3


def of_value(value: Any) -> str:
    return code_identity(lambda model, batch: (value, model, batch))


@pytest.mark.parametrize(
    ("value", "other"),
    [
        (torch.float32, torch.bfloat16),
        (torch.device("cpu"), torch.device("cuda")),
        (torch.tanh, torch.sigmoid),
        (numpy.exp, numpy.log),
        (SimpleNamespace(beta=0.1), SimpleNamespace(beta=0.2)),
        (Namespace(beta=0.1), Namespace(beta=0.2)),
        (range(3), range(4)),
        (deque([1]), deque([2])),
        (re.compile("a"), re.compile("b")),
    ],
)
def test_plain_values_of_other_packages_count(value: Any, other: Any) -> None:
    assert of_value(value) == of_value(copy.copy(value)) != of_value(other)


DECORATED = """
import functools, torch

@{decorator}
def inner(model, batch):
    return model(batch).sum() * {factor}

class Weighed:
    @functools.cached_property
    def weight(self):
        return {factor}

weighed = Weighed()

def loss(model, batch):
    return {what}
"""


@pytest.mark.parametrize(
    ("decorator", "what"),
    [
        ("torch.autocast('cpu')", "inner(model, batch)"),
        ("functools.singledispatch", "inner(model, batch)"),
        ("torch.no_grad()", "weighed.weight"),
    ],
)
def test_what_a_decorator_of_another_package_is_around_counts(decorator: str, what: str) -> None:
    def identity(factor: str) -> str:
        text = DECORATED.format(decorator=decorator, factor=factor, what=what)
        return code_identity(loaded(source=text)["loss"])

    assert identity("0.1") == identity("0.1") != identity("0.2")


def test_use_does_not_make_it_another() -> None:
    space = loaded(
        source=DECORATED.format(decorator="torch.no_grad()", factor=2, what="weighed.weight")
    )
    before = code_identity(space["loss"])
    assert space["loss"](None, None) == 2
    assert code_identity(space["loss"]) == before


def test_functions_as_keys_have_no_place_in_memory() -> None:
    def table() -> dict[Any, int]:
        def one(value: Any) -> Any:
            return value

        return {one: 1}

    tables = [table(), table()]  # in different places
    assert of_value(tables[0]) == of_value(tables[1])


def test_one_thing_that_cannot_be_looked_at_does_not_hide_the_others() -> None:
    hidden = Hidden()
    assert of_value([hidden, 1]) == of_value([hidden, 1]) != of_value([hidden, 2])


def test_things_that_hold_each_other_have_one() -> None:
    def forth(depth: int) -> Any:
        return back(depth - 1) if depth else 0

    def back(depth: int) -> Any:
        return forth(depth - 1) if depth else 0

    assert len({code_identity(forth), code_identity(back)}) == 2


class Hidden:
    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


def test_what_cannot_be_looked_at_counts_by_its_name() -> None:
    assert code_identity(Hidden()) == code_identity(Hidden()) != code_identity(focal)


def test_code_of_installed_packages_is_not_the_users() -> None:
    own: tuple[Any, ...] = (focal, Preferred, Preferred(), functools.partial(focal), lambda: 0)
    others: tuple[Any, ...] = (torch.relu, torch.nn.Linear, Path(), code_identity, FunctionType)
    assert [is_own_code(one) for one in own] == [True] * len(own)
    assert [is_own_code(one) for one in others] == [False] * len(others)


def test_it_is_the_same_in_another_process() -> None:
    root = Path(__file__).parents[2]
    source = """
from stagelens.runs.code_identity import code_identity
NAMES = {"b", "a", "c"}

def later(value): return NAMES, value

def loss(model, batch): return later(model) if batch in {"x", "y", "z"} else sorted(NAMES)

found = code_identity(loss)
"""
    here: dict[str, Any] = {"__name__": "__main__"}
    exec(source, here)
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    done = subprocess.run(
        [sys.executable, "-c", f"{source}\nprint(found)"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": seed},
    )
    assert done.stdout.strip() == here["found"]
