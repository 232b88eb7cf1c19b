"""What works with which loss: cases, and what comes of each, for a table in docs/objectives.md."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import stagelens
from stagelens.analyses.contributions.first_order import contributions
from stagelens.contracts import REFERENCE, Refused
from stagelens.derivatives.forward_mode import final_tangents
from stagelens.estimators.coarse_replay import CoarseReplay
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.replaying.left_out import RowsOfStage
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.run import Run
from stagelens.tasks.objectives.cross_entropy import CrossEntropy
from stagelens.tasks.objectives.plain_dpo import PlainDPO
from tests.support import small_texts, task_runs
from tests.support.loops import make_batches
from tests.support.small_texts import CLASSES, TEXTS

SENTENCES = TEXTS[:2]


@dataclass(frozen=True)
class Case:
    """A loss, of a task or of a stage.

    Attributes:
        title: As the table has it.
        record: From a folder to a run whose last stage has the loss, with a set ``test``.
        trl: Whether a trainer of TRL is needed, which takes seconds to import.
    """

    title: str
    record: Callable[[Path], Run]
    trl: bool = False


def _of_task(name: str, labels: bool = True) -> Callable[[Path], Run]:
    def record(path: Path) -> Run:
        small = task_runs.SMALL[name]()
        if not labels:
            batches = [{n: t for n, t in each.items() if n != "labels"} for each in small.batches]
            small = replace(small, batches=batches)
        return task_runs.record(path, small)

    return record


def _of_texts(make: Callable[[], tuple[Any, Any]], *labels: Any) -> Callable[[Path], Run]:
    def record(path: Path) -> Run:
        task, model = make()
        batches = [task.batch(TEXTS[k : k + 3], *labels) for k in range(3)] * 2
        small = task_runs.Small(task, model, None, batches, {"texts": SENTENCES})
        if labels:
            small = replace(small, examples={"texts": SENTENCES, "labels": CLASSES[:2]})
        return task_runs.record(path, small)

    return record


def _of_objective(name: str) -> Callable[[Path], Run]:
    def record(path: Path) -> Run:
        from tests.support.objective_runs import GIVEN, STAGES, TASK, own_loss, recorded, trained

        images, labels = make_batches(1)[0]
        if name == "cross-entropy":
            objective = CrossEntropy(smoothing=0.1)
            losses = dict.fromkeys(STAGES, own_loss)
            losses["dpo"] = lambda model, _, batch: objective.loss(TASK, model, batch, {})
            with closing(stagelens.Recorder(path, TASK, name="run")) as recorder:
                trained(losses, recorder, objectives={"dpo": objective})
            given = None
        else:
            recorded(path, **({"sync": 3} if name == "moving" else {}))
            given = GIVEN
        with closing(stagelens.Recorder(path, TASK, resume=True)) as recorder:
            recorder.add_set("test", images=images, labels=labels)
        return stagelens.open_run(path, TASK, given)

    return record


def _of_pairs(path: Path) -> Run:
    task, model = small_texts.language()
    objective, later = PlainDPO(beta=0.2), [" make four", " barked"]
    with closing(stagelens.Recorder(path, task, name="run")) as recorder:
        for name, own in (("first", None), ("dpo", objective)):
            reference = copy.deepcopy(model).eval()
            optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
            options = {"model": model, "optimizer": optimizer, "objective": own}
            with recorder.stage(name, **options, on_problem="raise") as stage:
                for _ in range(3):
                    if own is None:
                        batch = task.batch(TEXTS[:3])
                        loss = task.loss(model, batch)
                    else:
                        batch = own.batch(task, SENTENCES, later, [" sat", " two"])
                        loss = own.loss(task, model, batch, {REFERENCE: reference})
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    stage.step(batch, loss)
        recorder.add_set("test", inputs={"prompt": SENTENCES, "completion": later})
    return stagelens.open_run(path)


def _of_trl(kind: str, **settings: Any) -> Callable[[Path], Run]:
    def record(path: Path) -> Run:
        from tests.support.trl_trainings import Training, load, save_base

        rewards = kind == "reward"
        model, tokenizer = load(save_base(path.parent / "base", rewards), rewards)
        for number, own in enumerate(("reward" if rewards else "sft", kind)):
            training = Training(own, settings={"max_steps": 6} | (settings if number else {}))
            callback = stagelens.StageRecorderCallback(path, f"{own} {number}", on_problem="raise")
            trainer = training.trainer(model, tokenizer, path.parent / f"out {number}", [callback])
            trainer.train()
            model = trainer.model
        inputs = {"prompt": ["two and two", "a dog"], "completion": [" make four", " barked"]}
        with closing(
            stagelens.Recorder(path, stagelens.open_run(path).task, resume=True)
        ) as recorder:
            recorder.add_set("test", inputs=inputs)
        return stagelens.open_run(path)

    return record


CASES = (
    Case("task `text-classification`", _of_texts(small_texts.classification, list(CLASSES))),
    Case("task `causal-lm`", _of_texts(small_texts.language)),
    *(Case(f"task `{name}`", _of_task(name)) for name in task_runs.SMALL),
    Case(
        "`sentence-embeddings`, in-batch negatives", _of_task("sentence-embeddings", labels=False)
    ),
    Case("`cross-entropy`, smoothed", _of_objective("cross-entropy")),
    Case("your own, with a reference", _of_objective("own")),
    Case("your own, with a reference that moves", _of_objective("moving")),
    Case("`plain-dpo`", _of_pairs),
    Case("`sft`", _of_trl("sft"), trl=True),
    Case("`sft`, packed", _of_trl("sft", packing=True, max_length=16), trl=True),
    Case("`sft`, DFT", _of_trl("sft", loss_type="dft"), trl=True),
    Case("`dpo`", _of_trl("dpo"), trl=True),
    Case("`dpo`, `aot`", _of_trl("dpo", loss_type="aot"), trl=True),
    Case(
        "`dpo`, `sync_ref_model`",
        _of_trl("dpo", sync_ref_model=True, ref_model_sync_steps=2),
        trl=True,
    ),
    Case("`kto`", _of_trl("kto"), trl=True),
    Case("`orpo`", _of_trl("orpo"), trl=True),
    Case("`reward`", _of_trl("reward"), trl=True),
    Case("`grpo`", _of_trl("grpo"), trl=True),
)


def table_row(case: Case, run: Run) -> str:
    """As the table has it."""
    cells = [_replay(run), _coarse(run), _unrolled(run), _contributions(run), _left_out(run)]
    return " | ".join([f"| {case.title}", *cells]) + " |"


def _replay(run: Run) -> str:
    exact = all(measure_deviation(run.task, stage).bitwise for stage in run.stages)
    # What was trained on was sampled from the recorded model.
    sampled = " on the recorded samples" if run.last.objective.on_samples else ""
    return ("bit for bit" if exact else "differs") + sampled


def _coarse(run: Run) -> str:
    # A large budget: that runs as short as these may leave nothing to merge is another matter.
    (found,) = counterfactuals(run, CoarseReplay(1.0), run.stages[:1])
    return found.trust.trust if found.trust.trust != "refused" else f"refused: {found.trust.reason}"


def _unrolled(run: Run) -> str:
    try:
        final_tangents(run, run.stages[:1], "jump")
    except Refused as refusal:
        return f"refused: {_SHORT[next(each for each in _SHORT if each in str(refusal))]}"
    return "estimated"


def _contributions(run: Run) -> str:
    kind = run.task.behaviour_kinds[0].name
    asked = run.evaluation_set("test").examples()[:1]
    try:
        found = contributions(run, kind, asked, with_examples=True, since=run.stages[0].name)
    except Refused as refusal:
        return f"refused: {_SHORT[next(each for each in _SHORT if each in str(refusal))]}"
    why = found.steps_only.get(run.last.name)
    if why is None:
        return "steps, examples"
    return f"steps; {_SHORT[next(each for each in _SHORT if each in why)]}"


def _left_out(run: Run) -> str:
    try:
        found = RowsOfStage(run.task, run.last).replay({0: {0}})
    except Refused as refusal:
        said = str(refusal)
        return f"refused: {_SHORT[next(each for each in _SHORT if each in said)]}"
    assert found.left_out.uses == 1 and not found.left_out.other_draws
    return "yes"


_SHORT = {
    "is computed from": "the reference moves",
    "in-batch negatives": "pairs are compared with one another",
    "compares the pairs of a batch": "pairs are compared with one another",
    "its parts give": "examples affect one another",
}
"""What refusals say, and how the table says it."""


def seeded(case: Case, path: Path) -> Run:
    """The run of a case, the same each time."""
    torch.manual_seed(0)
    return case.record(path)
