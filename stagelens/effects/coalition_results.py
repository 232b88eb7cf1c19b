"""Coalition models' measurements on disk: one file per coalition. Nothing here imports torch.

A file is kept by the stages that happened, whatever parties they were taken as, so that merging two
parties reads what was measured of them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from stagelens.contracts import ACCURACY, Behaviour, StageLensError
from stagelens.estimators.coalition_plan import refusal, trained
from stagelens.estimators.parties import Parties, check_parties, name_of, parties_of, stage_masks
from stagelens.estimators.registry import method_of
from stagelens.estimators.reproduction import doubted_through, problems
from stagelens.estimators.stage_trust import REPLAY, StageTrust
from stagelens.runs import fact_tables
from stagelens.runs.run import Run
from stagelens.runs.schema import digest
from stagelens.runs.sets.clusters import with_sources
from stagelens.runs.sets.evaluation_set import EvaluationSet

from .refusals import stands
from .results import BehaviourFacts
from .summary import right_answers

FOLDER = "results/coalitions"

_TOLD = 2
"""Raised when what is said of estimated coalitions changes, so that they are judged again."""
_OWN = ("example_id", "prediction", "confidence")
_VALUE = "value/"


class CoalitionKey(BaseModel):
    """What coalitions are measured on, and how."""

    model_config = ConfigDict(frozen=True)

    run_digest: str
    set_digest: str
    estimator: str
    settings: dict[str, Any] = {}

    @property
    def folder(self) -> str:
        parts = ("coalitions", self.run_digest, self.set_digest, self.estimator, self.settings)
        # What is known of estimates was told otherwise before.
        told = () if self.estimator == REPLAY else (_TOLD,)
        return f"{FOLDER}/{digest(method_of(self.estimator), *parts, *told)[:32]}"


class CoalitionPart(BaseModel):
    """What the file of one coalition says about itself.

    Attributes:
        key: What was measured, on what, and how.
        mask: The coalition, over single stages.
        behaviours: Those that were measured.
        trust: What is known of the model; ``stage`` is the coalition in words, and an expected
            error is that of v(all) - v(coalition), relative to it.
        passes: Stages that were trained for it and for no coalition before it.
    """

    model_config = ConfigDict(frozen=True)

    key: CoalitionKey
    mask: int
    behaviours: list[BehaviourFacts]
    trust: StageTrust
    passes: int = 0


class CoalitionFacts(BaseModel):
    """Everything that a coalition result says about itself.

    Attributes:
        run_digest: Of the recorded training.
        set_name: Of the evaluation set.
        set_digest: Of its examples.
        estimator: How the models were obtained.
        settings: Of the estimator.
        behaviours: Those that were measured; accuracy follows from the predictions.
        parties: Who can join.
        stages: Names in training order; none where parties have them in that order.
        trust: What is known of each coalition's model, by its mask; see :class:`CoalitionPart`.
        passes: Stages that were trained for all of them.
        seconds: What that took.
    """

    model_config = ConfigDict(frozen=True)

    run_digest: str
    set_name: str
    set_digest: str
    estimator: str
    settings: dict[str, Any] = {}
    behaviours: list[BehaviourFacts]
    parties: Parties
    stages: tuple[str, ...] = ()
    trust: dict[int, StageTrust] = {}
    passes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class CoalitionResult:
    """What coalition models do on an evaluation set of N examples.

    Of up to 64 models every example is kept, so what is the same in all of them is kept once.

    Attributes:
        facts: About the models.
        examples: ``example_id``, ``label`` and, where some share a source, ``cluster``, in the
            set's order; N rows.
        models: Coalition to ``prediction``, ``confidence`` and a column for each behaviour, N rows
            in the same order. Refused coalitions have none.
    """

    facts: CoalitionFacts
    examples: pd.DataFrame
    models: Mapping[int, pd.DataFrame]

    @property
    def parties(self) -> Parties:
        """Who can join, in training order."""
        return self.facts.parties

    @property
    def places(self) -> tuple[tuple[int, ...], ...]:
        """The places in training of each party's stages."""
        named = self.facts.stages or [name for names in self.parties for name in names]
        at = {name: place for place, name in enumerate(named)}
        return tuple(tuple(at[name] for name in names) for names in self.parties)

    @property
    def trust(self) -> dict[int, StageTrust]:
        """What is known of each coalition's model, by its mask."""
        return self.facts.trust

    @property
    def full(self) -> int:
        """The mask of everybody: the final model."""
        return (1 << len(self.parties)) - 1

    @property
    def complete(self) -> bool:
        """Whether every one of the ``2 ** M`` coalitions has values."""
        return len(self.models) == self.full + 1

    @cached_property
    def behaviours(self) -> dict[str, Behaviour]:
        """By name: those that were measured, and accuracy where examples have labels."""
        found = {each.name: each.behaviour() for each in self.facts.behaviours}
        if self.examples["label"].notna().any():
            found[ACCURACY.name] = ACCURACY
        return found

    def name(self, mask: int) -> str:
        """A coalition in words."""
        return name_of(self.parties, mask)

    def value(self, mask: int, behaviour: str) -> np.ndarray:
        """A behaviour of a coalition's model, (N,) in the set's order; NaN where it has none.

        Raises:
            StageLensError: The coalition has no values, or the behaviour was not measured.
        """
        own = self._model(mask)
        if behaviour != ACCURACY.name:
            if behaviour not in (known := [each.name for each in self.facts.behaviours]):
                raise StageLensError(
                    f"no behaviour {behaviour!r} was measured; there is {', '.join(known)}"
                )
            return own[behaviour].to_numpy(dtype=float)
        if ACCURACY.name not in self.behaviours:
            raise StageLensError(f"set {self.facts.set_name!r} has no labels to be right about")
        return right_answers(own["prediction"], self.examples["label"]).to_numpy(dtype=float)

    def values(self, behaviour: str) -> dict[int, np.ndarray]:
        """:meth:`value` of every coalition that has values, by its mask."""
        return {mask: self.value(mask, behaviour) for mask in self.models}

    def predictions(self, mask: int) -> np.ndarray:
        """The answers of a coalition's model, (N,) in the set's order."""
        return self._model(mask)["prediction"].to_numpy(dtype=object)

    def confidences(self, mask: int) -> np.ndarray:
        """The probability of each of these answers, (N,)."""
        return self._model(mask)["confidence"].to_numpy(dtype=float)

    def _model(self, mask: int) -> pd.DataFrame:
        if mask in self.models:
            return self.models[mask]
        known = self.trust.get(mask)
        why = "was not measured" if known is None else f"was refused: {known.reason}"
        raise StageLensError(f"the coalition of {self.name(mask)} {why}")


