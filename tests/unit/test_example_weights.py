"""First order in an example's weight, against finite differences of the replay in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import stagelens
from stagelens.analyses.contributions.computing import contribute
from stagelens.analyses.contributions.contribution_table import (
    Question,
    contributions_path,
    load_contributions,
)
from stagelens.analyses.without_data.chosen import Chosen
from stagelens.analyses.without_data.first_order import first_order, parts_of_uses
from stagelens.contracts import REFERENCE, Objective
from stagelens.replaying.batch_parts import Cut, denominators, scaled, terms_of, weighed
from stagelens.replaying.coarse_plan import ITEMS
from stagelens.replaying.left_out import Divisor
from stagelens.runs import fact_tables
from stagelens.runs.run import Run
from stagelens.runs.step_records import MicroBatch
from stagelens.runs.training_rows import training_rows
from stagelens.tasks import CausalLM, ImageClassification
from stagelens.tasks.objectives.model import ModelLoss
from stagelens.tasks.objectives.plain_dpo import PlainDPO
from tests.support import small_runs
from tests.support.double_language import IGNORED, made
from tests.support.small_runs import SHAPE, Optimizer, Phase, make_model, make_task, record
from tests.support.small_texts import TEXTS, gpt, gpt_tokenizer
from tests.support.weight_differences import by_replays

Batch = dict[str, Tensor]


def sgd(momentum: float = 0.0) -> Optimizer:
    return lambda groups: torch.optim.SGD(groups, 0.05, momentum=momentum, weight_decay=0.01)


def adamw(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, 5e-3, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)


def language(dropout: float = 0.1) -> CausalLM:
    tokenizer = gpt_tokenizer(pad_token="<|endoftext|>")
    drops = {name: dropout for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    # With a cache transformers lets documents read those before them, whatever positions say.
    own = gpt(tokenizer, use_cache=False, **drops)
    return CausalLM.from_model(own, tokenizer, make_model=made)


def texts(task: CausalLM, rows: Sequence[int]) -> Batch:
    return task.batch([TEXTS[row] for row in rows])


def masked(task: CausalLM, rows: Sequence[int]) -> Batch:
    """Prompts that have no labels, and completions of other lengths."""
    return task.batch(
        prompts=[TEXTS[row] for row in rows],
        completions=[" was long and cold", " x", " a dog barked", " the", " sat on"][: len(rows)],
    )


def packed(task: CausalLM, rows: Sequence[int]) -> Batch:
    own = [task.batch([TEXTS[row]])["input_ids"][0, :12] for row in rows]
    tokens = torch.cat(own)[None]
    positions = torch.cat([torch.arange(len(each)) for each in own])[None]
    labels = tokens.masked_fill(positions == 0, IGNORED)
    return {"input_ids": tokens, "labels": labels, "position_ids": positions}


def pairs(task: CausalLM, rows: Sequence[int]) -> Batch:
    later, other = [" make four", " barked", " x"], [" sat", " two", " was long"]
    count = len(rows)
    return PlainDPO.batch(task, [TEXTS[row] for row in rows], later[:count], other[:count])


@dataclass(frozen=True)
class Case:
    """A training of a language model: what a batch is of, and how it is trained on.

    Attributes:
        batch: From the task and numbers of texts to a batch.
        steps: Per step the texts of each micro-batch.
        counted: Whether its loss is divided by a count of the whole step.
    """

    batch: Callable[[CausalLM, Sequence[int]], Batch]
    optimizer: Optimizer
    steps: Sequence[Sequence[Sequence[int]]]
    clip_norm: float | None = None
    counted: bool = False
    objective: Objective | None = None


ONE = [[[0, 1, 3]], [[2, 4, 1]], [[3, 0, 2]]]
TWO = [[[0, 1, 3], [2, 4]], [[1, 3], [0, 4, 2]], [[2, 1], [3, 4]]]
ALONE = [[[0], [3], [1]], [[2], [4], [0]], [[1], [2], [3]]]
CASES = {
    "tokens, sgd": Case(texts, sgd(), ONE),
    "tokens, momentum, accumulated": Case(texts, sgd(0.9), TWO),
    "tokens, adamw, clipped, accumulated": Case(texts, adamw, TWO, 0.5),
    "masked prompts, adamw, accumulated": Case(masked, adamw, TWO),
    "packed, momentum, accumulated": Case(packed, sgd(0.9), TWO),
    "a text a micro-batch, adamw": Case(texts, adamw, ALONE),
    "a count of the step, momentum": Case(texts, sgd(0.9), TWO, counted=True),
    "pairs, adamw, accumulated": Case(pairs, adamw, TWO, objective=PlainDPO(beta=0.2)),
}
PHASES = {
    "images, momentum, accumulated": Phase("first", sgd(0.9), steps=4, accumulation=2),
    "images, adamw, clipped, accumulated": Phase(
        "first", adamw, steps=4, clip_norm=0.5, accumulation=3
    ),
}


def trained(path: Path, case: Case) -> Run:
    """Two stages; the second is on texts, one by one."""
    task = language()
    torch.manual_seed(0)
    model = made(task.model)
    reference = made(task.model)
    reference.load_state_dict(model.state_dict())
    given = {REFERENCE: reference.eval()}
    with closing(stagelens.Recorder(path, task)) as recorder:
        for name, own in (("first", case), ("second", Case(texts, sgd(), [[[4]], [[0]]]))):
            optimizer = own.optimizer([{"params": list(model.parameters())}])
            count = len(own.steps[0])
            with recorder.stage(
                name,
                model=model,
                optimizer=optimizer,
                accumulation=count,
                clip_norm=own.clip_norm,
                objective=own.objective,
                on_problem="raise",
            ) as stage:
                for step in own.steps:
                    batches = [own.batch(task, rows) for rows in step]
                    if own.counted:
                        items = sum((b["labels"][:, 1:] != IGNORED).sum() for b in batches)
                        batches = [{**b, ITEMS: torch.as_tensor(items / count)} for b in batches]
                    optimizer.zero_grad()
                    for number, batch in enumerate(batches, 1):
                        if own.objective is None:
                            loss = task.loss(model, batch)
                        else:
                            loss = own.objective.loss(task, model, batch, given)
                        (loss / count).backward()
                        if number == count:
                            if own.clip_norm is not None:
                                nn.utils.clip_grad_norm_(model.parameters(), own.clip_norm)
                            optimizer.step()
                        stage.step(batch, loss)
        recorder.add_set("test", inputs={"text": [TEXTS[0], TEXTS[4]]})
    return stagelens.open_run(path, task)


def pictured(path: Path, phase: Phase) -> Run:
    run = record(path, "cnn", [phase, Phase("second", None, steps=2)])
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    with closing(stagelens.Recorder(path, resume=True, task=run.task)) as recorder:
        recorder.add_set("test", images=images, labels=["a", "b", "c"] * 2)
    return stagelens.open_run(path, run.task)


@pytest.fixture(scope="module", params=[*CASES, *PHASES])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    path, name = tmp_path_factory.mktemp("weights") / "run", request.param
    return trained(path, CASES[name]) if name in CASES else pictured(path, PHASES[name])


@pytest.mark.parametrize("divisor", ["rest", "kept"])
def test_it_is_the_derivative_of_the_replay(run: Run, divisor: Divisor) -> None:
    stored = contribute(run, "test", Question())
    assert not stored.facts.steps_only and not stored.facts.no_rest
    ids = training_rows(run, run.stage("first")).table["example_id"].tolist()
    exact, predicted = [], []
    for some in ([ids[0]], ids[1:3]):
        chosen, nearly = Chosen("first", tuple(some)), 1 - 1e-8
        exact.append(by_replays(run, stored, chosen, divisor))
        estimate, known = first_order(stored, chosen, divisor, nearly)
        assert known == len(some)
        predicted.append(estimate / (1 - nearly))
    assert np.abs(exact).min() > 1e-6
    assert predicted == pytest.approx(exact, rel=1e-5, abs=1e-6 * np.abs(exact).max())


class Summed(ImageClassification):
    """Of a loss that is not the mean over examples that its task says it is."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return super().loss(model, batch) * len(batch[1])


