"""Derivatives of a whole replay in float64, by its differences."""

from __future__ import annotations

from stagelens.runs.run import Run, Stage

from .small_runs import Flat, crossed, flat, moved, replay


def final_values(run: Run, stage: Stage, reading: str, step: float) -> Flat:
    """The final values where the stage's jump, or its strength, is ``step`` larger."""
    later = run.stages[stage.index + 1 :]
    if reading == "scale":
        state = replay(run, stage, flat(stage, stage.start()), 1 + step)
        if later:
            state = crossed(state, later[0])
    elif later:
        end, start = (flat(later[0], own) for own in (stage.end(), stage.start()))
        ends = (crossed(moved(start, end, share), later[0]) for share in (0.0, 1.0))
        state = moved(*ends, 1 + step)
    else:
        state = moved(flat(stage, stage.start()), flat(stage, stage.end()), 1 + step)
    for number, other in enumerate(later):
        state = replay(run, other, state if number == 0 else crossed(state, other))
    return {k.removeprefix("value/"): t for k, t in state.items() if k.startswith("value/")}


def central_difference(run: Run, stage: Stage, reading: str, step: float = 2e-7) -> Flat:
    """The derivative of the final values by central differences of the whole replay."""
    up, down = (final_values(run, stage, reading, sign * step) for sign in (1, -1))
    return {name: (up[name] - down[name]) / (2 * step) for name in up}
