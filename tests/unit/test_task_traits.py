"""What pages know of a built-in task without importing it is what its class says."""

from __future__ import annotations

import tomllib

import pytest

from stagelens import tasks
from stagelens.tasks.built_in import BUILT_IN, traits
from tests.conftest import ROOT


@pytest.mark.parametrize("name", BUILT_IN)
def test_traits_are_those_of_the_class(name: str) -> None:
    found = tasks.load_task_class(BUILT_IN[name].target)
    known = traits(name)
    assert known is not None and known == BUILT_IN[name].traits
    assert found.name == name
    assert found.input_kind == known.input_kind
    for name in ("has_token_values", "several_labels", "has_maps"):
        assert getattr(found, name) == getattr(known, name), name
    assert set(found.input_fields) <= {field for form in known.input_forms for field in form}


def test_the_built_in_tasks_are_those_that_are_registered() -> None:
    registered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert registered["stagelens.tasks"] == {name: t.target for name, t in BUILT_IN.items()}
    assert traits("a-task-of-ones-own") is None


def test_no_page_compares_names_of_tasks() -> None:
    folders = (ROOT / "pages", ROOT / "stagelens" / "ui")
    for path in [file for folder in folders for file in folder.rglob("*.py")]:
        text = path.read_text()
        assert [name for name in BUILT_IN if f'"{name}"' in text] == [], path