@pytest.fixture
def task_of_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_task("linear")
    task = Summed(made.classes, SHAPE, model=made.config["model"], make_model=make_model)
    monkeypatch.setattr(small_runs, "make_task", lambda *_: task)


@pytest.mark.usefixtures("task_of_sums")
def test_a_loss_that_is_no_mean_of_its_terms_has_no_rest(tmp_path: Path) -> None:
    run = pictured(tmp_path / "run", Phase("first", sgd(), steps=2))
    stored = contribute(run, "test", Question())
    assert "can be left out by itself" in stored.facts.no_rest["first"] and stored.complete
    chosen = Chosen("first", ("0-0",))
    assert np.isfinite(first_order(stored, chosen, "kept")[0])
    assert np.isnan(first_order(stored, chosen, "rest")[0])


def test_what_an_earlier_version_stored_is_not_misread_and_computed_again(tmp_path: Path) -> None:
    run = pictured(tmp_path / "run", Phase("first", sgd(), steps=2, accumulation=2))
    stored, examples = contribute(run, "test", Question()), run.evaluation_set("test")
    assert stored.complete
    asked = (run, examples, stored.facts.behaviour.name, Question().of(examples), "first")
    own = stored.table[stored.table["part"] != "batch"]
    lacks = ["micros", "counts", "kind", "terms", "share"]
    fact_tables.write(contributions_path(*asked), own.drop(columns=lacks), stored.facts)
    old, chosen = load_contributions(*asked), Chosen("first", ("0-0",))
    assert old is not None and not old.complete
    assert np.isnan(first_order(old, chosen, "rest")[0])
    assert first_order(old, chosen, "kept") == first_order(stored, chosen, "kept")
    again = contribute(run, "test", Question())
    assert again.complete
    assert first_order(again, chosen, "rest") == first_order(stored, chosen, "rest")


