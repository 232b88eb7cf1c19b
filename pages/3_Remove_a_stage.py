"""Remove a stage: take it out of the weights, see what that does, and save the edited model."""

from __future__ import annotations

from stagelens.ui.opening.workspace import nothing_measured, open_workspace
from stagelens.ui.pieces import components
from stagelens.ui.removal import sections

workspace = open_workspace(
    "Remove a stage",
    unused={
        "measure": "This page shows all behaviours.",
        "stage": "This page shows all stages.",
    },
)
if workspace is not None:
    with components.errors_told():
        sections.heading(workspace)
        if workspace.effects is None:
            nothing_measured(workspace)
        elif not workspace.computable:
            sections.nothing_computable()
        else:
            sections.removal_controls(workspace, workspace.effects)
