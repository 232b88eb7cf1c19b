"""What the final model and others answer to prompts, stored one file per model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict
from torch import nn

from stagelens.contracts import (
    BASE,
    Progress,
    ProgressCallback,
    Refused,
    no_progress,
)
from stagelens.estimators.counterfactuals import check_final, counterfactuals
from stagelens.estimators.protocol import METHOD, Counterfactual, Estimator
from stagelens.estimators.registry import make_estimator, method_of
from stagelens.estimators.replay_check import check_steps
from stagelens.estimators.stage_trust import StageTrust
from stagelens.estimators.stored_counterfactuals import diverged
from stagelens.measuring.choices import Norm, chosen
from stagelens.measuring.generation import Generation, generate, generating
from stagelens.measuring.models import empty_model
from stagelens.measuring.partial_results import Shards
from stagelens.runs import fact_tables
from stagelens.runs.run import Run, Stage
from stagelens.runs.schema import digest
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.states import Weights

from .answer_sharing import computing_with, share_models
from .prompts import prompts_of, questions_of

FOLDER = "results/answers"

VERSION = 1
"""Raised when the same settings give other answers."""
_AT_ONCE = 256
"""Prompts whose answers are stored before the next ones are generated."""


@dataclass(frozen=True)
class Choosing:
    """Answers that are the likeliest of a prompt's choices, in place of generated ones."""

    norm: Norm = "none"

    @property
    def facts(self) -> dict[str, Any]:
        """Plain JSON for digests."""
        return {"multiple-choice": self.norm}


How = Generation | Choosing


class AnswerFacts(BaseModel):
    """What a file of answers says about itself.

    Attributes:
        run_digest: Of the recorded training.
        set_digest: Of the prompts.
        model: ``final``, ``after:STAGE``, ``without:STAGE`` or ``repeated:STAGE``.
        estimator: How the model was obtained, with its settings; empty for recorded ones.
        how: How answers were generated.
    """

    model_config = ConfigDict(frozen=True)

    run_digest: str
    set_digest: str
    model: str
    estimator: str = ""
    settings: dict[str, Any] = {}
    how: dict[str, Any]

    @property
    def key(self) -> str:
        """The name of the file."""
        made = method_of(self.estimator) if self.estimator else METHOD
        return digest("answers", VERSION, made, self.model_dump())[:32]


@dataclass(frozen=True)
class Model:
    """A model that answers: recorded, or without a stage.

    Attributes:
        facts: Its file's.
        weights: Read when called.
        stage: Whose architecture it has.
    """

    facts: AnswerFacts
    weights: Callable[[], Weights]
    stage: Stage


@dataclass(frozen=True)
class Answers:
    """All answers to the prompts of a set.

    Attributes:
        models: By ``final``, ``after:STAGE``, ``without:STAGE``, one row per prompt and sample:
            ``example_id``, ``sample``, ``answer``, ``tokens``, ``ended``, ``gap``,
            ``cut``.
        trust: What is known of each model without a stage.
        estimator: How these were obtained.
        settings: Of the estimator.
    """

    models: Mapping[str, pd.DataFrame]
    trust: Mapping[str, StageTrust]
    estimator: str
    settings: Mapping[str, Any]


def answer(
    run: Run,
    set_name: str,
    how: How,
    estimator: str = "replay",
    settings: Mapping[str, Any] | None = None,
    stages: Sequence[str] | None = None,
    progress: ProgressCallback = no_progress,
) -> Answers:
    """Answers of the final model, after every boundary, and without every stage, one by one.

    What is stored is read; a command that was killed goes on from its last 256 prompts.

    Args:
        run: The run.
        set_name: One of its evaluation sets, of prompts.
        how: How answers are generated, or chosen.
        estimator: How the models without a stage are obtained.
        settings: Of the estimator; None for its defaults.
        stages: Only these are left out; None for all.
        progress: Called for counterfactuals (the first half) and answers.

    Raises:
        Refused: The estimator refuses every stage.
        TaskError: The run's models do not generate.
    """
    made = make_estimator(estimator, settings)
    _ = run.last  # refuses a run without a finished stage, by name
    examples = run.measurable_set(set_name)
    if isinstance(how, Generation):
        generating(run.task, run.task.build_empty(run.last.facts.build_config))
    check_final(run)
    overall = Progress(progress)
    chosen_stages = [run.stage(name) for name in stages] if stages is not None else run.stages
    without = list(counterfactuals(run, made, chosen_stages, overall.part(0.0, 0.5)))
    check_steps(run, chosen_stages, made)
    if without and all(each.trust.trust == "refused" for each in without):
        raise Refused(without[0].trust.reason)
    models = [*_recorded(run, examples, how), *_without(run, examples, how, made, without)]
    named = {model.facts.model: model for model in models}

    def own(message: Mapping[str, Any], part: ProgressCallback) -> None:
        with computing_with(message["threads"]):
            _answered(run, examples, how, named[message["answers"]], part)

    left = [name for name, model in named.items() if _stored(run, model) is None]
    message = {"set": examples.name, "how": how.facts, "estimator": made.name}
    message["settings"] = dict(made.settings)
    share_models(run, left, message, own, overall.part(0.5, 1.0))
    # What a helper failed at is done here, and tells what is wrong.
    found = {
        name: _answered(run, examples, how, model, no_progress) for name, model in named.items()
    }
    trust = {each.stage: each.trust for each in without}
    return Answers(found, trust, made.name, dict(made.settings))


