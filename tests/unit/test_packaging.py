"""requirements.txt and pyproject.toml agree."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def by_name(lines: list[str]) -> dict[str, Requirement]:
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def required() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return by_name([line for line in lines if line.strip() and not line.startswith("#")])


def test_requirements_are_those_of_the_package_and_its_tests() -> None:
    extra = PROJECT["optional-dependencies"]["test"]
    assert required() == by_name([*PROJECT["dependencies"], *extra])


def test_every_requirement_has_a_lower_and_an_upper_bound() -> None:
    bounds = {
        name: {clause.operator for clause in requirement.specifier}
        for name, requirement in required().items()
    }
    assert {name: found for name, found in bounds.items() if found != {">=", "<"}} == {}
