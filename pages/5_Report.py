"""Report: pinned findings in order, with their notes, and their export."""

from __future__ import annotations

from stagelens.ui import components, findings
from stagelens.ui.workspace import open_workspace

workspace = open_workspace("Report", effects=False)
if workspace is not None:
    with components.errors_told():
        findings.heading(workspace)
        found = findings.read(workspace)
        findings.export(workspace, found)
        findings.listed(workspace, found)
        findings.taken_out(workspace, found)
