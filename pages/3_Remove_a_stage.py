"""Remove a stage: take it out of the weights, see what that does, and save the edited model."""

from __future__ import annotations

from stagelens.ui import components, removing
from stagelens.ui.workspace import nothing_measured, open_workspace

workspace = open_workspace("Remove a stage")
if workspace is not None:
    with components.errors_told():
        removing.heading(workspace)
        if workspace.effects is None:
            nothing_measured(workspace)
        elif not workspace.computable:
            removing.nothing_computable()
        else:
            removing.panel(workspace, workspace.effects)
