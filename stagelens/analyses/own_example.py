"""An example of one's own on the final model and every counterfactual: M + 1 forward passes.

The counterfactuals are those that an estimator left in the run folder, read out just as
:func:`~stagelens.effects.computing.attribute` reads them out over an evaluation set. So an example
of the set, entered as one's own, gets the same effects as in the set's table. Where an estimator's
twins contribute to these, they are measured too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import nan
from typing import Any

import numpy as np
import pandas as pd
from torch import inference_mode

from stagelens.contracts import Behaviour, Example, Refused, Task, TaskError, TokenValues
from stagelens.effects.computing import Without, combined, weighed
from stagelens.effects.results import EFFECT_COLUMNS, ResultFacts
from stagelens.estimators.counterfactuals import changed_nothing, counterfactuals
from stagelens.estimators.protocol import Estimator
from stagelens.estimators.registry import free_estimator, make_estimator
from stagelens.estimators.stage_trust import StageTrust
from stagelens.estimators.stored_counterfactuals import Cached, find_cached
from stagelens.measuring.loaded_weights import LoadedWeights
from stagelens.measuring.models import Measured, read
from stagelens.runs.run import Run, Stage
from stagelens.runs.saved_states import load_model
from stagelens.runs.states import Weights

NAME = "own example"
"""Its id, and the name of its set, in the effect table."""


@dataclass(frozen=True)
class TokenEffects:
    """The stage effects on one text, token by token.

    Where the values are log-probabilities, a stage's effects over all tokens sum to its effect on
    the log-likelihood.

    Attributes:
        tokens: (T,) printable pieces.
        final: (T,) the final model's values; NaN where a token has none.
        effects: Stage name to (T,), final - without; NaN where the stage was refused too.
    """

    tokens: tuple[str, ...]
    final: np.ndarray
    effects: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Answer:
    """What the models say of one example.

    Attributes:
        table: Effect table of the one example.
        tokens: The same per token; None where the task has no values per token.
        behaviours: What was measured.
        trust: What is known of each stage's counterfactual.
        label: What the behaviours are about; None where the task has no labels.
        label_given: Whether it was given; else it is the final model's own answer.
    """

    table: pd.DataFrame
    tokens: TokenEffects | None
    behaviours: tuple[Behaviour, ...]
    trust: Mapping[str, StageTrust]
    label: str | None
    label_given: bool


def own_example(task: Task, content: Mapping[str, Any], label: str | None) -> Example:
    """An example that belongs to no set.

    Args:
        task: The task that it has to fit.
        content: What the task takes as input, for instance ``{"text": "a comment"}``.
        label: Its label, as a name or as the task's files spell it; None without one.

    Raises:
        TaskError: The label is not one of the task's.
    """
    try:
        known = task.check_label(label)
        return Example(NAME, content, task.implied_label(content) if known is None else known)
    except ValueError as error:
        raise TaskError(f"{error}; give another one, or none") from None


def answer(
    run: Run,
    example: Example,
    known: ResultFacts | None,
    loaded: LoadedWeights,
    others: Mapping[str, ResultFacts] | None = None,
) -> Answer:
    """The effect of every stage on an example.

    Where no label is given and no behaviour can do without one, the final model's own answer is
    taken as the label.

    Args:
        run: The run.
        example: From :func:`own_example`, or of a set.
        known: What the effect table of an evaluation set says of itself: its estimator, how its
            twins were weighed, and which stages were refused. None where there is no table yet:
            the task vector is then used.
        loaded: Keeps weights in memory between questions.
        others: For stages that this table lacks: another one that has them.

    Raises:
        Refused: A counterfactual is no longer in the run folder; says what to do.
        RunError: Weights cannot be read, or are not those of the task's model.
        TaskError: The task is not installed, or the example does not fit it.
    """
    with loaded.lock, inference_mode():
        bench = Bench.of(run, loaded, known, others)
        batch = run.task.collate([example])
        final = bench.final(batch)
        given = example.label is not None
        if not given and all(np.isnan(values).all() for values in final.measured.values.values()):
            # Behaviours are about the label, so the final model is measured again with it.
            example = replace(example, label=_own_label(run.task, final.measured))
            batch = run.task.collate([example])
            final = bench.final(batch)
        found = {stage.name: bench.without(stage, batch, final) for stage in run.stages}
    # A number to come near makes no answer right or wrong.
    label = example.label if run.task.labels_are_answers else None
    return Answer(
        table=_table(final.measured, found, label),
        tokens=_token_effects(final, found),
        behaviours=run.task.behaviour_kinds,
        trust={name: one.trust for name, one in found.items()},
        label=example.label,
        label_given=given,
    )


def _own_label(task: Task, final: Measured) -> str | None:
    """The model's answer as a label; None where the task's answers are not labels."""
    try:
        return task.check_label(final.answers[0])
    except ValueError:
        return None


@dataclass(frozen=True)
class Said:
    """What one model says of the example; no ``tokens`` where the task has no values per token."""

    measured: Measured
    tokens: TokenValues | None


@dataclass(frozen=True)
class StageEffect:
    """One stage's effect on the example; ``without`` is None where the stage was refused."""

    without: Without | None
    tokens: np.ndarray | None
    trust: StageTrust


def _token_effects(final: Said, found: Mapping[str, StageEffect]) -> TokenEffects | None:
    if final.tokens is None:
        return None
    values = np.asarray(final.tokens.values, dtype=float)
    nothing = np.full(len(values), np.nan)
    effects = {n: nothing if one.tokens is None else one.tokens for n, one in found.items()}
    return TokenEffects(tuple(final.tokens.tokens), values, effects)


