"""Regression gate: did a slice get worse since another run or leaf, and which stage did it?"""

from __future__ import annotations

from stagelens.ui.gate import sections
from stagelens.ui.opening.workspace import open_workspace
from stagelens.ui.pieces import components

workspace = open_workspace("Regression gate", effects=False, unused=None, scores=True)
if workspace is not None:
    with components.errors_told():
        sections.gate_page(workspace)
