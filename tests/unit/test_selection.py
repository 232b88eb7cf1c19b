"""Examples of a stage ordered by how much they help a target, and the choice replayed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import stagelens
from stagelens.analyses.contributions.contribution_table import Question
from stagelens.analyses.contributions.first_order import behaviour_gradient, contributions
from stagelens.analyses.selection import horizons
from stagelens.analyses.selection.choosing import choose
from stagelens.analyses.selection.halves import halves
from stagelens.analyses.selection.outcomes import Wanted
from stagelens.analyses.selection.proofs import KINDS, load_part, proof_path
from stagelens.analyses.selection.proving import prove
from stagelens.analyses.selection.ranked import load_ranking, ranking_path
from stagelens.analyses.selection.ranking import mean_by_use, rank
from stagelens.analyses.selection.sentences import chosen
from stagelens.cli import app
from stagelens.contracts import CARRIED, Example, Refused, SetError, StageLensError
from stagelens.derivatives.adjoint import StepContribution, sweep_within
from stagelens.derivatives.trajectory import LinearStage
from stagelens.replaying.draw_plan import Draw
from stagelens.replaying.draws import drawn_models, drawn_with
from stagelens.replaying.left_out import RowsOfStage
from stagelens.replaying.replay import same_arithmetic
from stagelens.runs.run import Run
from stagelens.tasks import ImageClassification
from tests.support.small_runs import Phase, record

EXAMPLES = [
    Example(f"{n}", {"image": np.random.default_rng(n).normal(size=(4, 4))}, "abc"[n % 3])
    for n in range(4)
]


def _adamw(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, 1e-2, weight_decay=0.1)


def _phases(steps: int) -> list[Phase]:
    return [Phase("first", _adamw), Phase("second", _adamw, steps=steps, accumulation=2)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return record(tmp_path_factory.mktemp("small") / "run", "cnn", _phases(6))


@pytest.fixture(scope="module")
def shorter(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same up to the fourth step of the second stage, where it ends."""
    return record(tmp_path_factory.mktemp("shorter") / "run", "cnn", _phases(4))