def _table(final: Measured, found: Mapping[str, StageEffect], label: str | None) -> pd.DataFrame:
    """The effect table of the one example, as ``stage_rows`` makes that of a set.

    In one go: to put a frame together of many takes ten times as long as all forward passes.
    """
    rows = [(stage, name, one) for stage, one in found.items() for name in final.values]
    models = [None if one.without is None else one.without.model for _, _, one in rows]
    values = np.array([final.values[name][0] for _, name, _ in rows], dtype=float)
    effects = np.array(
        [nan if one.without is None else one.without.effects[name][0] for _, name, one in rows],
        dtype=float,
    )
    columns = {
        "set": NAME,
        "example_id": NAME,
        "stage": [stage for stage, _, _ in rows],
        "behaviour": [name for _, name, _ in rows],
        "final": values,
        "without": values - effects,
        "effect": effects,
        "estimator": [one.trust.estimator for _, _, one in rows],
        "prediction": final.answers[0],
        "prediction_without": [None if each is None else each.answers[0] for each in models],
        "confidence": final.confidences[0],
        "confidence_without": [nan if each is None else each.confidences[0] for each in models],
        "within_noise": pd.array([None] * len(rows), dtype="boolean"),
    }
    frame = pd.DataFrame(columns, columns=list(EFFECT_COLUMNS))
    return frame.assign(label=pd.Series([label] * len(rows), dtype=object))


@dataclass(frozen=True)
class Bench:
    """Measures models on a few examples: one, or one and variants of it.

    They are collated once for all models: to make tokens takes longer than a small model.

    Attributes:
        run: The run.
        loaded: Keeps weights; its lock is held.
        usual: The table whose estimator is used; None for the free one.
        tables: Stage to what the table that holds it says of itself.
    """

    run: Run
    loaded: LoadedWeights
    usual: ResultFacts | None
    tables: Mapping[str, ResultFacts | None]

    @classmethod
    def of(
        cls,
        run: Run,
        loaded: LoadedWeights,
        known: ResultFacts | None,
        others: Mapping[str, ResultFacts] | None,
    ) -> Bench:
        """A bench by what :func:`answer` is given."""
        of = dict(others or {}) | {trust.stage: known for trust in (known.stages if known else ())}
        return cls(run, loaded, known, of)

    def final(self, batch: Any) -> Said:
        """The final model on collated examples."""
        end = self.run.last.facts.end
        assert end is not None, "the last stage of a run is finished"
        return self._ask(batch, "", lambda: load_model(self.run.files, end))

    def without(self, stage: Stage, batch: Any, final: Said) -> StageEffect:
        """A stage's effects on them, and what is known of it; tokens are those of the first."""
        table = self.tables.get(stage.name)
        known = None
        if table is not None:
            known = next(trust for trust in table.stages if trust.stage == stage.name)
        by = table or self.usual
        estimator = make_estimator(by.estimator, by.settings) if by else free_estimator()()
        # These are states of the run itself, which no estimator caches.
        recorded = stage.index == len(self.run.stages) - 1 or changed_nothing(self.run, stage)
        free = estimator.free or recorded
        if known is not None and known.trust == "refused":
            return StageEffect(None, None, known)
        if free:
            (found,) = counterfactuals(self.run, estimator, [stage])
            trust = known or found.trust
            # As a dict, because differences of states are computed each time that they are read.
            said = [self._ask(batch, stage.name, lambda: dict(found.weights or {}))]
        else:
            cached = self._cached(stage, estimator)
            trust = known or cached.trust
            # Twins cost two more forward passes, and have no part in the effect where they weigh 0.
            names = ["weights", "factual", "counterfactual"][: 3 if trust.twins_share else 1]
            said = [self._ask_stored(batch, cached, name) for name in names]
        kinds = self.run.task.behaviour_kinds
        effects = combined(kinds, final.measured, [one.measured for one in said], trust)
        tokens = None
        if final.tokens is not None:
            tokens = weighed(*(_values(one) for one in (final, *said)), trust=trust)
        return StageEffect(Without(effects, said[0].measured, trust), tokens, trust)

    def _cached(self, stage: Stage, estimator: Estimator) -> Cached:
        cached = find_cached(self.run, stage, estimator)
        if cached is None:
            raise Refused(
                f"the model without {stage.name} by {estimator.name} is no longer in the run "
                f"folder; choose another estimator, or delete {self.run.path / 'results'} and have "
                "everything computed again"
            )
        return cached

    def _ask_stored(self, batch: Any, cached: Cached, name: str) -> Said:
        key, state = cached.files[name].sha256, cached.state(name)
        return self._ask(batch, key, lambda: load_model(self.run.files, state))

    def _ask(self, batch: Any, name: str, load: Callable[[], Weights]) -> Said:
        task, end = self.run.task, self.run.last.facts.end
        # Near enough for making room: all counterfactuals are as large as the final model.
        size = 0 if end is None else sum(file.bytes for file in end.shards)
        weights = self.loaded.get((self.run.digest, name), size, load)
        with self.loaded.module_with(self.run, weights) as model:
            outputs = task.outputs(model, batch)
            tokens = task.token_values(outputs, batch)[0] if task.has_token_values else None
            return Said(read(task, outputs, batch), tokens)


def _values(said: Said) -> np.ndarray:
    assert said.tokens is not None, "every model gives tokens, or none does"
    return np.asarray(said.tokens.values, dtype=float)
