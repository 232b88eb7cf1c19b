"""Requirements, pyproject.toml and the container's lock file agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCK = (ROOT / "deploy" / "requirements.lock").read_text()


def by_name(lines: list[str]) -> dict[str, Requirement]:
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def lines_of(name: str) -> list[str]:
    lines = (ROOT / name).read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def required(name: str) -> dict[str, Requirement]:
    return by_name([line for line in lines_of(name) if not line.startswith("-r ")])


def locked() -> dict[str, Requirement]:
    """The packages that the container installs."""
    return by_name(re.findall(r"(?m)^(\S+==\S+) \\$", LOCK))


def test_requirements_are_those_of_the_package() -> None:
    assert required("requirements.txt") == by_name(PROJECT["dependencies"])


def test_what_tests_need_comes_on_top() -> None:
    assert lines_of("requirements-dev.txt")[0] == "-r requirements.txt"
    assert required("requirements-dev.txt") == by_name(EXTRAS["test"])
    assert not required("requirements-dev.txt").keys() & required("requirements.txt").keys()


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_requirement_has_a_lower_and_an_upper_bound(name: str) -> None:
    bounds = {
        name: {clause.operator for clause in requirement.specifier}
        for name, requirement in required(name).items()
    }
    assert {name: found for name, found in bounds.items() if found != {">=", "<"}} == {}


def test_the_container_installs_what_runs_and_what_signs_people_in() -> None:
    assert lines_of("deploy/requirements.in")[0] == "-r ../requirements.txt"
    assert required("deploy/requirements.in") == by_name(EXTRAS["sign-in"])
    pinned = locked()
    for name, requirement in required("requirements.txt").items():
        (clause,) = pinned[name].specifier
        assert requirement.specifier.contains(clause.version), f"make lock: {name}"
    # What streamlit's extra brings.
    assert "authlib" in pinned
    # No test tool, unless what runs needs it too.
    assert not {"pytest", "ruff", "mypy", "playwright", "hatchling"} & pinned.keys()


def test_every_locked_package_has_a_hash_and_names_no_place() -> None:
    entries = re.split(r"(?m)^(?=\S+==)", LOCK)[1:]
    assert len(entries) == len(locked()) > len(PROJECT["dependencies"])
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    assert not re.search(r"://|--(extra-)?index-url|--find-links| @ ", LOCK)


def test_the_container_takes_the_locked_packages_only() -> None:
    container = (ROOT / "deploy" / "Containerfile").read_text()
    (install,) = re.findall(r"pip install (?:.*\\\n)*.*", container)
    assert "--require-hashes" in install and install.endswith("-r requirements.lock")
    assert "python:3.11" in container and "with Python 3.11" in LOCK
