"""The chosen examples as others take them: row numbers for ``datasets`` and PyTorch, and places."""

from __future__ import annotations

import pandas as pd

from stagelens.contracts import StageLensError
from stagelens.runs.training_rows import TrainingRows


def row_numbers(kept: pd.DataFrame, stage: str) -> list[int]:
    """Numbers of the chosen examples in the data set that the stage was recorded with.

    An example that the data set has several times has all its rows there: the choice is of
    examples, and leaves how often each is trained on as it was.

    Args:
        kept: Rows of ``ranked.COLUMNS``, the most helpful first.
        stage: The stage's name, for the error.

    Returns:
        Row numbers from 0, the most helpful examples' first, each once.

    Raises:
        StageLensError: The stage's batches were recorded as tensors, so rows are not known.
    """
    if kept["rows"].isna().any():
        raise rows_unknown(stage)
    return list(dict.fromkeys(int(row) for rows in kept["rows"] for row in str(rows).split()))


def rows_unknown(stage: str) -> StageLensError:
    """That the examples of a stage have no row numbers, and what to do."""
    return StageLensError(
        f"the rows of stage {stage!r} in a data set are not known, because its batches were "
        "recorded as they are; record it with dataset=DATA and rows=[...] (docs/recording.md), or "
        "take ids and places"
    )


def with_places(kept: pd.DataFrame, rows: TrainingRows | None) -> pd.DataFrame:
    """The chosen examples with where each stands in the recorded batches.

    Where a stage was recorded by tensors, this is all that says which examples of somebody's own
    data they are: batch by batch, in the order of training.

    Args:
        kept: Rows of ``ranked.COLUMNS``.
        rows: The stage's examples; None where they are not listed, which leaves the first use.

    Returns:
        The same with ``step`` and ``position``, those of the first use, from 0, positions over the
        micro-batches of a step; and ``places``, all uses as ``step-position``, with blanks between.
    """
    first = kept["example_id"].astype(str).str.split("-", expand=True).astype("int64")
    places = kept["example_id"].astype(str)
    if rows is not None:
        table = rows.table.set_index("example_id")
        uses = zip(table["steps"], table["positions"], strict=True)
        every = [" ".join(f"{int(s)}-{int(p)}" for s, p in zip(*use, strict=True)) for use in uses]
        places = places.map(pd.Series(every, index=table.index.astype(str)))
    return kept.assign(step=first[0], position=first[1], places=places)


def snippet(file_name: str) -> str:
    """Python that reads the row numbers, and trains on these rows with either library.

    Args:
        file_name: Of the JSON file that :func:`row_numbers` is written to.
    """
    return (
        "import json\n"
        "\n"
        f"with open({file_name!r}) as file:\n"
        "    rows = json.load(file)\n"
        "\n"
        "# datasets\n"
        "kept = data.select(rows)\n"
        "\n"
        "# PyTorch\n"
        "from torch.utils.data import DataLoader, SubsetRandomSampler\n"
        "\n"
        "loader = DataLoader(data, batch_size=32, sampler=SubsetRandomSampler(rows))\n"
    )