def key_of(
    run: Run, examples: EvaluationSet, estimator: str, settings: Mapping[str, Any] | None
) -> CoalitionKey:
    """What coalitions of a run are measured on, and how."""
    return CoalitionKey(
        run_digest=run.digest,
        set_digest=examples.digest,
        estimator=estimator,
        settings=dict(settings or {}),
    )


def _path(run: Run, key: CoalitionKey, mask: int) -> Path:
    return run.files.inside(f"{key.folder}/{mask:x}.parquet")


def save_part(run: Run, part: CoalitionPart, table: pd.DataFrame) -> None:
    """Store one coalition, atomically.

    Args:
        run: The run.
        part: What it is.
        table: ``example_id``, ``prediction``, ``confidence`` and a column of each behaviour, N rows
            in the set's order; none where it is refused.
    """
    named = {b.name: _VALUE + b.name for b in part.behaviours}
    rows = table.rename(columns=named)[[*_OWN, *named.values()]]
    fact_tables.write(_path(run, part.key, part.mask), rows, part)


def stored_part(
    run: Run, key: CoalitionKey, mask: int, ids: pd.Series | None = None
) -> tuple[CoalitionPart, pd.DataFrame] | None:
    """One coalition as it was stored, over single stages; None where it has to be computed.

    Args:
        run: The run.
        key: What was measured, on what, and how.
        mask: The coalition, over single stages.
        ids: The set's example ids, (N,), which the table must have; None to trust the digest.
    """
    found = fact_tables.read(_path(run, key, mask), CoalitionPart, _OWN)
    if found is None:
        return None
    part, table = found
    # A file that was copied to this name is not believed.
    if part.key != key or part.mask != mask:
        return None
    if part.trust.trust == "refused":
        return part, table
    named = {_VALUE + b.name: b.name for b in part.behaviours}
    if not set(named) <= set(table.columns):
        return None
    if ids is not None and table["example_id"].tolist() != ids.tolist():
        return None
    return part, table.rename(columns=named)


def parts_of(run: Run, key: CoalitionKey) -> dict[int, CoalitionPart]:
    """The facts of every stored coalition, by its mask over single stages; no table is read."""
    found = {}
    for path in sorted((run.path / key.folder).glob("*.parquet")):
        part = fact_tables.facts_of(path, CoalitionPart)
        if part is not None and part.key == key and path.stem == f"{part.mask:x}":
            found[part.mask] = part
    return found


