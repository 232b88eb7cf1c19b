"""Blame cards: which stage they are about, what they say, and that nothing from data acts."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stagelens.contracts import Behaviour, SetError
from stagelens.report.card.content import (
    Bar,
    Card,
    Said,
    leading,
    link_to,
    make_card,
    stored_card,
)
from stagelens.report.card.page import as_html
from stagelens.report.card.pen import Pen, font_for
from stagelens.report.card.picture import BLAME, CREDIT, SIZE, as_png, blended
from stagelens.runs.run import open_run
from stagelens.wording.sentences import Part, Sentence
from tests.conftest import DemoRun
from tests.support.stage_trust import EXACT, UNSURE
from tests.unit.conftest import Command

MARGIN = Behaviour("margin", "higher", "nats")


def picture(side: int = 8) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((side, side), 128, np.uint8)).save(out, "PNG")
    return out.getvalue()


def card(**changed: object) -> Card:
    made = Card(
        run="digits",
        digest="a" * 64,
        set_name="test",
        example_id="stamped-1",
        label="9",
        stage="shortcut",
        place=1,
        opening="says",
        final=Said("3", False),
        without=Said("9", True),
        sentence=Sentence((Part("Without "), Part("shortcut", "stage"), Part(", it would be 9."))),
        bars=(Bar("pretrain", 2.0, "▲ 2.00"), Bar("shortcut", -4.0, "▼ 4.00")),
        more=0,
        axis="margin, in nats",
        seal="● exact, by replay",
        image=picture(),
        lit=None,
        tokens=None,
        texts={},
        link="http://here/Examples?run=digits&example=stamped-1",
    )
    return replace(made, **changed)  # type: ignore[arg-type]


def pixels(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert image.size == SIZE and image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def has(image: np.ndarray, color: str) -> bool:
    wanted = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
    return bool((image == wanted).all(-1).any())


def test_a_card_says_what_the_model_would_say_without_the_stage() -> None:
    assert card().title == "says 3; without shortcut: 9"
    assert card(without=Said("3", False)).title == "says 3, with or without shortcut"
    valued = card(opening="log-likelihood", final=Said("−1.2"), without=Said("−3.4"))
    assert valued.title == "log-likelihood −1.2; without shortcut: −3.4"
    assert "log-likelihood</span>" in as_html(valued)


def test_the_picture_has_blue_credit_and_orange_blame_on_a_light_background() -> None:
    image = pixels(as_png(card()))
    assert has(image, CREDIT) and has(image, BLAME) and tuple(image[300, 1180]) == (255, 255, 255)
    unsure = pixels(as_png(card(bars=(Bar("shortcut", -4.0, "± 4.00", signed=False),))))
    assert not has(unsure, CREDIT) and not has(unsure, BLAME)
    faint = pixels(as_png(card(bars=(Bar("pretrain", 2.0, "▲ 2.00", faint=True),))))
    assert not has(faint, CREDIT) and has(faint, blended(CREDIT, 0.45))


def test_places_are_coloured_by_credit_and_blame_where_a_map_is_stored() -> None:
    lit = np.zeros((8, 8))
    plain = pixels(as_png(card()))[60:470, 50:470].astype(int)
    lit[0, 0], lit[7, 7] = -2.0, 1.0
    shown = pixels(as_png(card(lit=lit)))[60:470, 50:470].astype(int)
    first, last = shown[20, 20], shown[390, 390]
    assert first[0] > first[2] and last[2] > last[0]
    np.testing.assert_array_equal(shown[200, 200], plain[200, 200])
    assert "acts: orange blame, blue credit" in as_html(card(lit=lit))


@pytest.mark.parametrize(
    "changed",
    [
        {"final": Said("a very long answer, of many words, that no card has room for " * 3)},
        {"stage": "x" * 300, "bars": tuple(Bar("y" * 200, 1.0, "▲ 1.00") for _ in range(5))},
        {"image": None, "texts": {"text": "word " * 3000}},
        {"image": None, "texts": {"text": "w" * 3000}},
        {"image": None, "texts": {"prompt": "Why?", "completion": "日本語 עברית 😀", "c": ""}},
        {"image": None, "texts": {"text": ""}},
        {"image": None, "tokens": ("a", " b\n", "\u202ec"), "lit": np.array([1.0, -2.0, 0.0])},
        {"bars": (), "seal": "", "label": None, "final": Said("1.2"), "without": Said("3.4")},
        {"bars": (Bar("shortcut", 0.0, "refused"),), "more": 12},
        {"image": picture(600)},
    ],
)
def test_anything_fits_on_a_card(changed: dict[str, object]) -> None:
    made = card(**changed)
    png, page = as_png(made), as_html(made)
    assert len(png) < 200_000 and len(page.encode()) < 200_000
    edge = pixels(png)[20:, 1175:]
    assert (edge == 255).all(), "nothing is written beyond the right margin"


def test_nothing_from_data_acts_in_the_page() -> None:
    evil = "<script>alert(1)</script>\u202e'\"&"
    made = card(
        run=evil, set_name=evil, example_id=evil, label=evil, stage=evil, final=Said(evil),
        without=Said("x"), image=None, texts={evil: evil, "b": evil},
        bars=(Bar(evil, 1.0, "▲ 1.00"),), axis=evil, seal=evil, link=f"javascript:{evil}",
        sentence=Sentence((Part(evil), Part(evil, "stage"))),
    )  # fmt: skip
    page = as_html(made)
    assert "<script" not in page and "\u202e" not in page and "javascript:" in page
    assert not re.search(r"href='(?!http)", page) and "default-src 'none'" in page
    assert not re.search(r"(src|href)='(?!data:|http://here)", page)


def test_the_page_needs_nothing_but_itself_and_links_to_the_view() -> None:
    page = as_html(card())
    assert re.findall(r"(?:src|href)='([^']{5})", page) == ["data:", "http:"]
    assert "<a href='http://here/Examples?run=digits&amp;example=stamped-1'" in page
    assert "<a " not in as_html(card(link="Examples?run=digits"))


def test_a_link_names_the_run_the_set_and_the_example() -> None:
    said = link_to("my run", "test", "a/b", "margin", "https://host/lens/")
    assert said == "https://host/lens/Examples?run=my%20run&set=test&example=a%2Fb&measure=margin"
    opened = "opens http://localhost:8501/Examples?run=r&set=test&example=x"
    assert link_to("r", "test", "x", None) == f"stagelens app r {opened}"
    assert link_to("r", "test", "x", None, run="my runs/r") == f"stagelens app 'my runs/r' {opened}"


def row(effect: float, without: str, label: str | None = "9") -> dict[str, object]:
    return {"effect": effect, "prediction": "3", "prediction_without": without, "label": label}


def test_the_stage_without_which_the_answer_is_right_comes_first() -> None:
    rows = {"a": row(-9.0, "3"), "b": row(5.0, "4"), "c": row(-1.0, "9"), "d": row(-2.0, "9")}
    assert leading(rows, MARGIN, {}) == "d"
    assert leading({n: rows[n] for n in "ab"}, MARGIN, {}) == "b"
    assert leading({"a": rows["a"], "z": row(1.0, "3")}, MARGIN, {}) == "a"
    # What is neither credit nor blame leads only where nothing else is known.
    assert leading(rows, MARGIN, {"d": UNSURE}) == "c"
    assert leading({"d": rows["d"]}, MARGIN, {"d": UNSURE}) == "d"
    assert leading({"d": row(float("nan"), "9")}, MARGIN, {}) is None


def test_letters_of_other_scripts_have_a_font() -> None:
    assert font_for("abc", 20).getname() != font_for("ب", 20).getname()
    pen = Pen(Image.new("RGB", (100, 40)))
    assert pen.fitted("short", 20, 90) == "short" and pen.fitted("x" * 90, 20, 90)[-1] == "…"
    assert pen.width(pen.fitted("x" * 90, 20, 90), 20) <= 90


def test_the_card_of_the_demo_says_what_its_effect_table_says(digits_run: DemoRun) -> None:
    run = open_run(digits_run.path)
    made = stored_card(run, "test", "stamped-133", "margin")
    from stagelens.trust.estimates import best_result

    table = best_result(run, "test").table
    own = table[(table["example_id"] == "stamped-133") & (table["behaviour"] == "margin")]
    rows = own.set_index("stage")
    assert made.final.answer == rows.loc[made.stage, "prediction"]
    assert made.without.answer == rows.loc[made.stage, "prediction_without"]
    assert made.without.right and made.final.right is False
    assert [bar.stage for bar in made.bars] == list(run.stages[n].name for n in range(4))
    np.testing.assert_allclose([bar.gain for bar in made.bars], rows["effect"])
    assert made.stage in str(made.sentence) and "exact, by replay" in made.seal
    loss = stored_card(run, "test", "stamped-133", "loss", stage="pretrain")
    own = table[(table["example_id"] == "stamped-133") & (table["behaviour"] == "loss")]
    np.testing.assert_allclose([bar.gain for bar in loss.bars], -own["effect"].to_numpy())
    with pytest.raises(SetError, match="no behaviour 'beauty'"):
        stored_card(run, "test", "stamped-133", "beauty")
    with pytest.raises(SetError, match="nope"):
        stored_card(run, "test", "nope")


def test_a_refused_stage_has_no_card_of_its_own(digits_run: DemoRun) -> None:
    run = open_run(digits_run.path)
    rows = pd.DataFrame(columns=["stage", "effect"])
    with pytest.raises(SetError, match="no effect on this example is known"):
        make_card(run, run.evaluation_set("test"), rows, MARGIN, {"shortcut": EXACT})
    gone = {**row(float("nan"), ""), "stage": "shortcut", "example_id": "stamped-133"}
    refused = {"trust": "refused", "reason": "It diverged."}
    trust = {"shortcut": EXACT.model_copy(update=refused)}
    with pytest.raises(SetError, match="no number for shortcut on this example: It diverged"):
        make_card(
            run, run.evaluation_set("test"), pd.DataFrame([gone]), MARGIN, trust, stage="shortcut"
        )


def test_the_command_writes_both_kinds_and_overwrites_nothing(
    digits_run: DemoRun, command: Command, tmp_path: Path
) -> None:
    asked = ("card", digits_run.path, "--set", "test", "--example", "stamped-133")
    for ending in ("png", "html"):
        out = tmp_path / f"card.{ending}"
        answer = command(*asked, "--address", "http://lens:8501", "--out", out)
        assert answer.status == 0 and "says 3; without shortcut: 5" in answer.out, answer.err
        assert out.stat().st_size < 200_000
        assert "already exists" in command(*asked, "--out", out).err
    assert pixels((tmp_path / "card.png").read_bytes()).shape == (630, 1200, 3)
    assert "http://lens:8501/Examples?run=digits" in (tmp_path / "card.html").read_text()
    assert "name the file .png or .html" in command(*asked, "--out", tmp_path / "card.gif").err
