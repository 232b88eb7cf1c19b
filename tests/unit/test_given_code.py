"""Runs opened with code of the user's: nothing that other code stored is served."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from json import dumps
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stagelens
from stagelens.analyses.contributions.computing import contribute
from stagelens.analyses.contributions.contribution_table import Question
from stagelens.cli.options import opened_with
from stagelens.contracts import Refused, TaskError, optimizer_registry
from stagelens.effects.computing import attribute
from stagelens.effects.results import stored_results
from stagelens.estimators.reproduction import doubted
from stagelens.tasks import ImageClassification
from stagelens.ui.reading import loaders
from tests.support.loops import CLASSES, make_batches, make_task
from tests.support.made_draws import measure_draws
from tests.support.own_objectives import focal
from tests.unit.conftest import Command

TASK = make_task()


class Doubled(ImageClassification):
    """Another class of the recorded name, which measures other numbers."""

    def behaviours(self, outputs: Tensor, batch: Any) -> dict[str, Tensor]:
        return super().behaviours(2 * outputs, batch)


def train(
    path: Path,
    losses: dict[str, Callable[..., Tensor]],
    task: stagelens.Task = TASK,
    make_optimizer: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.SGD(p, lr=0.3),
) -> stagelens.Run:
    torch.manual_seed(0)
    recorder, model = stagelens.Recorder(path, task), task.build_model()
    for number, name in enumerate(("one", "two")):
        optimizer = make_optimizer(model.parameters())
        loss_of: Any = losses.get(name, task.loss)
        with recorder.stage(
            name,
            model=model,
            optimizer=optimizer,
            objective=losses.get(name),
            on_problem="raise",
        ) as stage:
            for batch in make_batches(3, number):
                loss = loss_of(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                stage.step(batch, loss)
    images, labels = make_batches(1)[0]
    recorder.add_set("test", images=images.numpy(), labels=[CLASSES[n] for n in labels.tolist()])
    recorder.close()
    return stagelens.open_run(path)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("given") / "run", {"two": focal}).path


@pytest.fixture
def own(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "run"))


def opened(path: Path, loss: Any = None) -> stagelens.Run:
    return stagelens.open_run(path, objectives=None if loss is None else {"two": loss})


def without_one(run: stagelens.Run) -> Tensor:
    table = attribute(run, "test", "replay", ["one"]).table
    return torch.tensor(table["without"].to_numpy())


def later(model: nn.Module, batch: Any) -> Tensor:
    """As ``focal`` at the first step alone."""
    first = torch.equal(batch[0], make_batches(3, 1)[0][0])
    return focal(model, batch) * (1 if first else 0)


def test_what_a_wrong_loss_stored_is_not_served_to_the_right_one(own: Path) -> None:
    given = opened(own, later)
    wrong = without_one(given)  # its first step shows nothing
    (trust,) = doubted(given, attribute(given, "test", "replay", ["one"]).trust.values())
    assert trust.trust == "estimated"
    assert trust.reason.endswith("or another function was given for its loss, focal.")
    right = without_one(opened(own, focal))
    assert not torch.equal(wrong, right)
    again = opened(own, focal)
    assert again.recording == opened(own, later).recording
    assert len(stored_results(again, "test")) == 1  # its own
    assert torch.equal(without_one(again), right)


def test_whoever_gives_nothing_reads_what_was_given_last(own: Path) -> None:
    plain = opened(own)
    assert plain.digest == plain.recording
    assert stored_results(plain, "test") == []
    right = without_one(opened(own, focal))
    assert torch.equal(without_one(opened(own)), right)
    wrong = without_one(opened(own, later))
    assert torch.equal(without_one(opened(own)), wrong)
    assert torch.equal(without_one(opened(own, focal)), right)
    assert torch.equal(without_one(opened(own)), right)


def test_pages_open_the_run_again_when_other_code_was_given(own: Path) -> None:
    before = loaders.run(loaders.source(own)).digest
    given = opened(own, focal).digest
    assert loaders.run(loaders.source(own)).digest == given != before


def test_a_loss_that_is_refused_leaves_what_others_read(own: Path) -> None:
    right = without_one(opened(own, focal))
    other = opened(own, lambda model, batch: 2 * focal(model, batch))
    with pytest.raises(Refused, match=r"give focal as it was then: .*--objective two=package"):
        without_one(other)
    with pytest.raises(Refused, match="give focal as it was then"):
        contribute(other, "test", Question(ids=("0",)))
    assert torch.equal(without_one(opened(own)), right)


def doubled_focal(model: nn.Module, batch: Any) -> Tensor:
    return 2 * focal(model, batch)


def test_draws_of_another_loss_are_refused_before_their_cost_is_told(
    own: Path, command: Command
) -> None:
    given = ("--objective", f"two={__name__}:doubled_focal")
    answer = command("draws", own, "--number", 2, "--processes", 1, *given)
    assert answer.status != 0 and "give focal as it was then" in answer.err
    assert "to make" not in answer.err
    run = stagelens.open_run(own, objectives={"two": doubled_focal})
    with pytest.raises(Refused, match="give focal as it was then"):
        measure_draws(run, "test", 2, lambda *_: None)
    assert not list(own.glob("results/draws/*"))


def test_a_folder_that_may_only_be_read_is_opened_all_the_same(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGELENS_READ_ONLY", "1")
    assert opened(own, focal).digest != opened(own).digest
    assert not (own / "results" / "given.json").exists()


def test_what_the_run_would_make_itself_keeps_the_keys(own: Path) -> None:
    plain = opened(own)
    same = stagelens.open_run(own, make_task())
    assert same.digest == plain.digest == plain.recording
    assert not (own / "results" / "given.json").exists()


def test_another_task_does_not_serve_its_numbers(tmp_path: Path) -> None:
    path = train(tmp_path / "run", {}).path
    config = {**TASK.config}
    doubled = without_one(stagelens.open_run(path, Doubled(**config)))
    plain = without_one(stagelens.open_run(path))  # which needs no task
    assert not torch.equal(doubled, plain)
    shifted = stagelens.open_run(path, ImageClassification(**{**config, "mean": [1.0]}))
    assert len({shifted.digest, stagelens.open_run(path, Doubled(**config)).digest}) == 2
    assert shifted.digest != stagelens.open_run(path).digest


def test_a_model_of_ones_own_is_part_of_the_key(tmp_path: Path) -> None:
    def make(smaller: bool) -> stagelens.Task:
        def build(config: Any) -> nn.Module:
            layer = nn.Linear(20, len(CLASSES))
            return nn.Sequential(nn.Flatten(), nn.Tanh() if smaller else nn.Identity(), layer)

        return make_task({"kind": "own"}, build)

    path = train(tmp_path / "run", {}, make(False)).path
    right = without_one(stagelens.open_run(path, make(False)))
    wrong = without_one(stagelens.open_run(path, make(True)))
    assert not torch.equal(right, wrong)
    again = stagelens.open_run(path, make(False))
    assert torch.equal(without_one(again), right)
    installed: list[Any] = [deepcopy, dumps]
    others = [stagelens.open_run(path, make_task({"kind": "own"}, f)) for f in installed]
    assert len({run.digest for run in (again, *others)}) == 3
    stagelens.open_run(path, make(False))
    table = attribute(stagelens.open_run(path), "test", "replay", ["one"]).table  # as a page does
    assert torch.equal(torch.tensor(table["without"].to_numpy()), right)


def test_a_class_of_ones_own_under_a_built_in_name_is_read_by_whoever_gives_none(
    tmp_path: Path,
) -> None:
    task = Doubled(**TASK.config)
    path = train(tmp_path / "run", {}, task).path
    assert stagelens.open_run(path).file.task.own
    doubled = without_one(stagelens.open_run(path, task))
    assert torch.equal(without_one(stagelens.open_run(path)), doubled)


def test_a_task_that_the_command_line_refuses_leaves_what_others_read(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Doubled, "name", "doubled")
    with pytest.raises(TaskError, match="is the task 'doubled'"):
        opened_with(str(own), f"{__name__}:Doubled")
    assert json.loads((own / "results" / "given.json").read_text())["codes"] == {"task": []}


def test_a_refusal_ends_when_the_package_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lion = pytest.importorskip("lion_pytorch").Lion
    path = train(tmp_path / "run", {}, make_optimizer=lambda p: lion(p, lr=0.01)).path
    found = optimizer_registry.find_spec
    with monkeypatch.context() as patched:
        patched.setattr(
            optimizer_registry,
            "find_spec",
            lambda name: None if name == "lion_pytorch" else found(name),
        )
        run = stagelens.open_run(path)
        trusts = attribute(run, "test", "replay").trust
        assert trusts["one"].trust == "refused"
        assert "needs the package lion_pytorch" in trusts["one"].reason
        assert attribute(run, "test", "replay").trust["one"].trust == "refused"  # from the table
    assert attribute(stagelens.open_run(path), "test", "replay").trust["one"].trust == "exact"


@pytest.mark.parametrize(
    ("wanted", "first"),
    [(("shares", "--processes", 1), "models to measure"), (("draws", "--number", 2), "to make")],
)
def test_what_is_stored_in_full_is_read_without_the_loss(
    own: Path, command: Command, wanted: tuple[object, ...], first: str
) -> None:
    name, *options = wanted
    given = ("--objective", f"two={focal.__module__}:focal")
    right = command(name, own, *options, "--json", *given)
    assert right.status == 0 and first in right.err, right.err
    again = command(name, own, *options, "--json")
    assert again.status == 0, again.err
    assert again.out == right.out and first not in again.err
