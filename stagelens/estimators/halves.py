"""A stage taken as two halves: where, and the training state between them.

The state is a recorded checkpoint, or is found by replaying the first half. The latter is believed
only where a replay of the whole stage is bit for bit on this machine.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from stagelens.contracts import ProgressCallback, Refused, RunError
from stagelens.runs.cutting import Cut, check_cut, cut_run, names_of_parts
from stagelens.runs.files import read_json, write_json
from stagelens.runs.run import Run
from stagelens.runs.schema import StateRef, digest

from .durations import Timings, keep_timings, stored_timings
from .reproduction import check_path, checks

_NEAR = 0.25
"""A recorded checkpoint that has at least this share of the steps on either side is a middle."""


class Middle(BaseModel):
    """The training state between two halves, found by replay; stored with the run."""

    model_config = ConfigDict(frozen=True)

    run_digest: str
    stage: str
    step: int
    state: StateRef


def halves_of(run: Run, stage: str, step: int | None = None) -> Cut:
    """Where a stage is taken as two halves.

    Args:
        run: The run.
        stage: Its name.
        step: After which of its steps; None for the recorded checkpoint nearest to the middle,
            where one is near, else for the middle step.

    Raises:
        StageLensError: There is no such stage or step, or it cannot be taken as two.
    """
    whole = run.stage(stage)
    if step is None:
        step = whole.steps // 2
        near = [
            each.step
            for each in whole.facts.checkpoints
            if _NEAR * whole.steps <= each.step <= (1 - _NEAR) * whole.steps
        ]
        step = min(near, key=lambda each: abs(2 * each - whole.steps), default=step)
    check_cut(whole, step)
    return Cut(stage, step)


def stored_middle(run: Run, cut: Cut) -> StateRef | None:
    """The training state between two halves as it is known; None where a replay has to find it."""
    for checkpoint in run.stage(cut.stage).facts.checkpoints:
        if checkpoint.step == cut.step:
            return checkpoint.state
    try:
        found = read_json(_path(run, cut), Middle)
    except RunError:  # missing or damaged
        return None
    there = all((run.path / file.path).is_file() for file in found.state.files)
    same = (found.run_digest, found.stage, found.step) == (run.digest, cut.stage, cut.step)
    return found.state if there and same else None


def stored_halves(run: Run, cut: Cut) -> Run | None:
    """The run with a stage as two halves; None where the state between them is not known yet."""
    middle = stored_middle(run, cut)
    return None if middle is None else cut_run(run, cut, middle)


def planned_halves(run: Run, cut: Cut) -> Run:
    """The same for a cost told beforehand: what it takes does not depend on the state."""
    return stored_halves(run, cut) or cut_run(run, cut, run.stage(cut.stage).facts.start)


def middle_steps(run: Run, cut: Cut) -> int:
    """How many steps are replayed to find the state between the halves; 0 where it is known."""
    if stored_middle(run, cut) is not None:
        return 0
    whole = run.stage(cut.stage)
    repeats = any(check.stage == cut.stage and check.bitwise for check in checks(run))
    return cut.step if repeats else whole.steps


def whole_mask(mask: int, index: int) -> int | None:
    """A coalition with two halves as one of whole stages; None where it has only one of them.

    Args:
        mask: Over the stages, the two halves at ``index`` and after it.
        index: Of the stage that is taken as two.
    """
    halves = mask >> index & 0b11
    if halves in (0b01, 0b10):
        return None
    below = mask & ((1 << index) - 1)
    return below | (mask >> (index + 1) & ~1 | halves & 1) << index


def halved(run: Run, cut: Cut, progress: ProgressCallback) -> Run:
    """The run with a stage as two halves; what is known of the others' replays stays known.

    Raises:
        Refused: The stage cannot be replayed, or not bit for bit, and has no checkpoint there.
    """
    middle = stored_middle(run, cut)
    if middle is None:
        middle = _found(run, cut, progress)
    made = cut_run(run, cut, middle)
    _keep_checks(run, made, cut)
    _keep_timings(run, made, cut)
    return made


def _found(run: Run, cut: Cut, progress: ProgressCallback) -> StateRef:
    from stagelens.replaying.replay import check_replayable  # torch
    from stagelens.replaying.reproduction import state_after
    from stagelens.runs.saved_states import save_state

    from .replay_check import stored_check

    whole = run.stage(cut.stage)
    check_replayable([whole])
    known = stored_check(run, whole)
    through = known is None or not known.bitwise
    state, same = state_after(run.task, whole, cut.step, through, progress)
    if not same:
        there = ", ".join(str(each.step) for each in whole.facts.checkpoints)
        instead = (
            f"take it as two at one of its checkpoints ({there})"
            if there
            else ("record it with checkpoint_every, or replay it where it was recorded")
        )
        raise Refused(
            f"what stage {cut.stage!r} was after step {cut.step} is not known: it has no "
            f"checkpoint there, and a replay does not repeat it bit for bit here; {instead}"
        )
    prefix = str(_path(run, cut).relative_to(run.path).with_suffix(""))
    found = Middle(
        run_digest=run.digest,
        stage=cut.stage,
        step=cut.step,
        state=save_state(run.path, prefix, state),
    )
    write_json(_path(run, cut), found)
    return found.state


def _path(run: Run, cut: Cut) -> Path:
    key = digest("middle", run.digest, cut.stage, cut.step)[:32]
    return run.files.inside(f"results/halves/{key}.json")


def _keep_checks(run: Run, made: Run, cut: Cut) -> None:
    """What came of replaying the other stages as recorded, which the cut leaves as they were."""
    there = {(check.stage, check.machine) for check in checks(made)}
    for check in checks(run):
        if check.stage != cut.stage and (check.stage, check.machine) not in there:
            own = check.model_copy(update={"run_digest": made.digest})
            write_json(check_path(made, "replay-check", check.stage, check.machine), own)


def _keep_timings(run: Run, made: Run, cut: Cut) -> None:
    """What stages were measured to take, with the cut one's seconds shared out by steps."""
    known = stored_timings(run)
    if known is None or stored_timings(made) is not None:
        return
    stages = dict(known.stages)
    if (whole := stages.pop(cut.stage, None)) is not None:
        steps = run.stage(cut.stage).steps
        for name in names_of_parts(cut, steps):
            share = made.stage(name).steps / steps
            stages[name] = whole.model_copy(update={"seconds": share * whole.seconds, "cheap": {}})
    keep_timings(made, Timings(**{**dict(known), "run_digest": made.digest, "stages": stages}))
