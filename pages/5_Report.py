"""Report: pinned findings in order, with their notes, and their export."""

from __future__ import annotations

from stagelens.ui.opening.workspace import open_workspace
from stagelens.ui.pieces import components
from stagelens.ui.report import cover, dossier, sections

# A finding shows what was chosen when it was pinned.
workspace = open_workspace("Report", effects=False, unused=None)
if workspace is not None:
    with components.errors_told():
        sections.heading(workspace)
        found = sections.read(workspace)
        sections.export(workspace, found, cover.section(workspace))
        dossier.section(workspace)
        sections.listed(workspace, found)
        sections.taken_out(workspace, found)
