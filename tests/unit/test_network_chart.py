"""The map of a network: order, colours, signs, and nothing that acts as markup."""

from __future__ import annotations

import pandas as pd
import pytest

from stagelens.analyses.network.block_table import REST
from stagelens.charts.network import network_map
from stagelens.charts.style import BLAME, CREDIT, NEITHER, see_through
from stagelens.contracts import Behaviour
from tests.support.stage_trust import UNSURE

LOSS = Behaviour("loss", "lower")
MARGIN = Behaviour("margin", "higher")


def rows(*effects: tuple[str, str | None, float], spread: float = 0.1) -> pd.DataFrame:
    made = pd.DataFrame(
        [
            {"block": name, "kind": "MLP", "layer": layer, "effect": effect,
             "low": effect - spread, "high": effect + spread, "moved": float(effect != 0)}
            for name, layer, effect in (*effects, (REST, None, 0.5))
        ]
    )  # fmt: skip
    made.loc[made["block"] == REST, "moved"] = float("nan")
    return made


def colour(html: str, name: str) -> str:
    before = html[: html.index(f">{name}</span>")]
    return before[before.rindex("--tint:") :].split(";")[0].removeprefix("--tint:")


@pytest.mark.parametrize(("behaviour", "up"), [(MARGIN, CREDIT), (LOSS, BLAME)])
def test_credit_is_blue_and_blame_orange_by_the_behaviours_own_direction(
    behaviour: Behaviour, up: str
) -> None:
    table = rows(("head", None, 2.0), ("conv", None, -1.0))
    drawn = network_map(table, 1.5, "tuned", behaviour, None).html
    down = {CREDIT: BLAME, BLAME: CREDIT}[up]
    assert colour(drawn, "head") == see_through(up, 0.42)
    assert colour(drawn, "conv") == see_through(down, 0.21)
    assert colour(drawn, REST) == see_through(NEITHER, 0.42 * 0.25)
    assert drawn.index(">head<") < drawn.index(">conv<") < drawn.index(f">{REST}<")


def test_what_is_not_clear_is_neither_credit_nor_blame() -> None:
    table = rows(("head", None, 2.0), spread=3.0)
    drawn = network_map(table, 2.0, "tuned", MARGIN, None).html
    assert colour(drawn, "head").startswith(see_through(NEITHER, 1).rpartition(",")[0])
    assert "± 2.00" in drawn
    unsure = network_map(rows(("head", None, 2.0)), 2.0, "tuned", MARGIN, UNSURE)
    assert CREDIT not in unsure.html and "± 2.00" in unsure.html


def test_the_blocks_of_a_layer_are_one_column_and_named_within_it() -> None:
    table = rows(("embedding", None, 1.0), ("layer 0 MLP", "layer 0", 2.0),
                 ("layer 0 norms", "layer 0", 0.0))  # fmt: skip
    drawn = network_map(table, 3.5, "tuned", MARGIN, None, chosen=1, clickable=True)
    assert drawn.html.count("class='column") == 3 and "nan" not in drawn.html
    assert ">MLP</span>" in drawn.html and "unchanged" in drawn.html
    assert drawn.html.count("<button type='button' class='box") == 3
    # The layer's name leads to the strongest of its blocks.
    assert "data-block='1' title='layer 0: its strongest block, layer 0 MLP'" in drawn.html
    assert "<button" not in network_map(table, 3.5, "tuned", MARGIN, None).html
    assert "data-block='1' aria-pressed='true'" in drawn.html
    assert drawn.alt == (
        "Where in the network tuned changes the margin, 3.50 credit in all: layer 0 MLP 2.00 "
        "credit, embedding 1.00 credit, layer 0 norms 0."
    )


def test_names_from_a_model_are_no_markup() -> None:
    table = rows(("<b onclick='x'>", "<i>", 1.0))
    drawn = network_map(table, 1.5, "<script>", MARGIN, None, clickable=True).html
    assert "<b onclick" not in drawn and "<script" not in drawn and "<i>" not in drawn
