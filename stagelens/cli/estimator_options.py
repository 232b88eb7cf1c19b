"""Options of commands that compute models without a stage, or have them answer."""

from __future__ import annotations

from typing import Annotated

import typer

OnlyStagesOption = Annotated[
    list[str] | None, typer.Option(help="Only this stage; may be given several times.")
]
ModelsWithoutOption = Annotated[
    str | None,
    typer.Option(
        help="How the models without a stage are obtained; by default replay where steps are "
        "recorded, else task-vector."
    ),
]
CounterfactualOption = Annotated[
    str | None,
    typer.Option(
        help="How the counterfactual is obtained; by default replay where it has come to every "
        "stage that is meant, else coarse-replay where steps are recorded, else task-vector."
    ),
]
StopOption = Annotated[
    list[str] | None,
    typer.Option(help="A text that ends an answer, \\n for a line's end; several times."),
]
