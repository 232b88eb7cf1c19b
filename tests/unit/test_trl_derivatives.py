"""Derivatives of trainings by TRL: they are those of its losses, whose fused heads have none."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import stagelens
from stagelens.analyses.contributions.computing import contribute
from stagelens.analyses.contributions.contribution_table import Question
from stagelens.analyses.contributions.first_order import behaviour_gradient, contributions
from stagelens.cli import app
from stagelens.contracts import Objective, Refused
from stagelens.derivatives.forward_mode import Reading, final_tangents
from stagelens.derivatives.trajectory import DerivativeOptions, LinearStage, active_names
from stagelens.replaying.replay import replay_stage
from stagelens.runs.run import Run
from stagelens.runs.states import load_into
from tests.support.central_differences import central_difference

pytestmark = pytest.mark.slow  # TRL takes four seconds to import

Record = Callable[..., Run]


@pytest.fixture
def record(tmp_path: Path) -> Record:
    from tests.support.trl_trainings import Training, load, save_base

    def run(
        kind: str, stages: int = 1, before: str = "", double: bool = True, **settings: Any
    ) -> Run:
        """A run in float64, so that its derivatives can be held against differences."""
        usual = {"max_steps": 2, "adam_epsilon": 1e-4}
        training = Training(kind, settings=usual | settings)
        model, tokenizer = load(save_base(tmp_path / "base", training.classifies), kind == "reward")
        model = model.double() if double else model
        trainings = [Training(before, settings=usual)] * bool(before) + [training] * stages
        for number, each in enumerate(trainings):
            callback = stagelens.StageRecorderCallback(
                tmp_path / "run", f"{each.kind} {number}", on_problem="raise"
            )
            trainer = each.trainer(model, tokenizer, tmp_path / f"out{number}", [callback])
            trainer.train()
            model = trainer.model
        inputs = {"prompt": ["two and two", "a dog"], "completion": [" make four", " barked"]}
        if kind != "reward":
            task = stagelens.open_run(tmp_path / "run").task
            with closing(stagelens.Recorder(tmp_path / "run", task, resume=True)) as recorder:
                recorder.add_set("test", inputs=inputs)
        return stagelens.open_run(tmp_path / "run")

    return run


def rest(*values: Any) -> Any:
    """A case of the grid that only `make fuzz` runs."""
    return pytest.param(*values, marks=pytest.mark.extensive)


@pytest.mark.parametrize(
    ("kind", "stages", "settings"),
    [
        ("dpo", 1, {"before": "sft"}),  # its reference model is what that stage made
        rest("dpo", 1, {"before": "sft", "precompute_ref_log_probs": True}),
        rest("kto", 1, {"before": "sft"}),
        rest("grpo", 1, {"before": "sft", "beta": 0.1}),
        rest("sft", 2, {}),
        rest("sft", 2, {"packing": True, "max_length": 16}),
        rest("sft", 1, {"loss_type": "dft"}),
        rest("sft", 1, {"label_smoothing_factor": 0.1}),
        rest("dpo", 1, {}),
        rest("dpo", 1, {"loss_type": ["aot", "sft"]}),
        rest("dpo", 1, {"use_weighting": True}),  # weights that are held fixed
        rest("kto", 1, {}),  # so is its KL
        rest("grpo", 2, {}),  # on policy, what the answers were sampled with is held fixed
        rest("grpo", 1, {"beta": 0.1, "num_iterations": 2, "entropy_coef": 0.1}),
        rest("reward", 1, {}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_derivatives_equal_central_differences_of_the_replay(
    kind: str, stages: int, settings: dict[str, Any], record: Record
) -> None:
    run = record(kind, stages, **settings)
    readings: list[Reading] = ["scale", "jump"] if len(run.stages) > 1 else ["scale"]
    for reading in readings:
        tangents = final_tangents(run, run.stages, reading)
        for stage in run.stages:
            truth = central_difference(run, stage, reading, 1e-5)
            own = tangents[stage.name].values
            gap = sum(float((own[n] - t).square().sum()) for n, t in truth.items() if n in own)
            size = sum(float(tensor.square().sum()) for tensor in truth.values())
            # Some of the trainers' arithmetic is in float32.
            assert (gap / size) ** 0.5 < 1e-4, (reading, stage.name, (gap / size) ** 0.5)


@pytest.mark.parametrize("kind", map(rest, ("dpo", "kto", "grpo")))
def test_contributions_before_a_reference_are_those_of_forward_mode(
    kind: str, record: Record
) -> None:
    run = record(kind, before="sft", **({"beta": 0.1} if kind == "grpo" else {}))
    examples = run.evaluation_set("test").examples()
    steps = contributions(run, "log-likelihood", examples).steps
    tangents = final_tangents(run, run.stages, "scale")
    last = LinearStage(run, run.last, active_names(run, run.stages), DerivativeOptions())
    _, slopes = behaviour_gradient(run, last, "log-likelihood", examples)
    for stage, own in steps.groupby("stage"):
        expected = sum(
            float((slopes[name] * tangent).sum())
            for name, tangent in tangents[str(stage)].values.items()
        )
        assert own["contribution"].sum() == pytest.approx(expected, rel=1e-6)


class LeftOut(Objective):
    """The recorded loss, less a share of one example's part of one batch."""

    name = "left-out"

    def __init__(self, own: Objective, batch: Mapping[str, Any], example: int, share: float):
        self.own, self.batch, self.example, self.share = own, batch, example, share

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    @property
    def references(self) -> tuple[str, ...]:
        return self.own.references

    def loss(
        self, task: Any, model: nn.Module, batch: Any, references: Mapping[str, nn.Module]
    ) -> Tensor:
        random = torch.get_rng_state()
        whole = self.own.loss(task, model, batch, references)
        if not torch.equal(batch["input_ids"], self.batch["input_ids"]):
            return whole
        torch.set_rng_state(random)  # the same dropout
        if "labels" in batch:  # of the other texts nothing is predicted
            labels = torch.full_like(batch["labels"], -100)
            labels[self.example] = batch["labels"][self.example]
            alone = self.own.loss(task, model, {**batch, "labels": labels}, references)
        else:  # of 2B rows, the mean over B pairs
            half = len(batch["input_ids"]) // 2
            rows = [self.example, self.example + half]
            pair = {name: tensor[rows] for name, tensor in batch.items()}
            alone = self.own.loss(task, model, pair, references) / half
        return whole - self.share * alone