def lacking(run: Run, key: CoalitionKey, masks: Iterable[int]) -> list[int]:
    """The coalitions of single stages that have to be computed, each once."""
    there = parts_of(run, key)
    return [
        mask
        for mask in dict.fromkeys(masks)
        if mask not in there or not stands(run, there[mask].trust)
    ]


def _unsettled(run: Run, part: CoalitionPart) -> StageTrust:
    """What is known of an estimate, with why no replay can settle it, where that is so."""
    why = refusal(run, part.mask, REPLAY) if part.trust.trust == "estimated" else ""
    return part.trust.model_copy(update={"no_replay": why.rstrip(".")}) if why else part.trust


def load_coalitions(
    run: Run,
    set_name: str | EvaluationSet,
    estimator: str,
    settings: Mapping[str, Any] | None = None,
    parties: Parties | None = None,
    masks: Iterable[int] | None = None,
) -> CoalitionResult | None:
    """The coalitions that were measured on a set; None where none was.

    Args:
        run: The run.
        set_name: One of its evaluation sets, or its name.
        estimator: As stored.
        settings: As stored.
        parties: Who can join; None for every stage by itself.
        masks: The only coalitions that are read; None for all that were measured.
    """
    examples = run.evaluation_set(set_name) if isinstance(set_name, str) else set_name
    parties = parties_of(run) if parties is None else check_parties(run, parties)
    key = key_of(run, examples, estimator, settings)
    there = parts_of(run, key)
    if masks is None:
        masks = range(1 << len(parties)) if len(parties) <= 16 else _unions(run, parties, there)
    own = stage_masks(run, parties, masks)
    own_examples, doubts = with_sources(examples), problems(run)
    models: dict[int, pd.DataFrame] = {}
    trust: dict[int, StageTrust] = {}
    passes, seconds, behaviours = 0, 0.0, []
    for mask, stages in own.items():
        if stages not in there:
            continue
        found = stored_part(run, key, stages, own_examples["example_id"])
        if found is None:
            continue
        part, table = found
        through = trained(stages, run.stages) or run.stages[-1:]
        trust[mask] = doubted_through(run, _unsettled(run, part), through, doubts)
        passes, seconds = passes + part.passes, seconds + part.trust.seconds
        behaviours = part.behaviours
        if part.trust.trust != "refused":
            # Few different answers are kept once each, not once per example and model.
            kept = table.drop(columns="example_id").astype({"prediction": "category"})
            models[mask] = kept
    if not trust:
        return None
    facts = CoalitionFacts(
        **key.model_dump(),
        set_name=examples.name,
        behaviours=behaviours,
        parties=parties,
        stages=tuple(stage.name for stage in run.stages),
        trust=trust,
        passes=passes,
        seconds=seconds,
    )
    return CoalitionResult(facts, own_examples.reset_index(drop=True), models)


def _unions(run: Run, parties: Parties, there: Iterable[int]) -> list[int]:
    """The stored coalitions that consist of whole parties, as coalitions of these."""
    bits = list(stage_masks(run, parties, (1 << i for i in range(len(parties)))).values())
    found = []
    for stages in there:
        mask = sum(1 << i for i, bit in enumerate(bits) if stages & bit == bit)
        if sum(bit for i, bit in enumerate(bits) if mask >> i & 1) == stages:
            found.append(mask)
    return sorted(found)


def stored_coalitions(run: Run, set_name: str) -> list[CoalitionFacts]:
    """What was measured of a set in its present form, by estimator and settings.

    Every stage is its own party. Only descriptions are read.
    """
    examples = run.evaluation_set(set_name)
    found: list[CoalitionFacts] = []
    for folder in sorted((run.path / FOLDER).glob("*")):
        first = next((p for p in sorted(folder.glob("*.parquet"))), None)
        facts = None if first is None else fact_tables.facts_of(first, CoalitionPart)
        if facts is None:
            continue
        key = key_of(run, examples, facts.key.estimator, facts.key.settings)
        if folder.relative_to(run.path).as_posix() != key.folder:
            continue  # of another recording, of another set, or by an older method
        there = parts_of(run, key)
        if not there:
            continue
        found.append(
            CoalitionFacts(
                **key.model_dump(),
                set_name=set_name,
                behaviours=next(iter(there.values())).behaviours,
                parties=parties_of(run),
                trust={mask: part.trust for mask, part in there.items()},
                passes=sum(part.passes for part in there.values()),
                seconds=sum(part.trust.seconds for part in there.values()),
            )
        )
    return found
