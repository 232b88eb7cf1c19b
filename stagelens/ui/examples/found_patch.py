"""How much of an image's map lies in the patch that was found over the whole set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stagelens.analyses.saliency.concentration import share_of
from stagelens.analyses.saliency.map_table import Map
from stagelens.analyses.spurious.grids import Patch
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components
from stagelens.ui.reading.found_features import found_features
from stagelens.ui.reading.loaders import Effects


def beside_the_map(workspace: Workspace, effects: Effects, stage: str, maps: Sequence[Map]) -> None:
    """What the page Spurious features says of a stage, in terms of these maps; else nothing."""
    found = found_features(workspace.at, workspace.examples.name, effects.sources[stage])
    if found is None or not maps:
        return
    rows = found.table
    rows = rows[(rows["stage"] == stage) & (rows["kind"] == "patch") & rows["passes"].eq(True)]
    if rows.empty or any(one.stage.shape != found.facts.shape for one in maps):
        return
    best = rows.loc[rows["difference"].abs().idxmax()]
    patch = Patch(*(int(best[name]) for name in ("top", "left", "height", "width")))
    inside = np.zeros(maps[0].stage.shape, dtype=bool)
    inside[patch.top : patch.top + patch.height, patch.left : patch.left + patch.width] = True
    shares = [share_of(one.stage, inside) for one in maps]
    if np.isnan(shares).all():
        return
    whose = "its map" if len(maps) == 1 else "these maps"
    components.text_block(
        f"The {patch.name}, which stands out of the whole set (Spurious features, Found without "
        f"metadata), has {100 * float(np.nanmean(shares)):.0f} % of {whose} and is "
        f"{100 * float(inside.mean()):.0f} % of the pixels. What stands out over many images need "
        "not carry the effect on each of them.",
        muted=True,
    )
