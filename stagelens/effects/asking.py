"""One prompt, asked of every model of a run, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from stagelens.contracts import ProgressCallback, no_progress
from stagelens.estimators.counterfactuals import check_final, counterfactuals
from stagelens.estimators.registry import make_estimator
from stagelens.estimators.stage_trust import StageTrust
from stagelens.measuring.generation import Answer, Generation, generate, generating
from stagelens.measuring.models import empty_model
from stagelens.runs.run import Run
from stagelens.runs.states import Weights
from stagelens.tasks.seq2seq import Seq2Seq

_PROMPT = "prompt"


@dataclass(frozen=True)
class Reply:
    """What one model answers.

    Attributes:
        model: ``final`` or ``without:STAGE``.
        answer: None where the estimator refuses the stage.
        trust: What is known of a model without a stage; None of the final one.
    """

    model: str
    answer: Answer | None
    trust: StageTrust | None = None


def ask(
    run: Run,
    prompt: str,
    how: Generation,
    estimator: str,
    settings: Mapping[str, Any] | None = None,
    stages: Sequence[str] | None = None,
    told: Callable[[str, str], None] | None = None,
    progress: ProgressCallback = no_progress,
) -> Iterator[Reply]:
    """The answers of the final model and of those without each stage, as they are there.

    Counterfactuals that are not in the cache are computed when their turn comes. Nothing of the
    prompt or of the answers is stored.

    Args:
        run: The run.
        prompt: What the models go on from, as it is.
        how: The settings; one answer each, of no more tokens than half of those that the model
            takes, so that the prompt has room.
        estimator: How the models without a stage are obtained.
        settings: Of the estimator; None for its defaults.
        stages: Only these are left out; None for all.
        told: Called with a model's name and its answer so far, after every token.
        progress: Called as models answer.

    Raises:
        TaskError: The run's models do not generate, or the prompt leaves no room for an answer.
        Refused: Training diverged.
    """
    module = empty_model(run)
    task = generating(run.task, module)
    if task.longest is not None and not isinstance(task, Seq2Seq):  # which does not share its room
        how = replace(how, max_tokens=min(how.max_tokens, max(task.longest // 2, 1)))
    made = make_estimator(estimator, settings)
    check_final(run)
    names = [stage.name for stage in run.stages] if stages is None else list(stages)
    count = len(names) + 1

    def answered(model: str, weights: Weights) -> Answer:
        so_far = None if told is None else partial(told, model)
        found = generate(task, module, weights, {_PROMPT: prompt}, how, told=so_far)
        return found[_PROMPT][0]

    progress(0.0, "The final model answers")
    yield Reply("final", answered("final", run.last.end().model))
    for number, name in enumerate(names, 1):
        model = f"without:{name}"
        progress(number / count, f"The model without {name} is made, and answers")
        (found,) = counterfactuals(run, made, [run.stage(name)])
        answer = None if found.weights is None else answered(model, found.weights)
        yield Reply(model, answer, found.trust)