def do(run: Run, message: Mapping[str, Any], progress: ProgressCallback) -> None:
    """Have one model answer, for another process: see :func:`share_models`."""
    examples, how = run.measurable_set(message["set"]), how_of(message["how"])
    kind, _, stage = message["answers"].partition(":")
    if kind in ("without", "repeated"):
        made = make_estimator(message["estimator"], message["settings"])
        found = list(counterfactuals(run, made, [run.stage(stage)]))
        models = _without(run, examples, how, made, found)
    else:
        models = _recorded(run, examples, how)
    (model,) = (each for each in models if each.facts.model == message["answers"])
    with computing_with(message["threads"]):
        _answered(run, examples, how, model, progress)


def how_of(facts: Mapping[str, Any]) -> How:
    """What these facts are of."""
    if "multiple-choice" in facts:
        return Choosing(facts["multiple-choice"])
    return Generation(**{**facts, "stop": tuple(facts["stop"])})


def _facts(run: Run, examples: EvaluationSet, how: How, model: str, **more: Any) -> AnswerFacts:
    return AnswerFacts(
        run_digest=run.digest, set_digest=examples.digest, model=model, how=how.facts, **more
    )


def _recorded(run: Run, examples: EvaluationSet, how: How) -> Iterator[Model]:
    """The final model, then those at the boundaries before the last."""
    yield Model(_facts(run, examples, how, "final"), lambda: run.last.end().model, run.last)
    ends = [(stage.name, stage, stage.end) for stage in run.stages[:-1]]
    for number, (name, stage, state) in enumerate(
        [(BASE, run.stages[0], run.stages[0].start), *ends]
    ):
        # Not one that lacks what is known from a later checkpoint only, nor one that diverged.
        if (
            any(s.appeared for s in run.stages[number:])
            or diverged(stage, state().model) is not None
        ):
            continue
        facts = _facts(run, examples, how, f"after:{name}")
        yield Model(facts, lambda state=state: state().model, stage)  # type: ignore[misc]


def _without(
    run: Run,
    examples: EvaluationSet,
    how: How,
    made: Estimator,
    found: Sequence[Counterfactual],
) -> Iterator[Model]:
    """The models without a stage, and the final model as it was repeated where it differs."""
    own: dict[str, Any] = {"estimator": made.name, "settings": dict(made.settings)}
    for each in found:
        for kind, weights in (("without", each.weights), ("repeated", each.repeated)):
            if weights is not None:
                facts = _facts(run, examples, how, f"{kind}:{each.stage}", **own)
                yield Model(facts, partial(_itself, weights), run.last)


def _itself(weights: Weights) -> Weights:
    return weights


def _answered(
    run: Run, examples: EvaluationSet, how: How, model: Model, progress: ProgressCallback
) -> pd.DataFrame:
    """One model's answers, from its file if there is one."""
    stored = _stored(run, model)
    if stored is not None:
        return stored
    empty = partial(_module, run, model.stage)
    if isinstance(how, Choosing):
        table = _choices(run, examples, how, empty(), model.weights())
    else:
        table = _generated(run, examples, how, model, empty, progress)
    fact_tables.write(_path(run, model), table, model.facts)
    return table


def _path(run: Run, model: Model) -> Path:
    return run.files.inside(f"{FOLDER}/{model.facts.key}.parquet")


def _stored(run: Run, model: Model) -> pd.DataFrame | None:
    """One model's answers from its file; None if there is none, or it cannot be used."""
    path = _path(run, model)
    same = fact_tables.facts_of(path, AnswerFacts) == model.facts
    return fact_tables.read_plain(path) if same else None


def _module(run: Run, stage: Stage) -> nn.Module:
    return empty_model(run) if stage is run.last else run.task.build_empty(stage.facts.build_config)


def _generated(
    run: Run,
    examples: EvaluationSet,
    how: Generation,
    model: Model,
    empty: Callable[[], nn.Module],
    progress: ProgressCallback,
) -> pd.DataFrame:
    prompts = list(prompts_of(examples).items())
    shards = Shards(run, model.facts.key)
    parts, module, weights = [], None, None
    for start in range(0, len(prompts), _AT_ONCE):
        name = f"{start}-{min(start + _AT_ONCE, len(prompts))}"
        if name not in shards:
            if module is None or weights is None:
                module, weights = empty(), model.weights()
            own = dict(prompts[start : start + _AT_ONCE])
            shards.put(name, _rows(generate(run.task, module, weights, own, how)))
        parts.append(shards.load(name))
        done = min(start + _AT_ONCE, len(prompts))
        progress(done / len(prompts), f"{model.facts.model}: {done} of {len(prompts)} prompts")
    shards.clear()
    return pd.concat(parts, ignore_index=True)


def answers_of(
    run: Run, examples: EvaluationSet, how: How, module: nn.Module, weights: Weights
) -> pd.DataFrame:
    """A model's answers to the prompts of a set, which are not stored; see :class:`Answers`."""
    if isinstance(how, Choosing):
        return _choices(run, examples, how, module, weights)
    return _rows(generate(run.task, module, weights, prompts_of(examples), how))


def _rows(answers: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            (name, number, each.text, each.tokens, each.ended, each.gap, each.cut)
            for name, own in answers.items()
            for number, each in enumerate(own)
        ],
        columns=["example_id", "sample", "answer", "tokens", "ended", "gap", "cut"],
    )


def _choices(
    run: Run, examples: EvaluationSet, how: Choosing, module: nn.Module, weights: Weights
) -> pd.DataFrame:
    questions = questions_of(examples)
    (found,) = chosen(run.task, module, [weights], questions, how.norm)
    pairs = zip(questions, found, strict=True)
    return pd.DataFrame(
        {
            "example_id": [each.example_id for each in questions],
            "sample": 0,
            # What is not known is no answer.
            "answer": [q.choices[n] if n >= 0 else None for q, n in pairs],
            "tokens": 0,
            "ended": True,
            "gap": np.nan,
            "cut": False,
        }
    )
