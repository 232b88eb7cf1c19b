"""Where maps have most, in words; how they are drawn; and the command that makes them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from stagelens.analyses.saliency.concentration import (
    densest_patch,
    densest_word,
    share_of,
    where_most,
)
from stagelens.charts.saliency import pixel_maps, token_maps
from stagelens.cli import app
from stagelens.contracts import Behaviour, StageLensError
from tests.support.saliency_maps import image_map, text_map

MARGIN = Behaviour("margin", "higher", "nats")
LOSS = Behaviour("loss", "lower", "nats")


def test_the_densest_patch_is_named_by_its_place() -> None:
    one = image_map().stage
    found = densest_patch([one, 2 * one, np.zeros((8, 8))])
    assert found is not None and found.name == "rows 0–1, columns 6–7 (top right)"
    assert (found.share, found.expected, found.count) == (1.0, 4 / 64, 2)
    assert densest_patch([np.zeros((8, 8))]) is None
    assert densest_patch([one, np.ones((4, 4))]) is None
    assert share_of(np.array([3.0, -1.0]), np.array([False, True])) == 0.25
    assert np.isnan(share_of(np.zeros(2), np.array([True, False])))


def test_a_token_counts_by_what_it_has_more_than_its_places() -> None:
    tokens = [["The", " dog", " the", " the"], ["the", " the", " the", " cat"]]
    maps = [np.array([1.0, -9.0, 0.0, 0.0]), np.array([1.0, 1.0, 1.0, 1.0])]
    found = densest_word(tokens, maps)
    assert found is not None and found.name == "dog"
    assert (found.share, found.expected, found.count) == (0.9, 0.25, 1)
    said = where_most(
        [text_map(tuple(t), list(m)) for t, m in zip(tokens, maps, strict=True)],
        *("sft", MARGIN, None),
    )
    assert str(said).startswith(
        "In the only one of these 2 texts that has it, 90 % of the effect of sft"
    )


def test_three_maps_have_one_range_about_zero_and_their_sign() -> None:
    chart = pixel_maps(image_map(), "data:image/png;base64,", MARGIN, "<i>bad", height=200)
    figure = json.loads(chart.figure.to_json())
    colors = figure["layout"]["coloraxis"]
    assert (colors["cmin"], colors["cmax"]) == (-2.0, 2.0)
    assert colors["colorbar"]["ticktext"] == ["▼ −2.00", "0", "▲ +2.00"]
    texts = [np.array(trace["customdata"]) for trace in figure["data"]]
    assert texts[2][0, 7] == "row 0, column 7: −1.50 (▼ blame)"
    assert texts[0][4, 4] == "row 4, column 4: +2.00 (better)"
    assert np.array(figure["data"][2]["text"])[0, 7] == "−"
    assert figure["layout"]["annotations"][1]["text"] == "without &lt;i&gt;bad"
    assert "100 % of it, by size, lies in rows 0–1, columns 6–7" in chart.alt
    assert "blame, 1.50" in chart.alt
    loss = pixel_maps(image_map(), "", LOSS, "bad")
    assert "credit, 1.50" in loss.alt  # less loss is better
    ends = json.loads(loss.figure.to_json())["layout"]["coloraxis"]["colorbar"]["ticktext"]
    assert ends == ["▼ −2.00", "0", "▲ +2.00"]
    assert chart.rows is not None and len(chart.rows) == 64


def test_large_images_are_drawn_in_cells_that_keep_the_sum() -> None:
    one = image_map((200, 130), (7, 7))
    chart = pixel_maps(one, "", MARGIN, "bad")
    assert chart.rows is not None and len(chart.rows) <= 64 * 64
    assert chart.rows["effect of bad"].sum() == pytest.approx(one.total)
    spot = chart.rows.loc[chart.rows["effect of bad"].idxmin()]
    assert (spot["row"], spot["column"]) == (4, 4)  # cells of 4 x 4


def test_tokens_are_shaded_three_times_and_escaped() -> None:
    markup = token_maps(text_map(("<script>", " dog"), [-2.0, 0.5]), MARGIN, "<u>sft")
    assert markup.html.count("&lt;script&gt;</bdi>") == 3 and "<script" not in markup.html
    assert "without &lt;u&gt;sft" in markup.html and "<u>" not in markup.html
    assert "most in '<script>' (blame, 2.00)" in markup.alt


def test_the_command_prints_sums_and_where_most_lies(text_runs: Path, tmp_path: Path) -> None:
    path = shutil.copytree(text_runs / "comments", tmp_path / "comments")
    command = ["saliency", str(path), "--set", "test", "--stage", "general", "--example"]
    done = CliRunner().invoke(app, [*command, "0", "--example", "3", "--baseline", "padding"])
    assert done.exit_code == 0, done.output
    assert "Where the effect of general on the margin sits" in done.output
    assert re.search(r"texts?,? .*% of the effect of general on the margin", done.output)
    wrong = CliRunner().invoke(app, [*command, "nobody"])
    assert isinstance(wrong.exception, StageLensError) and "nobody" in str(wrong.exception)
    wrong = CliRunner().invoke(app, [*command, "0", "--baseline", "mask"])
    assert isinstance(wrong.exception, StageLensError) and "use padding" in str(wrong.exception)
