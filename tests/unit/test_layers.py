"""The walls around Streamlit and torch; those between the rooms: test_linters.py."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTRACTS = ROOT / "stagelens" / "contracts"
PAGES = sorted((ROOT / "pages").glob("*.py"))
PAGE_LINES = 150


def imported_packages(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere; "." for a relative import."""
    packages = set()
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            packages.add("." if node.level else str(node.module).partition(".")[0])
    return packages


def run_python(code: str) -> str:
    """Standard output of a fresh interpreter in the project's root."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_only_the_ui_imports_streamlit() -> None:
    rooms = (path.relative_to(ROOT) for path in (ROOT / "stagelens").rglob("*.py"))
    outside = [path for path in rooms if path.parts[:2] != ("stagelens", "ui")]
    assert [path for path in outside if "streamlit" in imported_packages(ROOT / path)] == []


def test_contracts_import_no_other_room() -> None:
    absolute, further_up = set(), []
    for path in CONTRACTS.glob("*.py"):
        absolute |= imported_packages(path) - {"."}
        nodes = ast.walk(ast.parse(path.read_text()))
        further_up += [n for n in nodes if isinstance(n, ast.ImportFrom) and n.level > 1]
    assert absolute.isdisjoint({"stagelens"}) and further_up == []


def test_pages_leave_torch_to_the_package() -> None:
    files = [path for path in (ROOT / "app.py", *PAGES) if path.exists()]
    assert [path for path in files if imported_packages(path) & {"torch", "transformers"}] == []


def test_pages_are_thin() -> None:
    lines = {path.name: len(path.read_text().splitlines()) for path in PAGES}
    assert {name: count for name, count in lines.items() if count > PAGE_LINES} == {}


HEAVY = {"streamlit", "torch", "transformers"}
LIGHT = {
    "stagelens": HEAVY,
    "stagelens.contracts": HEAVY,
    "stagelens.effects.results": HEAVY,
    "stagelens.charts": HEAVY,
    "stagelens.runs.sets.readers": HEAVY,
    "stagelens.runs.sets.writer": HEAVY,
    "stagelens.tasks.built_in": HEAVY,
    "stagelens.estimators.registry": HEAVY,
    "stagelens.analyses.spurious.feature_table": HEAVY,
    "stagelens.analyses.selection.sentences": HEAVY,
    "stagelens.analyses.training_data.tables": HEAVY,
    "stagelens.analyses.without_data.stored": HEAVY,
    "stagelens.ui": HEAVY - {"streamlit"},
    "stagelens.ui.examples.own_answers": HEAVY - {"streamlit"},
    "stagelens.ui.examples.without_data": HEAVY - {"streamlit"},
    "stagelens.ui.overview.benchmarks": HEAVY - {"streamlit"},
    "stagelens.ui.gate.sections": HEAVY - {"streamlit"},
    "stagelens.ui.trust.scores": HEAVY - {"streamlit"},
    "stagelens.ui.spurious.features": HEAVY - {"streamlit"},
    "stagelens.ui.spurious.groups": HEAVY - {"streamlit"},
    "stagelens.ui.trust.sections": HEAVY - {"streamlit"},
    "stagelens.ui.trust.verifying": HEAVY - {"streamlit"},
}
"""What importing a module leaves out: those that leave out most come first."""


@pytest.fixture(scope="module")
def loaded() -> dict[str, list[str]]:
    """The heavy libraries that are there once a module and all before it are imported."""
    return json.loads(
        run_python(
            "import importlib, json, sys; "
            f"heavy = {sorted(HEAVY)}; there = lambda: [h for h in heavy if h in sys.modules]; "
            f"print(json.dumps({{m: importlib.import_module(m) and there() for m in {[*LIGHT]}}}))"
        )
    )


@pytest.mark.parametrize("module", LIGHT)
def test_importing_it_leaves_heavy_libraries_out(module: str, loaded: dict[str, list[str]]) -> None:
    assert LIGHT[module].isdisjoint(loaded[module])


def test_no_two_files_import_each_other() -> None:
    """Not for types either: what both need belongs into a third file, below them."""
    edges: set[tuple[str, str]] = set()
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in (ROOT / "stagelens").rglob("*.py")
        if path.name != "__init__.py"
    }
    for name, path in files.items():
        package = name.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                parents = package.split(".")[: len(package.split(".")) - max(node.level - 1, 0)]
                within = ".".join(parents) if node.level else ""
                module = ".".join(filter(None, (within, node.module)))
                asked = {module, *(f"{module}.{alias.name}" for alias in node.names)}
                edges |= {(name, other) for other in asked if other in files}
    assert len(edges) > len(files)
    assert [pair for pair in edges if pair[::-1] in edges] == []


def test_no_file_is_longer_than_400_lines() -> None:
    folders = ("stagelens", "pages", "tests")
    files = [ROOT / "app.py", *(p for f in folders for p in (ROOT / f).rglob("*.py"))]
    lengths = {path.relative_to(ROOT): path.read_text().count("\n") for path in files}
    assert {path: lines for path, lines in lengths.items() if lines > 400} == {}
