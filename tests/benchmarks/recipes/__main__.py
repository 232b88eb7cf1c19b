"""What can be recorded of trainings as people write them, and how a replay compares.

One command prints the table::

    python -m tests.benchmarks.recipes [--only WORD ...] [--out docs/recipes.md]

Every recipe is recorded, every stage is replayed, and the model is really trained again without
the first stage, to hold the replayed counterfactual against. Further families of recipes are
listed in ``FAMILIES``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.benchmarks.recipes import adapter_recipes, trl_recipes
from tests.benchmarks.recipes.recipe import Outcome, Recipe, measure

FAMILIES: Sequence[Callable[[], list[Recipe]]] = (trl_recipes.recipes, adapter_recipes.recipes)


TITLE = """# Recipes: what is recorded, and how a replay compares

This table is for people who want to know whether a training like theirs can be recorded. It is made
by `python -m tests.benchmarks.recipes --out docs/recipes.md`, on the CPU, with small random models
and few steps. Every recipe is a stage of supervised fine-tuning and the stage that it names (reward
models: another stage of their own), and both are recorded. *Exact*: every stage replays bit for
bit. *Estimated*: a stage does not, or what lies between two stages cannot be repeated to the bit,
and the trust says so. *On recorded samples*: every stage replays bit for bit, but the model without
the first stage would have sampled other answers, which is why the last column differs from zero
there: it is how far the replayed model without the first stage is from one really trained without
it, as a share of how far that one moved. *Told*: the product says what
cannot be replayed, in these words, and training goes on.

"""


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a Markdown table."""
    lines = [
        "| recipe | | replay | without the first stage, against really training so |",
        "|---|---|---|---|",
    ]
    for one in outcomes:
        said = f"{one.verdict}: {one.told}" if one.told else one.verdict
        lines.append(f"| {one.recipe} | {said} | {_number(one.replay)} | {_number(one.without)} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return "bit for bit" if value == 0 else f"{value:.1e}"


def counted(outcomes: Sequence[Outcome]) -> str:
    """How many recipes had which outcome, in words."""
    counts = Counter(one.verdict for one in outcomes)
    kinds = ("exact", "estimated", "on recorded samples", "told", "not trained", "wrong")
    said = ", ".join(f"{kind} {counts[kind]}" for kind in kinds)
    return f"{len(outcomes)} recipes: {said}."


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="recipes with one of these words")
    parser.add_argument("--out", type=Path, help="a Markdown file to write")
    given = parser.parse_args()
    outcomes = []
    for recipe in [recipe for family in FAMILIES for recipe in family()]:
        if given.only and not any(word.lower() in recipe.name.lower() for word in given.only):
            continue
        with tempfile.TemporaryDirectory() as folder:
            outcomes.append(measure(recipe, Path(folder) / "work"))
        print(table(outcomes[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    text = f"{table(outcomes)}\n\n{counted(outcomes)}\n"
    print(text)
    if given.out is not None:
        given.out.write_text(TITLE + text, "utf-8")


if __name__ == "__main__":
    main()
