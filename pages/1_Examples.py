"""Examples: filter, sort and page through a set by stage effect; open one of them."""

from __future__ import annotations

from stagelens.ui import examples, filters
from stagelens.ui.workspace import nothing_measured, open_workspace

workspace = open_workspace("Examples")
if workspace is not None:
    examples.heading(workspace)
    effects = workspace.effects
    if effects is None:
        nothing_measured(workspace)
    else:
        chosen = filters.choose(workspace, effects)
        filters.count_and_export(workspace, effects, chosen)
        examples.browser(workspace, effects, chosen)
