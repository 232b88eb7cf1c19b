"""What weighs what in a run folder, and what of it can go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .run import Run
from .schema import FileRef, StateRef

MODELS = "models without a stage"
AGAIN = "computed again when needed; the tables made with them stay"


@dataclass(frozen=True)
class Size:
    """One line of what a run weighs.

    Attributes:
        where: The stage, set or part of the run.
        what: What it is.
        bytes: On disk; a file that several states share counts where it is named first.
        can_go: What becomes of the run without it; empty where it is needed.
    """

    where: str
    what: str
    bytes: int
    can_go: str = ""


def sizes(run: Run) -> list[Size]:
    """The parts of a run folder with more than nothing in them, in the order of the training."""
    found = [*_recorded(run), *_sets(run), *_results(run)]
    other = _bytes(run.path) - _models(run)[1] - sum(each.bytes for each in found)
    found.append(Size("run", "descriptions and other files", other))
    return [each for each in found if each.bytes]


def _recorded(run: Run) -> Iterator[Size]:
    counted: set[str] = set()

    def take(files: list[FileRef]) -> int:
        new = {file.path: file.bytes for file in files if file.path not in counted}
        counted.update(new)
        return sum(new.values())

    def models(states: list[StateRef]) -> int:
        fixed = [state.fixed for state in states if state.fixed is not None]
        return take([file for state in states for file in state.shards] + fixed)

    def optimizers(states: list[StateRef]) -> int:
        return take([state.optimizer for state in states if state.optimizer is not None])

    for facts in run.all_facts():
        bounds = [state for state in (facts.start, facts.end) if state is not None]
        between = [each.state for each in facts.checkpoints]
        yield Size(facts.name, "weights at its start and end", models(bounds))
        yield Size(facts.name, "optimizer state there", optimizers(bounds))
        references = list(facts.reference_states.values())
        yield Size(facts.name, "reference models", models(references))
        yield Size(facts.name, "checkpoints in between", models(between) + optimizers(between))
        parts = [part for own in facts.parts_of_each for part in own]
        batches = [part.batches for part in parts if part.batches is not None]
        yield Size(facts.name, "batches and random states", take(batches))
        yield Size(facts.name, "steps", take([part.table for part in parts]))


def _sets(run: Run) -> Iterator[Size]:
    for name in run.set_names:
        yield Size(f"set {name}", "examples", _bytes(run.path / "sets" / name))


def _results(run: Run) -> Iterator[Size]:
    folder = run.path / "results"
    yield Size("results", MODELS, _models(run)[0], AGAIN)
    rest = _bytes(folder) - _bytes(folder / "counterfactuals")
    yield Size("results", "tables and maps", rest, "computed again when asked for")


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in _files(folder))


def _models(run: Run) -> tuple[int, int]:
    """Bytes of the models without a stage, and how many more they seem to take.

    What several of them share has several names, and one number.
    """
    stats = [path.stat() for path in _files(run.path / "results" / "counterfactuals")]
    taken = sum({stat.st_ino: stat.st_size for stat in stats}.values())
    return taken, sum(stat.st_size for stat in stats) - taken


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