def _within(run: Run, horizon: int, others: int = 0) -> list[StepContribution]:
    def gradient(own: LinearStage, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return behaviour_gradient(run, own, "margin", EXAMPLES, values)[1]

    (found,) = sweep_within(run, run.stages[1], [gradient], horizon, others)
    return found


def _to_the_end(run: Run) -> dict[int, np.ndarray]:
    found = contributions(run, "margin", EXAMPLES, with_examples=True, since="second").examples
    assert found is not None
    own = found[found["part"] != CARRIED]
    return {int(step): part["contribution"].to_numpy() for step, part in own.groupby("step")}


@pytest.mark.parametrize("horizon", [6, 100])
def test_a_horizon_of_the_whole_stage_is_the_sweep_from_its_end(small: Run, horizon: int) -> None:
    whole = _to_the_end(small)
    found = _within(small, horizon)
    assert [one.step for one in found] == list(range(6))
    for one in found:
        np.testing.assert_allclose(one.examples, whole[one.step], rtol=1e-9)


def test_a_shorter_horizon_is_the_sweep_from_where_it_ends(small: Run, shorter: Run) -> None:
    # Of 4 steps: those before step 2 are asked after step 4, the others at the stage's end.
    ends = {**_to_the_end(small), **{step: _to_the_end(shorter)[step] for step in (0, 1)}}
    for one in _within(small, 4):
        np.testing.assert_allclose(one.examples, ends[one.step], rtol=1e-9)


def test_every_step_is_credited_once_and_looks_half_a_horizon_ahead(small: Run) -> None:
    for horizon in range(1, 8):
        assert [one.step for one in _within(small, horizon)] == list(range(6))


def test_examples_of_other_steps_are_weighed_as_if_they_were_in_the_batch(small: Run) -> None:
    """Of the step whose own batch is put in its place, they are the step's own."""
    stage = small.stages[1]
    steps = stage.read_steps()
    found = _within(small, 6, others=5)
    assert all(set(one.others) == set(range(6)) - {one.step} for one in found)
    few = _within(small, 6, others=2)
    assert all(len(one.others) == 2 and one.step not in one.others for one in few)
    seen = [step for one in few for step in one.others]
    assert {seen.count(step) for step in range(6)} == {2}  # all have their turn equally often
    # By hand, at the first step: weights are those of the stage's start, and the gradient of an
    # example of another step is taken there.
    own = LinearStage(small, stage, frozenset(_names(small)), _options())
    with same_arithmetic(stage):
        first = {name: tensor.clone() for name, tensor in own.start.values.items()}
        direction = {n: torch.randn_like(first[n]) for n in own.loss.names}
        (products,) = own.loss.example_products(first, steps[3], [direction])
        whole = own.loss.gradient(first, steps[3]).gradient
    total = sum(float((whole[n] * direction[n]).sum()) for n in own.loss.names)
    assert float(products.sum()) == pytest.approx(total, rel=1e-9)


def _names(run: Run) -> list[str]:
    return [name for name, _ in run.task.build_model().named_parameters()]


def _options() -> Any:
    from stagelens.derivatives.trajectory import DerivativeOptions

    return DerivativeOptions()


def test_a_drawn_stage_with_all_its_examples_is_the_draw_bit_for_bit(small: Run) -> None:
    stage = small.stages[0]
    draw = Draw(3, given_earlier=True)
    rows = RowsOfStage(small.task, stage)

    def train(order: Any, passes: Any, passed: Any) -> Any:
        return rows.replay({}, passed=passed, order=order, passes=passes).state

    mine = drawn_with(small, draw, stage, train)
    # From the recorded end, as a draw that is given the stage has it, it is another model.
    ((_, _, given),) = [m for m in drawn_models(small, draw, [stage]) if m[1]]
    assert any(not torch.equal(mine[name], given[name]) for name in given)
    every = [m for m in drawn_models(small, Draw(3), []) if m[0] == ""]
    # Nothing of this run is made anew in a draw but the order, so that the whole draw is the same.
    assert all(torch.equal(mine[name], every[0][2][name]) for name in mine)


def test_the_mean_is_over_every_value_of_an_example_whichever_step_gave_it() -> None:
    table = pd.DataFrame({"steps": [[0, 1], [1], [2]], "positions": [[0, 1], [0], [0]]})
    rows: Any = type("Rows", (), {"table": table, "__len__": lambda self: len(table)})()
    steps = [
        StepContribution("s", 0, 0.0, np.array([1.0]), 0.0, others={1: np.array([10.0, 20.0])}),
        StepContribution("s", 1, 0.0, np.array([30.0, 60.0]), 0.0),
    ]
    found = mean_by_use(rows, steps)
    # The first example: 1 at step 0, and as one of step 1's 20 and 60.
    np.testing.assert_allclose(found, [(1 + 20 + 60) / 3, (10 + 30) / 2, np.nan])


LABELS = [number % 2 for number in range(24)]
PIXELS = np.random.default_rng(0).integers(0, 120, (24, 4, 4), dtype=np.uint8)
PIXELS[::2, :2] += 80
PIXELS[1::2, 2:] += 80
"""Half a class's image is brighter: the upper one or the lower one."""
WRONG = (1, 5, 6, 10)
"""Images whose label is the other one while the second stage trains."""


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A second stage some of whose labels are wrong."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("noisy") / "run"
    task = ImageClassification("ab", (1, 4, 4), model={"kind": "mlp", "hidden": [8]})
    model = task.build_model()
    given = zip(PIXELS, LABELS, strict=True)
    images, labels = task.collate([Example("", {"image": p}, "ab"[k]) for p, k in given])
    with closing(stagelens.Recorder(path, task, name="noisy")) as recorder:
        for name, steps in (("first", 20), ("second", 24)):
            optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
            with recorder.stage(name, model=model, optimizer=optimizer) as stage:
                for step in range(steps):
                    rows = torch.arange(4) + 4 * (step % 3) + (12 if name == "first" else 0)
                    own = labels[rows].clone()
                    if name == "second":
                        own = torch.tensor([1 - y if r in WRONG else y for r, y in zip(
                            rows.tolist(), own.tolist(), strict=True)])  # fmt: skip
                    loss = task.loss(model, (images[rows], own))
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    stage.step((images[rows], own), loss)
        recorder.add_set(
            "test",
            images=PIXELS[12:],
            labels=["ab"[k] for k in LABELS[12:]],
            columns={"cluster": [f"{n // 2}" for n in range(12)]},
        )
    return stagelens.open_run(path, task)


def test_wrong_labels_are_ranked_last_and_the_choice_is_better_by_replay(noisy: Run) -> None:
    stage = noisy.stages[1]
    ranking = rank(noisy, stage, "test", Question(), 8)
    assert ranking.facts.behaviour.name == "loss" and ranking.facts.horizon == 8
    worst = {name for name in ranking.ids[-len(WRONG) :]}
    assert worst == {f"{row // 4}-{row % 4}" for row in WRONG}
    assert (ranking.table["value"].to_numpy()[-len(WRONG) :] < 0).all()
    kept = ranking.kept(0.5)
    proof = prove(noisy, stage, "test", Question(), ranking, kept, draws=4)
    assert all(part.notna().all(axis=None) for part in proof.parts.values())
    for other in ("random", "worst", "all"):
        gain = proof.gain(other, "loss")  # type: ignore[arg-type]
        assert gain.mean > 0, other
        difference = proof.values(other, "loss") - proof.values("chosen", "loss")  # type: ignore[arg-type]
        assert gain.mean == pytest.approx(float(difference.mean()))
    # Nothing is left out of "all": a draw of the whole run has the same answers.
    again = prove(noisy, stage, "test", Question(), ranking, ranking.ids, 1, ("chosen", "all"))
    assert again.values("chosen", "loss") == again.values("all", "loss")
    assert rank(noisy, stage, "test", Question(), 8).table.equals(ranking.table)


def test_what_was_stored_for_another_question_is_not_believed(noisy: Run) -> None:
    stage, examples = noisy.stages[1], noisy.evaluation_set("test")
    ids = Question().of(examples)
    ranking = rank(noisy, stage, "test", Question(), 8)
    stored = ranking_path(noisy, stage, examples, ids, "loss", 8)
    first = noisy.stages[0]
    for other in ((stage, ids, "loss", 3), (stage, ids[:5], "loss", 8), (stage, ids, "margin", 8),
                  (first, ids, "loss", 8)):  # fmt: skip
        asked = (noisy, other[0], examples, *other[1:])
        shutil.copy(stored, ranking_path(*asked))
        assert load_ranking(*asked) is None, other
        ranking_path(*asked).unlink()
    assert load_ranking(noisy, stage, examples, ids, "loss", 8) is not None
    kept = ranking.kept(0.5)
    facts = prove(noisy, stage, "test", Question(), ranking, kept, draws=1).facts
    other = facts.model_copy(update={"chosen": "x", "ranking": facts.ranking.model_copy(
        update={"asked": "x"})})  # fmt: skip
    for kind in KINDS:
        path = proof_path(noisy, facts, examples, ids, kept, kind, 0)
        assert load_part(path, facts, kind, 0) is not None
        assert load_part(path, facts, kind, 1) is None
        assert load_part(path, facts.model_copy(update={"asked": "x"}), kind, 0) is None
        # What is beside any choice is the same beside another one.
        assert (load_part(path, other, kind, 0) is None) == (kind in ("chosen", "worst"))
    # The worst of another target's ranking are others, though as many judge it.
    paths = [proof_path(noisy, f, examples, ids, kept, "worst", 0) for f in (facts, other)]
    assert paths[0] != paths[1]
    # Random ones that were drawn of whatever labels are no others' of the same size.
    balanced = facts.model_copy(update={"labels": {"a": 3, "b": 3}})
    paths = [proof_path(noisy, f, examples, ids, kept, "random", 0) for f in (facts, balanced)]
    assert paths[0] != paths[1] and load_part(paths[0], balanced, "random", 0) is None


def _wanted(**more: Any) -> Wanted:
    usual = {"stage": "second", "set_name": "test", "behaviour": "loss", "horizons": (2, 4, 8)}
    return Wanted(**{**usual, **more})


def test_a_horizon_whose_choice_ends_in_no_numbers_is_the_last(
    noisy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {2: [float("nan"), 0.1], 4: [0.5, 0.7], 8: [0.2, 0.4]}

    def proved(*asked: Any, **_options: Any) -> Any:
        own = np.array(losses[asked[4].facts.horizon])
        return SimpleNamespace(values=lambda _kind, _behaviour: own)

    monkeypatch.setattr(horizons, "prove", proved)
    found = horizons.try_horizons(noisy, noisy.stage("second"), _wanted())
    assert [one.ranking.facts.horizon for one in found.tried] == [8, 4, 2]


def test_each_half_of_the_target_judges_what_the_other_half_chose(
    noisy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, tuple[str, ...], list[str]]] = []

    def proved(*asked: Any, draws: int, kinds: tuple[str, ...], **_options: Any) -> Any:
        _, _, _, question, ranking, chosen = asked
        assert draws == 2
        seen.append((kinds[0], question.ids, chosen))
        assert chosen == ranking.kept(0.5)
        own = np.array([float(len(seen)), 3.0 * len(seen)])
        return SimpleNamespace(values=lambda _kind, _behaviour: own)

    monkeypatch.setattr(horizons, "prove", proved)
    found = horizons.try_horizons(noisy, noisy.stage("second"), _wanted(horizons=(4, 8)))
    assert [kind for kind, _, _ in seen] == ["chosen"] * 4 + ["random"]
    first, second = halves(noisy.evaluation_set("test"), Question())
    for number, one in ((0, 4), (2, 8)):
        ranking = next(t.ranking for t in found.tried if t.ranking.facts.horizon == one)
        table = ranking.table.set_index("example_id")
        for place, own, judges in (
            (number, "first_half", second),
            (number + 1, "second_half", first),
        ):
            assert seen[place][1] == judges.ids
            # Within labels, of which there are six examples each.
            for _, part in table.groupby("label"):
                best = set(part[own].nlargest(len(part) // 2).index)
                assert best <= set(seen[place][2])
    by_horizon = {t.ranking.facts.horizon: t.values for t in found.tried}
    assert by_horizon == {4: (1.5, 4.5), 8: (3.5, 10.5)} and found.random == (5.0, 15.0)


def test_halves_of_the_target_are_ranked_as_they_would_be_alone(noisy: Run) -> None:
    """One sweep for both is a sweep for each, and their mean is that of the whole target."""
    stage = noisy.stages[1]
    whole = rank(noisy, stage, "test", Question(), 8)
    alone = [
        rank(noisy, stage, "test", own, 8)
        for own in halves(noisy.evaluation_set("test"), Question())
    ]
    for own, name in zip(alone, ("first_half", "second_half"), strict=True):
        mine = own.table.set_index("example_id")["value"]
        np.testing.assert_allclose(mine[whole.ids], whole.table[name], rtol=1e-4, atol=1e-9)
    halved = whole.table[["first_half", "second_half"]]
    np.testing.assert_allclose(halved.mean(axis=1), whole.table["value"], rtol=1e-9)
    assert -1 <= whole.agreement <= 1
    assert whole.agreement == pytest.approx(halved.corr("spearman").iloc[0, 1])


def test_halves_keep_the_copies_of_a_source_together(noisy: Run) -> None:
    examples = noisy.evaluation_set("test")
    first, second = halves(examples, Question())
    assert set(first.ids) | set(second.ids) == set(Question().of(examples))
    source = examples.table().set_index("example_id")["cluster"]
    assert not set(source[list(first.ids)]) & set(source[list(second.ids)])
    assert len(first.ids) == len(second.ids) == 6
    one = Question(ids=tuple(Question().of(examples)[:2]))
    with pytest.raises(StageLensError, match="leave out --prove"):
        halves(examples, one)


def test_the_command_tries_horizons_proves_and_writes_the_kept(noisy: Run, tmp_path: Path) -> None:
    out = tmp_path / "kept.csv"
    told = CliRunner().invoke(
        app,
        ["select", str(noisy.path), "--stage", "second", "--prove", "3", "--out", str(out)],
    )
    assert told.exit_code == 0, told.output
    assert "6 of 12 training examples of second kept" in told.stdout
    assert "steps later" in told.stdout and "24" in told.stdout and "*" in told.stdout
    assert "random 6" in told.stdout and "the worst 6" in told.stdout and "all 12" in told.stdout
    kept = pd.read_csv(out)
    assert len(kept) == 6 and kept["value"].is_monotonic_decreasing


@pytest.mark.parametrize(
    ("keep", "horizon", "told", "not_told"),
    [(0.5, 4, "4 steps later (rough); the same share of every label", "too few"),
     (0.1, 99, "at the end of second (rough); too few for the same share", "; the same share")],
)  # fmt: skip
def test_what_was_chosen_is_said_as_it_is(
    noisy: Run, keep: float, horizon: int, told: str, not_told: str
) -> None:
    said = chosen(choose(noisy, _wanted(keep=keep, horizons=(horizon,))))
    assert told in said and not_told not in said


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--keep", "0"], "--keep 0 is no share"),
        (["--prove", "2"], "3 draws or more"),
        (["--group", "label"], "COLUMN=VALUE"),
        (["--stage", "third"], "third"),
        (["--behaviour", "grace"], "no behaviour 'grace'"),
        (["--target", "other"], "other"),
        (["--indices", "kept.json"], "--out kept.csv in place of --indices"),
        (["--by", "source"], "no column 'source' to value them by; they have none"),
    ],
)
def test_what_is_not_there_is_refused_by_name(noisy: Run, options: list[str], why: str) -> None:
    asked = ["select", str(noisy.path), "--stage", "second", *options]
    told = CliRunner().invoke(app, asked)
    assert isinstance(told.exception, StageLensError | Refused | SetError)
    assert why in str(told.exception)