# The factors of a step, whatever its loss


class Counted(stagelens.Task):
    """A loss that is linear: of a batch that says how many terms each example has."""

    def __init__(self, summed: bool) -> None:
        self.summed = summed

    def build_model(self, config: Any = None) -> nn.Module:
        raise NotImplementedError

    def loss_terms(self, batch: Mapping[str, Tensor]) -> float:
        return 0.0 if self.summed else float(batch["terms"].sum())

    def gradient(self, micro: MicroBatch) -> float:
        """Of one parameter, by the loss of a micro-batch that was divided."""
        batch, total = micro.batch, 1.0
        if not self.summed:
            total = float(batch.get(ITEMS, batch["terms"].sum()))
        return float(batch["slope"].sum()) / total / float(micro.divisor or 1)


STAGE: Any = SimpleNamespace(name="s", objective=ModelLoss(), facts=SimpleNamespace(objective=None))
SIZES, DIVISORS = (3, 2, 2), (2.0, 5.0, 3.0)
OF_PROCESSES = {"count of each process": (9.0, 9.0, 5.0), "count of all": (9.0, 9.0, 9.0)}
"""What the micro-batches of two processes, two and one, say that they are divided by."""


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("how", ["mean", "count", "sum", *OF_PROCESSES])
def test_parts_add_up_to_what_a_replayed_step_lacks(how: str, weight: float) -> None:
    """The factors of a step, with micro-batches that count for more and for less."""
    kind: Any = how.split()[0]
    random, task = np.random.default_rng(0), Counted(kind == "sum")
    counts = OF_PROCESSES.get(how, (9.0, 9.0, 9.0))
    micros, batches, uses = [], [], []
    for number, size in enumerate(SIZES):
        batch = {
            "slope": torch.tensor(random.normal(size=size)),
            "terms": torch.tensor(random.integers(1, 9, size)),
        }
        if kind == "count":
            batch[ITEMS] = torch.tensor(counts[number])
        process = number // 2 if how in OF_PROCESSES else 0
        micros.append(MicroBatch(batch, divisor=DIVISORS[number], process=process))
        told, whole = terms_of(STAGE, task, micros[-1]), task.gradient(micros[-1])
        assert told.kind == kind
        batches.append([0, number, kind, told.total, 1 / DIVISORS[number], whole])
        of_each = batch["slope"] / batch["slope"].sum() * whole
        each = zip(of_each.tolist(), told.of_examples, strict=True)
        uses += [("g", 0, number, slope, terms) for slope, terms in each]
    columns = ["step", "micro", "kind", "terms", "share", "slope"]
    table = pd.DataFrame(batches, columns=columns)
    table["denominator"] = denominators(micros, table["terms"].tolist(), SIZES)
    assert table["denominator"].tolist() == (
        [0, 0, 2] if how == "count of each process" else [0, 1, 2] if kind != "count" else [0, 0, 0]
    )
    every = pd.DataFrame(uses, columns=["group", "step", "micro", "slope", "terms"])
    recorded = sum(task.gradient(micro) for micro in micros)
    for gone in ({0}, {1, 2}, {3}, {3, 4}, {0, 3, 4}, {0, 1, 2, 3, 4}, {0, 1, 2, 3}, set(range(7))):
        firsts = np.cumsum([0, *SIZES[:-1]])
        cuts = [
            Cut.of(STAGE, task, micro, gone, int(first))
            for micro, first in zip(micros, firsts, strict=True)
        ]
        step = scaled if not weight else partial(weighed, weight=weight)
        rest = [] if len(gone) == 7 and not weight else step(cuts, attrgetter("divisor"), False)
        lacks = recorded - sum(task.gradient(micro) for micro in rest)
        own = every.iloc[sorted(gone)]
        assert parts_of_uses(own, table, weight).sum() == pytest.approx(lacks, abs=1e-12)
        # Another group that leaves by itself changes nothing.
        both = pd.concat([own, every.iloc[[0, 5]].assign(group="other")])
        assert parts_of_uses(both, table, weight)[: len(own)].sum() == pytest.approx(lacks)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((9.0, 9.0, 9.0), [0, 0, 2]),  # each process's own, equal by chance
        ((10.0, 10.0, 10.0), [0, 0, 2]),  # the same, with the first token of some
        ((18.0, 18.0, 18.0), [0, 0, 0]),
        ((4.5, 4.5, 4.5), [0, 0, 0]),  # of all, divided by what a loop divides by later
        ((9.0, 9.0, 8.0), [0, 0, 2]),
    ],
)
def test_counts_of_processes_that_are_equal_by_chance(
    counts: Sequence[float], expected: list[int]
) -> None:
    given = zip(counts, (0, 0, 1), strict=True)
    micros = [MicroBatch({ITEMS: torch.tensor(n)}, process=process) for n, process in given]
    assert denominators(micros, (4.0, 5.0, 9.0), (2, 2, 3)) == expected
