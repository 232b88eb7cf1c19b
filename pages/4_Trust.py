"""Trust: the numbers in use, estimates against replay, noise, draws, costs, and promises."""

from __future__ import annotations

from stagelens.ui.opening.workspace import open_workspace
from stagelens.ui.pieces import components
from stagelens.ui.trust import (
    calibration,
    costs,
    draws,
    first_order,
    in_use,
    scores,
    sections,
    stages,
    verifying,
)

_UNUSED = {
    "by": "This page shows all examples, or one slice.",
    "group": "This page shows all examples, or the slice that is chosen below.",
    "stage": "This page shows all stages.",
    "estimator": "What is compared with replay is chosen below.",
}

workspace = open_workspace("Trust", effects=False, unused=_UNUSED, scores=True)
if workspace is not None:
    with components.errors_told():
        sections.heading(workspace)
        in_use.numbers_in_use(workspace)
        scores.scores(workspace)
        view = sections.choose(workspace)
        if view is None:
            verifying.nothing_yet(workspace)
            first_order.of_training_data(workspace)
            calibration.what_promises_are_worth(workspace)
            verifying.verification_form(workspace)
        else:
            sections.against_replay(view, scores.compared_on(workspace, view.behaviour.name))
            stages.each_stage(workspace, view)
            stages.noise(workspace, view)
            draws.draws(workspace, view)
            costs.every_estimate(workspace, view)
            first_order.of_training_data(workspace)
            calibration.what_promises_are_worth(workspace)
            verifying.verification_form(workspace)
