"""Trust: estimates against replay, what each costs, and the noise of training itself."""

from __future__ import annotations

from stagelens.ui import components, costs, trust, verifying
from stagelens.ui.workspace import open_workspace

workspace = open_workspace("Trust", effects=False)
if workspace is not None:
    with components.errors_told():
        trust.heading(workspace)
        view = trust.choose(workspace)
        if view is None:
            verifying.nothing_yet(workspace)
            verifying.panel(workspace)
        else:
            trust.stages(workspace, view)
            trust.noise(workspace, view)
            costs.every_estimate(workspace, view)
            verifying.panel(workspace)
