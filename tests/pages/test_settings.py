"""Which run folders may be opened, and how links name them."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagelens.contracts import RunError
from stagelens.ui.server import settings


@pytest.fixture(autouse=True)
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A home and one more allowed root, with a run in each, and one outside."""
    home, more = tmp_path / "home", tmp_path / "more"
    for path in (
        home / "digits",
        home / "mine",
        more / "deep" / "run",
        tmp_path / "outside" / "run",
    ):
        path.mkdir(parents=True)
        (path / "run.json").write_text("{}")
    monkeypatch.setenv("STAGELENS_HOME", str(home))
    monkeypatch.setenv("STAGELENS_ROOTS", str(more))
    return home, more


def test_the_demo_a_relative_and_an_absolute_path_are_found(roots: tuple[Path, Path]) -> None:
    home, more = roots
    assert settings.resolve("digits") == home / "digits"
    assert settings.resolve("mine") == home / "mine"
    assert settings.resolve("deep/run") == more / "deep" / "run"
    assert settings.resolve(f" {home / 'mine'} ") == home / "mine"


@pytest.mark.parametrize("name", ["digits", "mine", "deep/run"])
def test_a_link_to_a_run_leads_back_to_it(name: str) -> None:
    path = settings.resolve(name)
    assert settings.reference_for(path) == name


def test_a_name_that_two_roots_have_is_linked_in_full(roots: tuple[Path, Path]) -> None:
    _, more = roots
    twin = more / "mine"
    twin.mkdir()
    (twin / "run.json").write_text("{}")
    assert settings.reference_for(twin) == str(twin)
    assert settings.resolve(settings.reference_for(twin)) == twin


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("../outside/run", "contains '..'"),
        ("mine/../../outside/run", "contains '..'"),
        ("/etc", "STAGELENS_ROOTS"),
        ("/", "STAGELENS_ROOTS"),
        ("nowhere", "there is no folder nowhere"),
        ("deep", "is not a run folder"),
        ("", "no run folder is named"),
        ("mine\x00", "cannot be printed"),
        ("x" * 5000, "too long"),
        ("..\\outside", "contains '..' or"),
        ("~root", "there is no folder"),
    ],
)
def test_everything_else_is_refused_with_what_to_do(reference: str, said: str) -> None:
    with pytest.raises(RunError) as raised:
        settings.resolve(reference)
    assert said in str(raised.value)


def test_a_link_on_disk_that_leads_out_is_refused(roots: tuple[Path, Path], tmp_path: Path) -> None:
    home, _ = roots
    (home / "sly").symlink_to(tmp_path / "outside" / "run")
    with pytest.raises(RunError, match="STAGELENS_ROOTS"):
        settings.resolve("sly")
    (home / "fine").symlink_to(home / "mine")
    assert settings.resolve("fine") == home / "mine"


def test_what_lies_outside_cannot_be_told_from_what_does_not_exist(tmp_path: Path) -> None:
    said = []
    for name in ("outside/run", "outside/nothing"):
        with pytest.raises(RunError) as raised:
            settings.resolve(str(tmp_path / name))
        said.append(str(raised.value).replace(name, ""))
    assert said[0] == said[1]


def test_without_roots_the_current_folder_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("STAGELENS_ROOTS")
    monkeypatch.chdir(tmp_path / "outside")
    assert settings.resolve("run") == tmp_path / "outside" / "run"


def test_without_a_home_it_is_runs_in_the_current_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("STAGELENS_HOME")
    monkeypatch.chdir(tmp_path)
    assert settings.demo_folder() == tmp_path / "runs" / "digits"
    assert not settings.demo_built()


def test_runs_in_the_home_are_listed_but_not_the_demo_or_hidden_ones(
    roots: tuple[Path, Path],
) -> None:
    home, _ = roots
    hidden = home / ".digits-1234"
    hidden.mkdir()
    (hidden / "run.json").write_text("{}")
    assert settings.known_runs() == ["mine"]


def test_the_run_that_it_was_started_with_may_lie_anywhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert settings.started_with() is None
    elsewhere = tmp_path / "outside" / "run"
    monkeypatch.setenv("STAGELENS_RUN", str(elsewhere))
    assert settings.started_with() == str(elsewhere)
    assert settings.resolve(str(elsewhere)) == elsewhere
    with pytest.raises(RunError, match="STAGELENS_ROOTS"):
        settings.resolve(str(elsewhere.parent))
    for short in ("digits", "deep/run"):
        monkeypatch.setenv("STAGELENS_RUN", str(settings.resolve(short)))
        assert settings.started_with() == short
