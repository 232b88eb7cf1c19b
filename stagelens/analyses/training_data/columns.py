"""What a file says of a stage's training examples: where they are from, who labelled them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from stagelens.contracts import RunError
from stagelens.runs import fact_tables
from stagelens.runs.example_content import content_digest
from stagelens.runs.run import Run, Stage
from stagelens.runs.sets.columns import SetColumns
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.sets.readers import read_set_file
from stagelens.runs.sets.writer import write_set

from .tables import ColumnFacts, columns_path

_BATCH = 256


def add_columns(
    run: Run, stage: Stage, rows: pd.DataFrame, file: Path, columns: SetColumns
) -> ColumnFacts:
    """Join the columns of a file to a stage's training examples, and store them.

    The file holds training data in the form of an evaluation set. Recorded batches have no ids, so
    a row of it is an example of the stage if a model would see the same input; where several
    examples have that input, the one with the row's label.

    Args:
        run: The run.
        stage: One of its stages.
        rows: Its examples, as :func:`stagelens.runs.training_rows.training_rows` lists them.
        file: Any file that ``add-set`` takes.
        columns: Which of its columns play which role.

    Raises:
        SetError: The file cannot be read.
        RunError: The task cannot show training data, or no row is an example of the stage.
    """
    content = read_set_file(file, columns, needs_labels=False)
    with TemporaryDirectory() as folder:
        write_set(folder, run.task, "given", **content)
        given = EvaluationSet.open(Path(folder), "given")
        table = given.table()
        digests: list[str] = []
        for batch in given.batches(_BATCH):
            shown = run.task.examples(run.task.collate(batch))
            if shown is None:
                raise RunError(
                    f"task {run.task.name!r} cannot show training data, so rows of {file} cannot "
                    "be told apart; define examples(batch)"
                )
            digests += [content_digest(one) for one in shown]
    table.insert(0, "content", digests)
    own = [name for name in table.columns if name not in ("content", "label", "example_id")]
    if not own:
        raise RunError(f"{file} has no columns besides inputs, labels and ids")
    of_label = table.drop_duplicates(["content", "label"]).drop(columns="example_id")
    found = rows[["example_id", "content", "label"]].merge(
        of_label, on=["content", "label"], how="left", indicator=True
    )
    # Without a label of its own, or under another one, the input alone has to do.
    missing = (found.pop("_merge") != "both").to_numpy()
    of_input = table.drop_duplicates("content").set_index("content")[own]
    found.loc[missing, own] = of_input.reindex(found["content"][missing]).to_numpy()
    known = set(rows["content"])
    unmatched = int((~table["content"].isin(known)).sum())
    if unmatched == len(table):
        raise RunError(
            f"no row of {file} is a training example of stage {stage.name!r}; give the data that "
            "the stage was trained on"
        )
    facts = ColumnFacts(
        run_digest=run.digest, stage=stage.name, source=file.name, unmatched=unmatched
    )
    fact_tables.write(
        columns_path(run, stage.name), found[["example_id", *own]].convert_dtypes(), facts
    )
    return facts
