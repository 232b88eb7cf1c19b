"""Trainings by TRL are recorded as stages, and replayed as they, and others without them, are."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import stagelens
from stagelens.contracts import no_progress
from stagelens.effects.computing import attribute
from stagelens.estimators import replay_check
from stagelens.estimators.stage_trust import StageTrust
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.run import Run
from stagelens.wording.trust_words import trust_explanation, trust_word

pytestmark = pytest.mark.slow  # TRL takes four seconds to import

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.fixture(scope="module")
def recipe() -> Callable[[str], Any]:
    """A recipe of the grid in ``tests/benchmarks/recipes``, by its name."""
    from tests.benchmarks.recipes.trl_recipes import recipes

    every = {one.name: one for one in recipes()}
    return every.__getitem__


@pytest.mark.parametrize(
    "name",
    [
        "DPO several losses",
        "DPO reference with another attention",
        "Reward pairs",
        *(
            pytest.param(name, marks=pytest.mark.extensive)
            for name in ("SFT nll", "DPO LoRA", "DPO reference moves", "KTO", "ORPO")
        ),
    ],
)
def test_without_the_first_stage_a_replay_is_the_training_of_the_base(
    name: str, recipe: Any, tmp_path: Path
) -> None:
    from tests.benchmarks.recipes.recipe import Outcome, measure

    assert measure(recipe(name), tmp_path / "work") == Outcome(name, "exact", "", 0.0, 0.0)


def test_the_last_step_may_have_fewer_micro_batches(recipe: Any, tmp_path: Path) -> None:
    """The loss of GRPO is divided by their number, which is not the Trainer's setting then."""
    from tests.benchmarks.recipes.recipe import measure

    outcome = measure(recipe("GRPO accumulation, the last one partial"), tmp_path / "work")
    assert (outcome.verdict, outcome.replay) == ("on recorded samples", 0.0)


def test_a_trainer_of_rewards_records_a_reward_model(tmp_path: Path) -> None:
    from tests.support.trl_trainings import Training, load, save_base

    model, tokenizer = load(save_base(tmp_path / "base", classifies=True), classifies=True)
    callback = stagelens.StageRecorderCallback(tmp_path / "run", "rewards", on_problem="raise")
    trained = Training("reward", settings={"max_steps": 1})
    trained.trainer(model, tokenizer, tmp_path / "out", [callback]).train()
    task = stagelens.open_run(tmp_path / "run").task
    assert task.name == "reward-model"
    # Its batches are pairs: what is right, and below it what is wrong.
    first = stagelens.open_run(tmp_path / "run").last.read_steps()[0]
    shown = task.examples(first.batches[0].batch)
    assert {name for each in shown for name in each.input} == {"completion", "rejected"}


def test_what_a_trainer_does_that_replay_cannot_is_told_by_name(
    recipe: Any, tmp_path: Path
) -> None:
    from tests.benchmarks.recipes.recipe import measure

    outcome = measure(recipe("GRPO adaptive entropy"), tmp_path / "work")
    assert outcome.verdict == "told" and "use_adaptive_entropy" in outcome.told


@pytest.fixture(scope="module")
def chain(recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Supervised fine-tuning, preference optimisation and reinforcement learning in one run."""
    from tests.benchmarks.recipes.recipe import train

    folder = tmp_path_factory.mktemp("chain")
    made = recipe("SFT - DPO - GRPO")
    made.base(folder / "base")
    train(made.parts, folder, folder / "run")
    run = stagelens.open_run(folder / "run")
    with closing(stagelens.Recorder(folder / "run", run.task, resume=True)) as recorder:
        inputs = {"prompt": ["two and two", "a dog"], "completion": [" make four", " barked"]}
        recorder.add_set("test", inputs=inputs)
    return stagelens.open_run(folder / "run")


def test_a_chain_of_trainers_is_one_run_whose_stages_replay_bit_for_bit(chain: Run) -> None:
    assert [stage.facts.problem for stage in chain.stages] == [None] * 3
    said = [stage.facts.objective for stage in chain.stages]
    assert [one and one.name for one in said] == ["sft", "dpo", "grpo"]
    assert [one and {k: v.kind for k, v in one.references.items()} for one in said] == [
        {},
        {"reference": "start"},
        {},
    ]
    assert all(measure_deviation(chain.task, stage).bitwise for stage in chain.stages)


def test_effects_through_training_on_samples_are_on_recorded_samples(chain: Run) -> None:
    trust: dict[str, StageTrust] = {
        one.stage: one for one in attribute(chain, "test", "replay").facts.stages
    }
    assert {name: trust_word(one) for name, one in trust.items()} == {
        "sft": "on recorded samples",
        "dpo": "on recorded samples",
        "grpo": "exact",  # its start is the model without it
    }
    assert "Stage grpo was trained on answers" in trust_explanation(trust["dpo"])


def test_another_version_of_trl_is_named(chain: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_check, "version", lambda _: "9.0")
    said = replay_check.other_library(chain.stages)
    assert said == f" (stage 'sft' was trained with TRL {version('trl')}, here is 9.0)"
    assert not replay_check.check_replay(chain, chain.stages[0], no_progress).as_recorded


def test_the_chain_of_the_readme_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    import datasets
    import trl

    from tests.support.trl_trainings import pairs, save_base, texts

    monkeypatch.chdir(tmp_path)
    save_base(Path("base"))
    for kind in ("SFT", "DPO"):  # their defaults are for a GPU
        short = getattr(trl, f"{kind}Config")(kind, use_cpu=True, max_steps=2)
        trainer = partial(getattr(trl, f"{kind}Trainer"), args=short)
        monkeypatch.setattr(trl, f"{kind}Trainer", trainer)
    (lines,) = (b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "DPO" in b)
    exec(
        lines,
        {
            "StageRecorderCallback": stagelens.StageRecorderCallback,
            "chats": datasets.Dataset.from_list(texts()[:8]),
            "pairs": datasets.Dataset.from_list(pairs()[:8]),
        },
    )
    run = stagelens.open_run("runs/chat")
    assert [stage.name for stage in run.stages] == ["sft", "dpo"]
    assert [stage.facts.problem for stage in run.stages] == [None, None]
