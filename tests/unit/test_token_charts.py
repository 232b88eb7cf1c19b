"""Shaded tokens say what their effects are, and hostile text in them stays text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from stagelens.charts import BLAME, CREDIT, largest_effect, shaded_tokens, visible
from stagelens.charts.tokens import MOST
from stagelens.contracts import Behaviour

LIKELIHOOD = Behaviour("log-likelihood", "higher", "nats")
PERPLEXITY = Behaviour("perplexity", "lower")
NAN = float("nan")


class Tokens(HTMLParser):
    """The tokens of a piece of markup, with style and title; and every other tag and attribute."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.shown: list[str] = []
        self.styles: list[str] = []
        self.titles: list[str | None] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self._inside = False
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "bdi":
            given = dict(attrs)
            self._inside = True
            self.shown.append("")
            self.styles.append(given.get("style") or "")
            self.titles.append(given.get("title"))

    def handle_endtag(self, tag: str) -> None:
        self._inside &= tag != "bdi"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.shown[-1] += data


def drawn(tokens: list[str], effects: list[float], **options: object) -> Tokens:
    given = {"behaviour": LIKELIHOOD, "stage": "sft", **options}
    return Tokens(shaded_tokens(tokens, np.asarray(effects), **given).html)  # type: ignore[arg-type]


def opacity(style: str) -> float:
    found = re.search(r"rgba\(\d+,\d+,\d+,([\d.]+)\)", style)
    assert found is not None
    return float(found[1])


def rgb(color: str) -> str:
    return ",".join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5))


def test_credit_and_blame_differ_in_colour_and_in_line() -> None:
    credit, blame, none = drawn(["a", "b", "c"], [2.0, -1.0, 0.0]).styles
    assert rgb(CREDIT) in credit and f"underline solid {CREDIT}" in credit
    assert rgb(BLAME) in blame and f"underline wavy {BLAME}" in blame
    assert "underline" not in none and opacity(none) == 0
    assert opacity(credit) == pytest.approx(2 * opacity(blame), rel=0.01)


def test_where_lower_is_better_a_lower_value_is_credit() -> None:
    first, second = drawn(["a", "b"], [-1.0, 1.0], behaviour=PERPLEXITY).styles
    assert "solid" in first and "wavy" in second


def test_a_token_says_its_number_on_hover() -> None:
    titles = drawn(["cat", "dog"], [0.414, -1.5]).titles
    assert titles == ["cat: without sft, 0.41 lower", "dog: without sft, 1.50 higher"]


def test_a_token_without_a_value_has_no_shade() -> None:
    tokens = drawn(["prompt", "answer"], [NAN, 1.0])
    assert "background" not in tokens.styles[0] and tokens.titles[0] is None


def test_shades_of_two_stages_compare_when_they_share_a_range() -> None:
    one, other = np.asarray([0.5, NAN]), np.asarray([-2.0, 1.0])
    largest = largest_effect([one, other])
    assert largest == 2.0
    weak = shaded_tokens(["a", "b"], one, LIKELIHOOD, "sft", largest).html
    assert opacity(Tokens(weak).styles[0]) == pytest.approx(0.55 / 4, abs=0.001)
    assert "−2.00" in weak and "+2.00 nats" in weak


@pytest.mark.parametrize("effects", [[NAN, NAN], [0.0, 0.0]])
def test_nothing_to_shade_is_no_error(effects: list[float]) -> None:
    markup = shaded_tokens(["a", "b"], np.asarray(effects), LIKELIHOOD, "sft")
    assert markup.alt.endswith(("No token has a number.", "None has an effect."))
    assert largest_effect([np.asarray(effects)]) == 0.0


def test_the_takeaway_names_the_tokens_that_stand_out() -> None:
    markup = shaded_tokens([" cat", "\n", "dog"], np.asarray([2.0, 0.1, -1.0]), LIKELIHOOD, "sft")
    assert markup.alt == (
        "Effect of sft on each of 3 tokens. Most credit for 'cat' (2.00); most blame for 'dog' "
        "(1.00)."
    )


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" ", "␣"),
        ("   ", "␣␣␣"),
        ("\n\n", "↵\n↵\n"),
        ("\t", "⇥"),
        (" cat", " cat"),
        ("a\nb", "a↵\nb"),
        ("\x00", "␀"),
        ("\x1b[31m", "␛[31m"),
        ("\x7f", "[U+007F]"),
        ("\u202eabc", "[U+202E]abc"),
        ("a\u200bb", "a[U+200B]b"),
        ("\u2028", "␣"),
        ("\ud800", "[U+D800]"),
        ("\u0301", "◌\u0301"),
        ("e\u0301", "e\u0301"),
        ("שלום", "שלום"),
        ("", ""),
    ],
)
def test_what_cannot_be_seen_is_written_out(token: str, shown: str) -> None:
    assert visible(token) == shown


@pytest.mark.parametrize(
    "evil",
    ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "'><b onclick='x'>",
     "</bdi></div>", '" onmouseover="alert(1)', "&lt;b&gt;",
     "![](https://example.org/x.png)", "<!--", "]]>"],
)  # fmt: skip
def test_markup_in_a_token_or_a_stage_is_shown_as_text(evil: str) -> None:
    tokens = drawn([evil, "next"], [1.0, -1.0], stage=evil)
    assert tokens.shown == [evil, "next"]
    assert tokens.tags == {"div", "bdi", "span"}
    assert tokens.attributes == {"role", "aria-label", "dir", "style", "title"}


def test_a_text_of_any_length_is_drawn_and_what_is_left_out_is_said() -> None:
    tokens = drawn(["x" * 100_000], [1.0])
    assert len(tokens.shown[0]) == 100_000 and len(tokens.titles[0] or "") < 100
    many = MOST + 5
    markup = shaded_tokens(["a"] * many, np.ones(many), LIKELIHOOD, "sft")
    assert len(Tokens(markup.html).shown) == MOST
    assert f"the first {MOST:,} of {many:,} tokens" in markup.html
