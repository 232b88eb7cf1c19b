"""Which training examples of a stage are nearly the same."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stagelens.analyses.training_data.computing import duplicates_of
from stagelens.contracts import ProgressCallback, no_progress
from stagelens.runs.run import Run
from stagelens.runs.training_rows import training_rows


def near_duplicates(
    run: Run, stage_name: str, progress: ProgressCallback = no_progress
) -> Mapping[str, int]:
    """Example to the number of its group, for those that are like another one of their stage.

    Alike are the same input with another label, and texts or images nearly the same; the same input
    with the same label is one example. What is like the same one is in one group: that is how
    corpora are rid of near duplicates, because of a hundred texts from one template each has only
    its nearest ones named.

    Args:
        run: The run.
        stage_name: The stage.
        progress: Called while they are compared.

    Raises:
        RunError: There is no such stage, or its batches are not at hand.
    """
    _, found = duplicates_of(run, stage_name, progress)
    rows = training_rows(run, run.stage(stage_name))
    own = found[(found["stage"] == stage_name) & (found["where"] == "stage")]
    own = own[own["place"] == stage_name]
    one = own["example_id"].map(rows.numbers).to_numpy(np.int64)
    other = own["other_id"].map(rows.numbers).to_numpy(np.int64)
    # The first example with an input stands for all with that input.
    content = rows.table["content"]
    first = content.map({name: row for row, name in reversed([*enumerate(content)])})
    one = np.concatenate([one, np.arange(len(rows))])
    other = np.concatenate([other, first.to_numpy(np.int64)])
    shape = (len(rows), len(rows))
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape)
    _, groups = connected_components(graph, directed=False)
    sizes = np.bincount(groups)
    return {
        str(name): int(group)
        for name, group in zip(rows.table["example_id"], groups, strict=True)
        if sizes[group] > 1
    }
