"""What gates found, kept with the new run, so that pages show it; without torch.

A file is found again by all that its numbers depend on: both recordings, the set, the slices as
they are, the stored scores, and what was asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from stagelens.analyses.slices.saved import stored_slices
from stagelens.contracts import RunError
from stagelens.contracts.scorer import SCORE
from stagelens.effects.stored_scores import stored_scores
from stagelens.estimators.protocol import METHOD
from stagelens.runs.files import read_json, write_json
from stagelens.runs.run import Run
from stagelens.runs.schema import digest
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.trust.comparing import comparable_set

from .asked import POINTS, Asked
from .report import GateReport

_VERSION = 1
"""Raised when a gate judges otherwise."""
_FOLDER = "results/gates"


class StoredGate(BaseModel):
    """A gate's report as it is stored.

    Attributes:
        run_digest: Of the new run, in whose folder it lies.
        judged: When, as ISO 8601 in UTC.
        report: What was found.
    """

    model_config = ConfigDict(frozen=True)

    run_digest: str
    judged: str
    report: GateReport


def gate_path(
    old: Run,
    new: Run,
    asked: Asked,
    old_repeats: Sequence[Run] = (),
    new_repeats: Sequence[Run] = (),
) -> Path:
    """Where the report of a gate is stored, or would be: one place however the same is asked.

    Without behaviours it is that of nothing that was judged; see :func:`with_judged`.

    Raises:
        StageLensError: The runs have no such set in common.
    """
    examples = new.evaluation_set(asked.set_name)
    runs = [old, *old_repeats, new, *new_repeats]
    sets = [each.evaluation_set(comparable_set(new, examples.name, each)) for each in runs]
    slices = [
        one.model_dump(mode="json")
        for run, own in zip(runs, sets, strict=True)
        for one in stored_slices(run, own)[0]
        if one.name in asked.slices
    ]
    no_redraws = asked.drops_of == "models" or (old_repeats and new_repeats)
    parts = (
        *(_VERSION, METHOD, [each.digest for each in runs], len(old_repeats), examples.digest),
        *(sorted(set(asked.slices)), _limits(asked), asked.drops_of),
        *(None if no_redraws else asked.draws, asked.stages),
        slices,  # a name stands for other examples once a slice was saved again
        [_scores_of(run, own, asked) for run, own in zip(runs, sets, strict=True)],
    )
    return new.files.inside(f"{_FOLDER}/{digest(*parts)[:32]}.json")


def with_judged(asked: Asked, report: GateReport) -> Asked:
    """The same question, with the behaviours that were judged named, if none was."""
    judged = dict.fromkeys(row.behaviour for row in report.slices)
    return replace(asked, behaviours=asked.behaviours or tuple(judged))


def _limits(asked: Asked) -> dict[str, float]:
    """Behaviour to how much it may drop, as it was given or is the usual."""
    usual = asked.max_drop.get("", POINTS)
    return {name: float(asked.max_drop.get(name, usual)) for name in sorted(set(asked.behaviours))}


def _scores_of(run: Run, examples: EvaluationSet, asked: Asked) -> list[object]:
    if not any(name.startswith(SCORE) for name in asked.behaviours):
        return []
    return [
        facts.model_dump(mode="json")
        for one in stored_scores(run, examples.name).values()
        if {one.name, one.any.behaviours[0].name} & set(asked.behaviours)
        for facts in one.facts.values()
    ]


def keep_gate(path: Path, new: Run, report: GateReport) -> None:
    """Store what was found, at the place of :func:`gate_path`."""
    judged = datetime.now(UTC).isoformat(timespec="seconds")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, StoredGate(run_digest=new.digest, judged=judged, report=report))


def load_gate(path: Path, new: Run) -> StoredGate | None:
    """What was found; None where nothing is stored there that can be used."""
    try:
        found = read_json(path, StoredGate)
    except RunError:  # missing, damaged, or of another version
        return None
    return found if found.run_digest == new.digest else None


def stored_gates(new: Run, examples: EvaluationSet) -> list[StoredGate]:
    """All that was found of a run on a set as it is now, the newest first."""
    paths = sorted(new.files.inside(_FOLDER).glob("*.json"))
    found = [one for path in paths if (one := load_gate(path, new)) is not None]
    own = [one for one in found if one.report.set_digest == examples.digest]
    return sorted(own, key=lambda one: one.judged, reverse=True)
