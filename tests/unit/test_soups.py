"""What is credited to the parents of a merge, and to the stages on the ways to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import stagelens
from stagelens.analyses.lineages.routes import routes, stages_of
from stagelens.analyses.lineages.soup import Shifted, credit
from stagelens.contracts import BASE, Refused
from stagelens.effects.computing import boundaries
from stagelens.estimators.stage_trust import StageTrust
from stagelens.wording.trust_words import trust_word
from tests.support.branching import averaged, base, record_stage
from tests.support.loops import make_batches, make_task, refused

INNER, OUTER = {"dpo": 0.5, "rl": 0.5}, {"inner": 0.8, "other": 0.2}


def nested(path: Path) -> stagelens.Run:
    """A merge of dpo and rl, trained on, and merged again with a third branch."""
    recorder = stagelens.Recorder(path, make_task(), name="nested")
    sft = record_stage(recorder, "sft", base(), 1)
    models = {"dpo": record_stage(recorder, "dpo", sft, 2)}
    models["rl"] = record_stage(recorder, "rl", sft, 3, parent="sft")
    inner = averaged(models, INNER)
    recorder.merge("soup", model=inner, parents=list(INNER))
    models["inner"] = record_stage(recorder, "inner", inner, 4)
    models["other"] = record_stage(recorder, "other", sft, 5, parent="sft")
    recorder.merge("last", model=averaged(models, OUTER), parents=list(OUTER))
    images, labels = make_batches(1, 9, size=40)[0]
    recorder.add_set("test", images=images, labels=labels)
    recorder.close()
    return stagelens.open_run(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> stagelens.Run:
    return nested(tmp_path_factory.mktemp("soups") / "run")


def weights(run: stagelens.Run, leaf: str) -> dict[str, torch.Tensor]:
    return dict(stagelens.open_run(run.path, leaf=leaf).last.end().model)


def test_weights_are_multiplied_along_the_ways_to_a_merge(run: stagelens.Run) -> None:
    assert [stage.name for stage in run.stages] == ["sft", "last"]
    found = {route.stage.name: route for route in routes(run, stages_of(run))}
    shares = {name: route.weight for name, route in found.items()}
    expected = {"dpo": 0.4, "rl": 0.4, "inner": 0.8, "other": 0.2}
    assert shares == pytest.approx(expected, abs=1e-5)
    assert all(route.plain for route in found.values())


def test_the_changes_of_all_stages_make_the_merge(run: stagelens.Run) -> None:
    # m = s + sum of weight times change, s being the last state that all have in common.
    made = {name: tensor.double() for name, tensor in weights(run, "sft").items()}
    for route in routes(run, stages_of(run)):
        start, end = route.stage.start().model, route.stage.end().model
        for name in made:
            made[name] = made[name] + route.weight * (end[name].double() - start[name].double())
    for name, tensor in run.last.end().model.items():
        assert torch.allclose(made[name].float(), tensor, atol=1e-5)


def test_effects_are_those_of_models_that_are_made_by_hand(run: stagelens.Run) -> None:
    found = credit(run, "test").table
    task, examples = run.task, run.evaluation_set("test")
    batch = next(examples.batches(100))

    def loss(state: dict[str, torch.Tensor]) -> torch.Tensor:
        model = base()
        model.load_state_dict(state)
        with torch.no_grad():
            outputs = task.outputs(model.eval(), task.collate(batch))
            return task.behaviours(outputs, task.collate(batch))["loss"]

    final, inner = weights(run, "last"), weights(run, "inner")
    rl = stagelens.open_run(run.path, leaf="rl").last
    without_rl = {
        name: final[name] - 0.4 * (rl.end().model[name] - rl.start().model[name]) for name in final
    }
    by_hand = {
        ("parent", "other"): loss(final) - loss(inner),
        ("stage", "rl"): loss(final) - loss(without_rl),
    }
    for (part, name), expected in by_hand.items():
        rows = found[(found["part"] == part) & (found["stage"] == name)]
        effect = rows.loc[rows["behaviour"] == "loss", "effect"].to_numpy()
        assert effect == pytest.approx(expected.numpy(), abs=1e-4)


def test_no_such_number_is_called_a_counterfactual(run: stagelens.Run) -> None:
    for part in credit(run, "test").facts.parts:
        known: StageTrust = part.trust
        assert trust_word(known) == "rough"
        assert known.reason.startswith("No counterfactual of a training")
        assert known.no_replay


def arithmetic(path: Path, shares: dict[str, float]) -> stagelens.Run:
    """A merge of the base and the ends of two branches."""
    recorder = stagelens.Recorder(path, make_task(), name="sums")
    first = base()
    models: dict[str, nn.Module] = {BASE: first, "one": record_stage(recorder, "one", first, 1)}
    models["two"] = record_stage(recorder, "two", first, 2, parent=BASE)
    recorder.merge("sum", model=averaged(models, shares), parents=list(shares))
    images, labels = make_batches(1, 9, size=10)[0]
    recorder.add_set("test", images=images, labels=labels)
    recorder.close()
    return stagelens.open_run(path)


def test_task_arithmetic_is_told_as_it_is(tmp_path: Path) -> None:
    run = arithmetic(tmp_path / "run", {BASE: -1.0, "one": 1.0, "two": 1.0})
    assert [stage.name for stage in run.stages] == ["sum"]
    merge = run.last.facts.merge
    assert merge is not None and merge.exact
    assert merge.weights == pytest.approx({BASE: -1, "one": 1, "two": 1}, abs=1e-5)
    parts = {(each.kind, each.name): each for each in credit(run, "test").facts.parts}
    # The others' weights add up to zero: no scaling makes a merge of them.
    refused_ = parts["parent", "one"].trust
    assert refused_.trust == "refused" and "add up to" in refused_.reason
    assert parts["stage", "one"].weight == pytest.approx(1, abs=1e-5)
    assert parts["parent", BASE].trust.trust == "estimated"


def test_a_merge_needs_parents_that_are_there(tmp_path: Path) -> None:
    recorder = stagelens.Recorder(tmp_path / "run", make_task())
    model = record_stage(recorder, "one", base(), 1)
    with refused("two stages or more, each once"):
        recorder.merge("sum", model=model, parents=["one"])
    with refused("parent='two' is no finished stage"):
        recorder.merge("sum", model=model, parents=["one", "two"])
    with refused("'one' is taken"):
        recorder.merge("one", model=model, parents=["one", BASE])
    recorder.merge("half", model=model, parents=["one", BASE])
    assert [stage.name for stage in recorder.run().stages] == ["half"]


def test_counts_and_statistics_are_those_of_the_merge() -> None:
    own = {"w": torch.ones(3), "n": torch.tensor(5), "b.running_var": torch.ones(2)}
    other = {"w": torch.full((3,), 2.0), "n": torch.tensor(9), "b.running_var": torch.zeros(2)}
    made = Shifted(own, [(0.5, other)])
    assert made["w"].tolist() == [2.0] * 3
    assert int(made["n"]) == 5 and made["b.running_var"].tolist() == [1.0, 1.0]


def test_what_cannot_be_measured_is_refused(run: stagelens.Run) -> None:
    with refused("'rl' is no merge", by=Refused):
        credit(stagelens.open_run(run.path, leaf="rl"), "test")
    assert set(boundaries(run, "test").table["boundary"]) == {BASE, "sft", "last"}
