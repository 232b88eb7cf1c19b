"""Overview: a run's stages, and what each is to credit or to blame for."""

from __future__ import annotations

from stagelens.ui import components, overview, slicing, story
from stagelens.ui.workspace import nothing_measured, open_workspace

workspace = open_workspace("Overview")
if workspace is not None:
    with components.errors_told():
        overview.heading(workspace)
        effects = workspace.effects
        if effects is None:
            nothing_measured(workspace)
            overview.time_line(workspace, None)
        else:
            story.tell(workspace, effects)
            behaviour, by, group = overview.choose(workspace, effects)
            overview.headlines(workspace, effects, behaviour, by, group)
            overview.credit_and_blame(workspace, effects, behaviour, by, group)
            overview.time_line(workspace, behaviour)
            slicing.section(workspace, effects, behaviour)
