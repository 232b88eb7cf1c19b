"""The derivative of a behaviour in the weight of training examples, by replays."""

from __future__ import annotations

from stagelens.analyses.contributions.contribution_table import Stored
from stagelens.analyses.contributions.first_order import behaviour_gradient
from stagelens.analyses.without_data.chosen import Chosen
from stagelens.derivatives.trajectory import DerivativeOptions, LinearStage, active_names
from stagelens.replaying.left_out import Divisor, RowsOfStage, replay_without_rows
from stagelens.runs.run import Run
from stagelens.runs.training_rows import training_rows

STEP = 1e-5


def by_replays(run: Run, stored: Stored, chosen: Chosen, divisor: Divisor) -> float:
    """The derivative of the behaviour in the examples' weight, where it is 1."""
    last = LinearStage(run, run.last, active_names(run, [run.last]), DerivativeOptions("float64"))
    asked = run.evaluation_set("test").examples()
    _, gradient = behaviour_gradient(run, last, stored.facts.behaviour.name, asked)
    stage = run.stage("first")
    places, rows = (
        training_rows(run, stage).places(chosen.ids),
        RowsOfStage(run.task, stage, divisor),
    )
    # One-sided and of second order, because no weight is above 1.
    total = 0.0
    for factor, weight in ((3.0, 1.0), (-4.0, 1 - STEP), (1.0, 1 - 2 * STEP)):
        found = replay_without_rows(run, stage, places, divisor, rows=rows, weight=weight)
        model = found.state.model
        total += factor * sum(float((t * model[name]).sum()) for name, t in gradient.items())
    return total / (2 * STEP)
