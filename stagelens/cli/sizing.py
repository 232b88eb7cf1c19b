"""The command that says what a run weighs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from stagelens.compute.memory import amount
from stagelens.estimators.counterfactual_cache import LIMIT
from stagelens.runs.lineage import NEWEST
from stagelens.runs.sizes import MODELS, sizes

from .options import RunFolder, TaskOption, opened_with
from .terminal import Table, print_table, say

commands = typer.Typer()


@commands.command(epilog="Example: stagelens size runs/digits")
def size(
    run: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print the sizes as JSON.")] = False,
    task: TaskOption = None,
) -> None:
    """Say what weighs what in a run folder, and what of it can go."""
    opened = opened_with(run, task, leaf=NEWEST)
    found = sizes(opened)
    if as_json:
        say(json.dumps([asdict(each) for each in found], indent=1))
        return
    total = sum(each.bytes for each in found)
    printed = Table(title=f"{opened.name}: {amount(total)}")
    for head in ("where", "what"):
        printed.add_column(head)
    printed.add_column("size", justify="right")
    printed.add_column("can go")
    for each in found:
        printed.add_row(each.where, each.what, amount(each.bytes), each.can_go or "no")
    print_table(printed)
    if any(each.what == MODELS for each in found):
        say(f"{LIMIT}=20GB, for instance, deletes {MODELS} that were not used for longest.")
