"""A recipe: a model, and the stages it is trained in, as people write them; and what becomes of it.

Every stage begins with a checkpoint folder and leaves one, so that it can be trained in a run and
without one, after other stages and without them.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from stagelens.contracts import StageLensError
from stagelens.estimators.held_fixed import held_fixed
from stagelens.replaying.replay import replay_without
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.run import Run, open_run

Train = Callable[[Path, Path, Path | None, str], None]
"""From a checkpoint folder, one to leave, the run to record into (None for none), and a stage's
name: trains. It must train the same, to the last bit, recorded or not."""

Verdict = Literal["exact", "estimated", "on recorded samples", "told", "not trained", "wrong"]


@dataclass(frozen=True)
class Part:
    """A stage of a recipe.

    Attributes:
        name: Of the stage.
        train: Trains it.
    """

    name: str
    train: Train


@dataclass(frozen=True)
class Recipe:
    """How a model is made.

    Attributes:
        name: In the table.
        base: Fills the checkpoint folder that the first stage begins with.
        parts: Its stages. The last one is what the recipe is about; the first is left out.
    """

    name: str
    base: Callable[[Path], object]
    parts: Sequence[Part]


@dataclass(frozen=True)
class Outcome:
    """What became of a recipe.

    Attributes:
        recipe: Its name.
        verdict: ``"wrong"`` where a stage is called exact and is not, or training was stopped;
            ``"not trained"`` where it fails without a recording too.
        told: Why a stage cannot be replayed, in the product's words; "" where all can.
        replay: Largest relative deviation of a stage's replay from its recorded end.
        without: Distance of the counterfactual without the first stage from the model really
            trained without it, relative to how far that moved from the base; None where there is
            nothing to compare.
    """

    recipe: str
    verdict: Verdict
    told: str = ""
    replay: float | None = None
    without: float | None = None


def measure(recipe: Recipe, folder: Path) -> Outcome:
    """Record a recipe, replay it, and train it again without its first stage.

    Args:
        recipe: The recipe.
        folder: A new one, to work in; it is deleted.
    """
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return _measured(recipe, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measured(recipe: Recipe, folder: Path) -> Outcome:
    recipe.base(folder / "base")
    try:
        train(recipe.parts, folder, folder / "run")
        run = open_run(folder / "run")
    except Exception as error:  # a training must never be stopped
        verdict: Verdict = "not trained" if _fails(recipe, folder) else "wrong"
        return Outcome(recipe.name, verdict, f"{type(error).__name__}: {error}")
    told = [stage.facts.problem for stage in run.stages if stage.facts.problem is not None]
    told += run.problems
    if told:
        return Outcome(recipe.name, "told", told[0])
    try:
        return _held_against_training(recipe, folder, run)
    except StageLensError as error:
        return Outcome(recipe.name, "told", str(error))


def _fails(recipe: Recipe, folder: Path) -> bool:
    """Whether the training fails by itself, as where a version of TRL needs a GPU."""
    try:
        train(recipe.parts, folder, None)
    except Exception:
        return True
    return False


def train(parts: Sequence[Part], folder: Path, run: Path | None) -> Path:
    """Train the parts one after another; the folder that the last one leaves."""
    at = folder / "base"
    for part in parts:
        end = folder / ("recorded" if run else "really") / part.name
        end.mkdir(parents=True)
        part.train(at, end, run, part.name)
        at = end
    return at


def _held_against_training(recipe: Recipe, folder: Path, run: Run) -> Outcome:
    measured = [measure_deviation(run.task, stage) for stage in run.stages]
    bitwise = all(one.bitwise for one in measured)
    replay = 0.0 if bitwise else max(one.relative for one in measured)
    without = None
    if len(recipe.parts) > 1:
        found = replay_without(run, run.stages[0]).state.model
        real = weights(train(recipe.parts[1:], folder, None))
        without = distance(found, real, weights(folder / "base"))
    on_samples = any(s.facts.objective and s.facts.objective.on_samples for s in run.stages[1:])
    # As the trust in a replay has it.
    between = any(stage.facts.boundary.deviation for stage in run.stages)
    held = held_fixed(run.stages[1:])
    verdict: Verdict = "exact" if bitwise and not between and not held else "estimated"
    if on_samples:
        verdict = "on recorded samples"
    elif verdict == "exact" and without:
        verdict = "wrong"
    return Outcome(recipe.name, verdict, "", replay, without)


def weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint folder, by their names in the model that was trained."""
    adapter = folder / "adapter_model.safetensors"
    if not adapter.exists():
        return load_file(folder / "model.safetensors")
    return {_in_the_model(name): value for name, value in load_file(adapter).items()}


def _in_the_model(name: str) -> str:
    """The name of an adapter's tensor in the model, from that in its file."""
    if name.endswith(".lora_magnitude_vector"):
        return f"{name}.default.weight"
    return name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")


def distance(a: dict[str, Tensor], b: dict[str, Tensor], base: dict[str, Tensor]) -> float:
    """How far weights are from others, relative to how far those are from the base; 0 if equal."""
    names = a.keys() & b.keys()
    assert names, "the two have no weight in common"
    if all(torch.equal(a[name].cpu(), b[name].cpu()) for name in names):
        return 0.0

    def norm(x: dict[str, Tensor], y: dict[str, Tensor]) -> float:
        parts = [(x[n].double() - y[n].double() if n in y else x[n].double()) for n in names]
        return float(torch.stack([part.norm() for part in parts]).norm())

    return norm(a, b) / norm(b, base)
