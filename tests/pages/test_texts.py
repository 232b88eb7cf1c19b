"""Texts, prompts and tokens on the Examples page; hostile ones are shown as text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from stagelens.contracts import BASE
from stagelens.effects.results import load_result
from stagelens.runs.run import open_run
from stagelens.tasks.tokenizer import KeptTokenizer
from stagelens.tasks.transformer_task import TransformerTask
from stagelens.ui.examples.live_answers import Question
from stagelens.ui.examples.word_board import WRITTEN
from stagelens.wording.numbers import number
from tests.pages.reading import boards, check, drawn, figures, labels, table, words
from tests.support import hostile, small_texts
from tests.support.text_runs import PROMPTS, STAGES
from tests.unit.test_untrusted_tokenizers import BAD, PANICS, spoiled

PAGE = "pages/1_Examples.py"
TAG = re.compile(r"<\s*/?\s*([a-zA-Z0-9]+)")
OWN_TAGS = {"p", "div", "span", "b", "i", "bdi", "style", "h2", "h3", "details", "summary"}
"""Tags that pages themselves write."""


def ask(app: AppTest, **texts: str) -> AppTest:
    if set(texts) == {"text"}:  # typed into a component, which no test without a browser has
        app.session_state["stagelens:question"] = Question(texts, WRITTEN)
        return app.run()
    for name, text in texts.items():
        app.text_area(key=f"own-{name}").input(text)
    next(b for b in app.button if b.label == "Ask the models").click()
    return app.run()


def codes(app: AppTest) -> list[str]:
    return [code.value for code in app.code]


def bodies(app: AppTest) -> list[str]:
    return [e.proto.body for e in app.get("html")]


# -------------------------------------------------------------------------------- of the set


def test_prompts_completions_and_rejected_ones_are_columns(open_page, text_runs: Path) -> None:
    app = check(open_page(text_runs, "run=prompts&sort=order+of+the+set", PAGE))
    shown = table(app)
    assert app.dataframe[0].proto.row_height > 64  # or Streamlit wraps no text
    assert shown["input prompt"].tolist() == list(PROMPTS)
    assert shown["input rejected"].tolist() == [" the dog", " make two", "", " sing"]
    assert "label" not in shown and "Label" not in labels(app)
    assert "Final answer" not in labels(app)


def test_what_a_language_model_says_next_is_called_that(open_page, text_runs: Path) -> None:
    """One token is no answer, and its words must not be read as words of the page."""
    app = check(open_page(text_runs, "run=prompts&sort=order+of+the+set", PAGE))
    titles = json.loads(app.dataframe[0].proto.columns)
    assert titles["answer"]["label"] == "next token"
    card = next(board["cards"] for board in boards(app) if "cards" in board)[1]
    assert card["answer"] == f"next token “{table(app)['answer'][1].strip()}”"
    assert card["text"] == "two and two\ncompletion: make four\nrejected: make two"
    assert all(each["without"].startswith("“") for each in card["effects"])  # without it “T”
    app = check(open_page(text_runs, "run=comments", PAGE))
    assert json.loads(app.dataframe[0].proto.columns)["answer"]["label"] == "answer"
    said = next(board["cards"] for board in boards(app) if "cards" in board)[0]["answer"]
    assert said.startswith("answer ") and "“" not in said


def test_a_search_looks_into_texts_and_ids(open_page, text_runs: Path) -> None:
    for word, count in (("RAIN", 1), ("make four", 1), ("sing", 2), ("nowhere", 0)):
        app = check(open_page(text_runs, f"run=comments&q={word.replace(' ', '+')}", PAGE))
        assert f"{count} of 6 texts" in words(app)
    app = check(open_page(text_runs, "run=prompts&q=make+two", PAGE))
    assert "1 of 4 texts" in words(app)


def test_an_example_shows_its_texts_as_what_they_are(open_page, text_runs: Path) -> None:
    app = check(open_page(text_runs, "run=prompts&example=1", PAGE))
    assert codes(app)[:3] == ["two and two", " make four", " make two"]
    assert all(name in words(app) for name in ("Prompt", "Completion", "Rejected completion"))
    assert "The most probable next token after the prompt" in words(app)
    app = check(open_page(text_runs, "run=prompts&example=2", PAGE))
    assert codes(app)[:2] == ["a dog", " barked"] and "Rejected" not in words(app)


def test_the_tokens_of_an_example_carry_the_effects_of_the_chosen_stage(
    open_page, text_runs: Path
) -> None:
    result = load_result(open_run(text_runs / "prompts"), "test", "effects", "replay")
    assert result is not None
    for stage in STAGES:
        app = check(open_page(text_runs, f"run=prompts&example=1&look=Where&tokens={stage}", PAGE))
        tokens = next(body for body in bodies(app) if "role='group'" in body)
        shown = re.findall(r"<bdi[^>]*>([^<]*)</bdi>", tokens)
        assert "".join(shown) == "two and two make four"
        assert f"Effect of {stage} on each of" in tokens
        numbers = app.dataframe[-1].value
        rows = result.table.query("example_id == '1' and behaviour == 'log-likelihood'")
        effect = rows.set_index("stage").loc[stage, "effect"]
        assert np.nansum(numbers[f"effect of {stage}"]) == pytest.approx(effect, abs=1e-4)
        assert f"{stage}: exact" in words(app)


def test_a_classifier_has_no_tokens(open_page, text_runs: Path) -> None:
    app = check(open_page(text_runs, "run=comments&example=1&look=Where", PAGE))
    assert "Tokens" not in [s.value for s in app.subheader]


def test_an_example_without_a_number_is_no_error(open_page, text_runs: Path) -> None:
    app = check(open_page(text_runs, "run=comments&example=5", PAGE))
    assert "the margin is not known" in words(app)
    assert "general: no number" in drawn(app)[0]


@pytest.mark.parametrize("run", ["comments", "prompts"])
def test_the_overview_serves_texts(open_page, text_runs: Path, run: str) -> None:
    app = check(open_page(text_runs, f"run={run}"))
    said = words(app)
    assert "texts" in said and "Credit and blame" in said
    assert figures(app)[0]["alt"].startswith("Credit and blame of each stage")
    assert BASE in figures(app)[1]["alt"]


# --------------------------------------------------------------------------- the own example


def test_a_text_of_the_set_has_the_numbers_of_the_set(open_page, text_runs: Path) -> None:
    result = load_result(open_run(text_runs / "comments"), "test", "effects", "replay")
    assert result is not None
    rows = result.table.query("example_id == '3' and behaviour == 'margin'")
    app = open_page(text_runs, "run=comments&view=Own+example&measure=margin", PAGE)
    app.selectbox(key="own-label").select("calm")
    said = words(check(ask(app, text=small_texts.TEXTS[3])))
    for row in rows.to_dict("records"):
        way = "higher" if row["effect"] < 0 else "lower"
        amount = f"would be {number(abs(row['effect']))} {way}"
        assert f"Without {row['stage']}, the margin {amount}" in said
    assert f"The final model answers {rows['prediction'].iloc[0]}" in said


def test_a_prompt_is_asked_with_its_completions(open_page, text_runs: Path) -> None:
    app = check(open_page(text_runs, "run=prompts&view=Own+example", PAGE))
    check(ask(app, prompt="two and two", completion=" make four", rejected=" make two"))
    said = words(app)
    assert "The final model goes on with" in said and "Tokens" in said
    app.selectbox(key="measure").select("preference")
    result = load_result(open_run(text_runs / "prompts"), "test", "effects", "replay")
    assert result is not None
    rows = result.table.query("example_id == '1' and behaviour == 'preference'")
    said = words(check(app.run()))
    for stage, effect in zip(rows["stage"], rows["effect"], strict=True):
        assert f"Without {stage}, the preference would be {number(abs(effect))}" in said


def test_what_is_not_known_of_an_example_is_not_offered(open_page, text_runs: Path) -> None:
    app = check(open_page(text_runs, "run=prompts&view=Own+example&measure=preference", PAGE))
    check(ask(app, prompt="two and two", completion=" make four"))
    said = "The preference of this example is not known: the log-likelihood is shown."
    assert said in words(app) and "the preference would be" not in words(app)


def test_a_language_model_is_asked_about_a_whole_text_too(open_page, text_runs: Path) -> None:
    app = check(open_page(text_runs, "run=prompts&view=Own+example", PAGE))
    next(g for g in app.button_group if g.key == "own-kind").set_value("Whole text")
    check(ask(check(app.run()), text="the cat sat"))
    tokens = next(body for body in bodies(app) if "role='group'" in body)
    assert "".join(re.findall(r"<bdi[^>]*>([^<]*)</bdi>", tokens)) == "the cat sat"


def test_a_prompt_without_a_completion_says_what_is_missing(open_page, text_runs: Path) -> None:
    app = check(open_page(text_runs, "run=prompts&view=Own+example", PAGE))
    check(ask(app, prompt="two and two"))
    assert "needs a text or a completion" in words(app)


def test_a_tokenizer_that_panics_is_one_error_and_the_page_goes_on(
    open_page, text_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = check(open_page(text_runs, "run=comments&view=Own+example", PAGE))
    task, _ = small_texts.classification()
    bad = KeptTokenizer(spoiled(task.assets, PANICS))
    with monkeypatch.context() as patch:
        patch.setattr(TransformerTask, "tokenizer", property(lambda _: bad))
        check(ask(app, text=BAD))
    assert "this text cannot be made into tokens: the tokenizer fails" in words(app)
    assert "The final model answers" in words(check(ask(app, text="birds sing")))


def test_nothing_typed_asks_nothing(open_page, text_runs: Path) -> None:
    app = check(open_page(text_runs, "run=comments&view=Own+example", PAGE))
    assert "answer at once" in words(check(ask(app, text="")))


def test_an_example_of_the_set_can_be_changed_and_asked_again(open_page, text_runs: Path) -> None:
    app = check(open_page(text_runs, "run=prompts&example=1", PAGE))
    next(b for b in app.button if b.label == "Change it and ask again").click()
    check(app.run())
    assert app.query_params["view"] == "Own example"
    typed = [app.text_area(key=f"own-{name}").value for name in ("prompt", "completion")]
    assert typed == ["two and two", " make four"]
    assert "The final model goes on with" in words(app)


# ------------------------------------------------------------------------------------ hostile


def nothing_acts(app: AppTest) -> None:
    """No text of a data set or of the box is read as markup."""
    for body in bodies(app):
        assert {tag.lower() for tag in TAG.findall(body)} <= OWN_TAGS
        assert not re.search(r"<[^>]*\s(?:on\w+|href|src|action)\s*=", body)
        assert not set("\u202e\u2066\u2067\x00\x1b") & set(body)
    kinds = ("markdown", "caption", "title", "header", "subheader", "info", "warning", "error")
    for text in (str(e.value) for kind in kinds for e in getattr(app, kind)):
        unescaped = re.sub(r"\\.", "", text)
        assert not re.search(r"!\[|\]\(http|:red\[|<[a-zA-Z/!]", unescaped)
        assert "\u202e" not in text
    for figure in figures(app):
        drawn = str(figure["data"]) + str(figure["layout"])
        assert "<script" not in drawn and "<img" not in drawn and "\u202e" not in drawn


@pytest.mark.parametrize("run", ["comments", "prompts"])
@pytest.mark.parametrize("by", ["group", "turned"])
def test_hostile_sets_are_shown_as_text_on_the_overview(
    open_page, text_runs: Path, run: str, by: str
) -> None:
    app = check(open_page(text_runs, f"run={run}&set=hostile&by={by}"))
    nothing_acts(app)
    assert hostile.MARKUP[0] in words(app) or by == "turned"


@pytest.mark.parametrize("run", ["comments", "prompts"])
def test_every_hostile_example_is_shown_as_text(open_page, text_runs: Path, run: str) -> None:
    examples = open_run(text_runs / run).evaluation_set("hostile").examples()
    app = check(open_page(text_runs, f"run={run}&set=hostile&sort=order+of+the+set", PAGE))
    nothing_acts(app)
    for example in examples:
        app.query_params["example"] = example.example_id
        app.session_state["stagelens:example"] = example.example_id
        nothing_acts(check(app.run()))
        given = [text for text in example.input.values() if text is not None]
        assert codes(app)[: len(given)] == given


@pytest.mark.slow
@pytest.mark.parametrize("text", [hostile.EVERYTHING, hostile.LONG[0]], ids=["4 KB", "long word"])
def test_hostile_text_in_the_box_is_asked_about_as_text(
    open_page, text_runs: Path, text: str
) -> None:
    app = check(open_page(text_runs, "run=comments&view=Own+example", PAGE))
    nothing_acts(check(ask(app, text=text)))
    (board,) = boards(app)
    assert board["text"] == text
    assert "The final model answers" in words(app)
    assert "cut to 24 tokens" in words(app) or text == hostile.LONG[0]
    app = check(open_page(text_runs, "run=prompts&view=Own+example", PAGE))
    nothing_acts(check(ask(app, prompt=text, completion=text, rejected=text)))
    assert codes(app) == [text] * 3 and "The final model goes on with" in words(app)
