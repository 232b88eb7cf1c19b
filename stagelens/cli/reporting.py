"""The command that writes a report."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from stagelens.contracts import StageLensError
from stagelens.effects.results import stored_results
from stagelens.runs.files import atomic_path, check_writable
from stagelens.runs.run import Run

from .options import LeafOption, ProgressFile, RunFolder, SetOption, TaskOption, opened_with
from .terminal import Reporter, say

commands = typer.Typer()

Charts = Literal["interactive", "static"]


@commands.command(
    epilog="Examples: stagelens report runs/digits --out report.html   "
    "stagelens report runs/digits --set test --out report.html --charts static --force"
)
def report(
    run: RunFolder,
    out: Annotated[
        Path,
        typer.Option(help="A .html file, or .csv or .json for the rows behind the report."),
    ],
    set_name: SetOption = None,
    charts: Annotated[
        Charts,
        typer.Option(
            help="How charts of a .html file are drawn: interactive ones bring plotly.js along "
            "(up to 2.5 MB); static ones are pictures that need no script (up to 1 MB)."
        ),
    ] = "interactive",
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    leaf: LeafOption = None,
    task: TaskOption = None,
    progress: ProgressFile = None,
) -> None:
    """Write a report that opens anywhere: what stands out, every chart, and the pinned findings.

    One HTML file that needs no network and no StageLens. Where nothing has been measured on the
    set yet, its stages are attributed first, as by ``stagelens attribute``.
    """
    from stagelens.report.page import Report, as_html
    from stagelens.report.rows import as_csv, as_json
    from stagelens.report.sections import whole_report

    writers: dict[str, Callable[[Report], bytes]] = {
        ".html": partial(as_html, charts=charts),
        ".csv": as_csv,
        ".json": as_json,
    }
    if out.suffix not in writers:
        raise StageLensError(f"{out}: name the file .html, .csv or .json")
    if out.exists() and not force:
        raise StageLensError(f"{out} already exists; give another name, or --force")
    # Better now than after measuring a whole set.
    check_writable(out)
    with Reporter(progress).running() as told:
        opened = opened_with(run, task)
        _ = opened.last  # a run without a finished stage is refused as such, not for its sets
        examples = opened.evaluation_set(set_name)
        if not stored_results(opened, examples.name):
            _measure(opened, examples.name, told)
        told(1.0, "Writing the report")
        made, problems = whole_report(opened, examples.name)
        content = writers[out.suffix](made)
    for problem in (*opened.problems, *problems):
        say(f"Note: {problem}", err=True)
    with atomic_path(out) as temporary:
        temporary.write_bytes(content)
    say(f"{out}: {len(made.findings)} findings, {len(content) / 1e6:.1f} MB")


def _measure(run: Run, set_name: str, told: Reporter) -> None:
    from stagelens.effects import computing
    from stagelens.trust.settling import settle

    computing.boundaries(run, set_name)
    settle(run, set_name, progress=told)
