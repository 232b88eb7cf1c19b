"""What is known of whether recordings reproduce: kept with the run, and read without torch.

An estimate is never relied on where a stage that it runs through was not found to reproduce.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from stagelens.contracts import RunError
from stagelens.runs.files import read_json, write_json
from stagelens.runs.run import Run, Stage
from stagelens.runs.schema import digest

from .stage_trust import REPLAY, StageTrust

STEPS = 3
"""Steps that are run again after each recorded state, where a run is looked at in earnest."""
FAR = 0.1
"""From this relative deviation on, a replay has not reproduced its stage."""


class ReplayCheck(BaseModel):
    """How far a stage's replay on one machine is from its recorded end; stored with the run.

    Attributes:
        machine: Everything that arithmetic depends on.
        as_recorded: Whether the stage was recorded on such a machine.
        bitwise: Whether the end and all losses are as recorded, bit for bit.
        largest: Largest absolute difference of a parameter or buffer.
        relative: Norm of the difference over the norm of the stage's own change.
        misfit: The first step whose loss was not the recorded one; None if all were.
    """

    model_config = ConfigDict(ser_json_inf_nan="strings")

    run_digest: str
    stage: str
    machine: str
    as_recorded: bool = False
    bitwise: bool
    largest: float
    relative: float
    misfit: int | None = None

    @property
    def problem(self) -> str:
        """Why the stage does not count as reproduced; empty if it does."""
        # On another machine a good recording of a chaotic training may end elsewhere.
        if self.bitwise or not self.as_recorded or self.relative < FAR:
            return ""
        where = "" if self.misfit is None else f", from step {self.misfit} on"
        return f"replaying stage {self.stage!r} does not give its recorded end{where}"


class StepCheck(BaseModel):
    """A few steps of a stage, run again from recorded states; stored with the run.

    Attributes:
        steps: How many losses were compared.
        misfit: The first step whose loss is not the recorded one; None if all are.
        recorded: Its loss as recorded.
        found: Its loss here.
    """

    model_config = ConfigDict(ser_json_inf_nan="strings")

    run_digest: str
    stage: str
    steps: int
    misfit: int | None = None
    recorded: float = 0.0
    found: float = 0.0

    @property
    def problem(self) -> str:
        """Why the stage does not count as reproduced; empty if it does."""
        if self.misfit is None:
            return ""
        return (
            f"step {self.misfit} of stage {self.stage!r} has a loss of {self.found:.4g} where "
            f"{self.recorded:.4g} was recorded"
        )


def check_path(run: Run, *key: str) -> Path:
    """Where a check is kept, by what identifies it beside the run."""
    return run.files.inside(f"results/checks/{digest(key[0], run.digest, *key[1:])[:32]}.json")


def step_check(run: Run, stage: Stage) -> StepCheck | None:
    """The steps of a stage that were run again; None where none were."""
    try:
        return read_json(check_path(run, "steps", stage.name), StepCheck)
    except RunError:  # missing or damaged
        return None


def keep_step_check(run: Run, check: StepCheck) -> None:
    """Store what came of running steps again."""
    write_json(check_path(run, "steps", check.stage), check)


def checks(run: Run) -> list[ReplayCheck]:
    """What came of replaying stages of the run as recorded, on whichever machine."""
    found = (_read(path) for path in sorted((run.path / "results" / "checks").glob("*.json")))
    return [c for c in found if isinstance(c, ReplayCheck) and c.run_digest == run.digest]


def problems(run: Run) -> dict[str, list[StepCheck | ReplayCheck]]:
    """Stages that were not found to reproduce, each with the checks that show it."""
    found: dict[str, list[StepCheck | ReplayCheck]] = {}
    for path in sorted((run.path / "results" / "checks").glob("*.json")):
        check = _read(path)
        if check is not None and check.run_digest == run.digest and check.problem:
            found.setdefault(check.stage, []).append(check)
    return found


def _read(path: Path) -> StepCheck | ReplayCheck | None:
    with suppress(RunError):  # damaged, or of the other kind
        return read_json(path, StepCheck)
    with suppress(RunError):
        return read_json(path, ReplayCheck)
    return None


def doubted(run: Run, trusts: Iterable[StageTrust]) -> list[StageTrust]:
    """What is known of counterfactuals, where a stage that they run through may not reproduce.

    Args:
        run: The run.
        trusts: What the estimator says of each.
    """
    found = problems(run)
    if not found:
        return list(trusts)
    return [doubted_through(run, trust, _through(run, trust.stage), found) for trust in trusts]


def doubted_through(
    run: Run,
    trust: StageTrust,
    stages: Sequence[Stage],
    problems: Mapping[str, Sequence[StepCheck | ReplayCheck]],
) -> StageTrust:
    """What is known of a model, where a stage that it runs through may not reproduce.

    Args:
        run: The run.
        trust: What the estimator says of it.
        stages: Those that it is trained by; the last one, if by none, as its model answers.
        problems: Of :func:`problems`.
    """
    own = [check for stage in stages for check in problems.get(stage.name, ())]
    if trust.estimator == REPLAY:  # how far it deviates, it has measured in the behaviours
        own = [check for check in own if isinstance(check, StepCheck)]
    if not own or trust.trust == "refused":
        return trust
    objective = run.stage(own[0].stage).facts.objective
    other = "the run was opened with another task"
    if objective is not None and objective.own:
        other = f"another function was given for its loss, {objective.title}"
    reason = (
        f"{trust.reason} But {own[0].problem}: what was recorded is not all that training did, or "
        f"{other}."
    )
    lowered = {"trust": "estimated", "reliable": False, "agreements": ()}
    # The share of wrong signs stays: it is no smaller than was promised.
    errors = dict.fromkeys(("expected_error", "typical_error", "group_error"))
    return trust.model_copy(update={**lowered, **errors, "reason": reason})


def _through(run: Run, stage: str) -> Sequence[Stage]:
    """The stages that a model without ``stage`` is trained by; the last one's model answers."""
    names = [each.name for each in run.stages]
    if stage not in names:
        return []
    return run.stages[names.index(stage) + 1 :] or run.stages[-1:]