def value_without(run: Run, step: int, example: int, share: float) -> float:
    """Log-likelihood after the run, had a share of one example been left out of a step."""
    stage = copy.copy(run.stages[0])
    (micro,) = stage.read_steps()[step].batches or []
    own = run.stages[0].objective.plain()
    vars(stage)["objective"] = LeftOut(own, micro.batch, example, share)
    state = replay_stage(run.task, stage).state
    for later in run.stages[1:]:
        plain = copy.copy(later)
        vars(plain)["objective"] = later.objective.plain()
        state = replay_stage(run.task, plain, state).state
    model = run.task.build_model().double().eval()
    load_into(model, state.model)
    batch = run.task.collate(run.evaluation_set("test").examples())
    with torch.no_grad():
        return float(
            run.task.behaviours(run.task.outputs(model, batch), batch)["log-likelihood"].mean()
        )


@pytest.mark.parametrize(("kind", "stages"), [rest("sft", 2), ("dpo", 1)])
def test_an_example_contributes_what_leaving_it_out_takes_away(
    kind: str, stages: int, record: Record
) -> None:
    """By SGD, whose update is linear in its examples."""
    run = record(kind, stages, optim="sgd", learning_rate=1e-2, max_grad_norm=0.0)
    examples = run.evaluation_set("test").examples()
    found = contributions(
        run, "log-likelihood", examples, with_examples=True, options=DerivativeOptions("float64")
    )
    assert found.examples is not None
    own = found.examples[
        (found.examples["stage"] == run.stages[0].name) & (found.examples["part"] == "example")
    ]
    truth, share = [], 1e-3
    for row in own.itertuples():
        less, more = (value_without(run, row.step, row.position, s * share) for s in (1.0, -1.0))
        truth.append((more - less) / (2 * share))
    np.testing.assert_allclose(own["contribution"], truth, rtol=1e-3, atol=1e-7)
    shown = contribute(run, "test", Question())
    assert not shown.facts.steps_only
    fields = {"sft": "text", "dpo": "rejected"}[kind]
    contents = shown.part("example")["content"]
    assert all(fields in content.decode() for content in contents)


def test_contributions_through_training_on_samples_say_so(record: Record) -> None:
    run = record("grpo", before="sft", double=False)
    found = contribute(run, "test", Question())
    assert found.facts.on_samples == ("grpo 1",)
    told = CliRunner().invoke(app, ["contributions", str(run.path)])
    assert "Stage grpo 1 was trained on answers that the model had" in " ".join(told.output.split())
    # Prompts and sampled answers, which are what it trained on.
    contents = found.part("example", "grpo 1")["content"]
    assert {*json.loads(contents.iloc[0])} == {"prompt", "completion"}


def test_a_loss_that_is_another_without_its_fused_head_is_refused(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stagelens.tasks.objectives.trl import plain_head

    run = record("sft", double=False)
    own = plain_head.per_token
    monkeypatch.setattr(plain_head, "per_token", lambda logits, *a: own(logits / 1.1, *a))
    with pytest.raises(Refused, match=r"stage 'sft 0' has another first gradient, by 0\.\d+ of"):
        final_tangents(run, run.stages, "scale")
