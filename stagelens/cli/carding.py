"""The command that makes a picture of one example to share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stagelens.contracts import StageLensError
from stagelens.effects.results import stored_results
from stagelens.runs.files import atomic_path, check_writable

from .options import LeafOption, RunFolder, SetOption, opened_with
from .terminal import say

commands = typer.Typer()


@commands.command(
    epilog="Examples: stagelens card runs/digits --set test --example stamped-133 --out card.png   "
    "stagelens card runs/digits --example stamped-133 --stage shortcut --out card.html"
)
def card(
    run: RunFolder,
    example: Annotated[str, typer.Option(metavar="ID", help="Id of an example of the set.")],
    out: Annotated[Path, typer.Option(help="A .png file, 1200 by 630 pixels, or a .html file.")],
    set_name: SetOption = None,
    leaf: LeafOption = None,
    behaviour: Annotated[
        str | None, typer.Option(help="What the bars measure; by default the first measured.")
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(
            help="The stage that the card is about; by default the one most to blame for the "
            "answer, or of the largest effect."
        ),
    ] = None,
    address: Annotated[
        str,
        typer.Option(
            metavar="URL", help="Where your dashboard is served, for the link on the card."
        ),
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Make a blame card: what the model says on one example, and would say without a stage.

    It shows the best stored effects, and where in the input the stage's effect sits if that was
    computed: stagelens saliency.
    """
    if out.suffix not in (".png", ".html"):
        raise StageLensError(f"{out}: name the file .png or .html")
    if out.exists() and not force:
        raise StageLensError(f"{out} already exists; give another name, or --force")
    check_writable(out)
    opened = opened_with(run, None)
    examples = opened.evaluation_set(set_name)
    if not stored_results(opened, examples.name):
        raise StageLensError(
            f"nothing has been measured on set {examples.name}; first: stagelens attribute {run} "
            f"--set {examples.name}"
        )
    from stagelens.report.card.content import link_to, stored_card
    from stagelens.report.card.page import as_html
    from stagelens.report.card.picture import as_png

    link = link_to(
        opened.path.name, examples.name, example, behaviour, address, str(run), opened.leaf
    )
    made = stored_card(opened, examples.name, example, behaviour, stage, link)
    content = as_png(made) if out.suffix == ".png" else as_html(made).encode()
    with atomic_path(out) as temporary:
        temporary.write_bytes(content)
    say(f"{out}: {made.title} ({len(content) / 1e3:.0f} kB)")
