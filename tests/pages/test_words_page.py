"""Editable words of the own example: what the browser is given, and what it may send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from stagelens.analyses import own_words
from stagelens.charts import BLAME, CREDIT
from stagelens.charts.style import PUSH
from stagelens.runs.run import open_run
from stagelens.ui.examples import live_answers, word_board
from stagelens.ui.examples.live_answers import Question
from stagelens.ui.examples.word_board import FINAL, WRITTEN
from tests.pages.reading import boards, check, words
from tests.support import small_texts

PAGE = "pages/1_Examples.py"
OWN = "run=comments&view=Own+example&measure=margin"


def given(app: AppTest) -> dict[str, Any]:
    """What the component is given."""
    (one,) = boards(check(app))
    return one


def typed(app: AppTest, text: str) -> AppTest:
    app.session_state["stagelens:question"] = Question({"text": text}, WRITTEN)
    return app.run()


def test_words_are_shaded_by_what_leaving_them_out_changes(open_page, text_runs: Path) -> None:
    run = open_run(text_runs / "comments")
    text = next(e.input["text"] for e in run.evaluation_set("test").examples() if e.label)
    app = typed(open_page(text_runs, OWN, PAGE), text)
    shown = given(app)
    assert [text[start:end] for start, end, _ in shown["words"]] == text.split()
    assert [look["name"] for look in shown["looks"]] == [FINAL, *(s.name for s in run.stages)]
    # Nobody has said which answer is right: neither credit nor blame.
    assert "towards" in str(shown["looks"]) and PUSH in str(shown["looks"])
    assert CREDIT not in str(shown["looks"]) and BLAME not in str(shown["looks"])
    app.selectbox(key="own-label").select_index(0)
    shown = given(app.run())
    of_stages = str(shown["looks"][1:])
    assert "credit to" in of_stages or "blame to" in of_stages
    assert PUSH not in of_stages and PUSH in str(shown["looks"][0])


def test_unknown_words_are_marked_and_told(open_page, text_runs: Path) -> None:
    app = typed(open_page(text_runs, OWN, PAGE), "𝛼 birds xylophage")
    shown = given(app)
    # In the browser's units, of which the first letter takes two.
    assert shown["words"] == [[0, 2, True], [3, 8, False], [9, 18, True]]
    assert "unknown to the tokenizer" in words(app) and "“xylophage”" in words(app)


def test_a_blank_text_asks_nothing_and_stays(open_page, text_runs: Path) -> None:
    app = open_page(text_runs, OWN, PAGE)
    begun = given(typed(app, "birds sing"))["from"]
    shown = given(typed(app, " "))
    assert (shown["text"], shown["from"], shown["words"]) == (" ", begun, [])
    assert "answer at once" in words(app) and "The final model answers" not in words(app)


def test_another_text_is_begun_with_and_ones_own_is_not(open_page, text_runs: Path) -> None:
    app = check(open_page(text_runs, "run=comments&example=3", PAGE))
    next(b for b in app.button if b.label == "Change it and ask again").click()
    begun = live_answers.Question({"text": small_texts.TEXTS[3]})
    shown = given(app.run())
    assert shown["text"] == small_texts.TEXTS[3] and shown["words"]
    # What is typed over it is known to the browser, and the same once more is something else.
    assert given(typed(app, "birds sing"))["from"] == shown["from"]
    app.session_state["stagelens:question"] = begun
    assert given(app.run())["from"] != shown["from"]


def test_many_words_are_answered_without_shades(open_page, text_runs: Path) -> None:
    app = typed(open_page(text_runs, OWN, PAGE), "birds " * (own_words.MOST_WORDS + 1))
    shown = given(app)
    assert not shown["looks"] and "65 are too many" in shown["idle"]
    assert "The final model answers" in words(app)


def test_texts_that_belong_together_are_asked_together(open_page, text_runs: Path) -> None:
    app = check(open_page(text_runs, "run=prompts&view=Own+example", PAGE))
    assert not boards(app)
    assert "Not answered while you type: an answer is about all of these texts" in words(app)
    next(g for g in app.button_group if g.key == "own-kind").set_value("Whole text")
    shown = given(typed(app.run(), "the cat sat"))
    assert not shown["looks"] and shown["idle"] == "What each token gets is shown below."
    assert "Tokens" in words(app) and "The final model goes on with" in words(app)


def test_models_that_do_not_stay_in_memory_are_asked_once(
    open_page, text_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGELENS_MEMORY", "0.001 MB")
    app = check(open_page(text_runs, OWN, PAGE))
    assert not boards(app) and "Not answered while you type: all models" in words(app)
    app.text_area(key="own-text").input("birds sing")
    next(b for b in app.button if b.label == "Ask the models").click()
    assert "The final model answers" in words(check(app.run()))


def test_hostile_input_is_told_and_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    session: dict[str, object] = {}
    monkeypatch.setattr(word_board.st, "session_state", session)
    long = {"number": 1, "text": "a" * (live_answers.MOST_CHARACTERS + 1)}
    for sent in (None, 7, "text", {}, {"number": "1", "text": "a"}, {"number": 1, "text": 2}, long):
        word_board._take("text", sent)
        assert session.pop("stagelens:written-wrong") == "The text cannot be read; reload the page."
        assert live_answers.question() is None


@pytest.mark.parametrize(
    ("text", "word", "left"),
    [("you are kind", "you", "are kind"), ("you are kind", "are", "you kind"),
     ("you are kind", "kind", "you are"), ("so, yes", ",", "so yes"), ("one", "one", "")],
)  # fmt: skip
def test_a_word_leaves_no_gap(text: str, word: str, left: str) -> None:
    start = text.index(word)
    assert own_words.without(text, own_words.Word(start, start + len(word))) == left


def test_a_push_is_the_difference_of_two_texts(text_runs: Path) -> None:
    from stagelens.analyses.own_example import answer, own_example
    from stagelens.measuring.loaded_weights import LoadedWeights

    run, loaded = open_run(text_runs / "comments"), LoadedWeights(2**30)
    label = run.task.config["classes"][0]
    text = "birds sing on"
    own = own_example(run.task, {"text": text}, label)
    split = own_words.words_of(run.task, text)
    found = own_words.pushes(run, own, split, None, loaded)
    for place, word in enumerate(split):
        other = own_example(run.task, {"text": own_words.without(text, word)}, label)
        one, two = (answer(run, each, None, loaded).table for each in (own, other))
        rows = one["behaviour"] == "margin"
        final, effect = (
            (one.loc[rows, name] - two.loc[rows, name]).to_numpy() for name in ("final", "effect")
        )
        assert np.allclose(found.final["margin"][place], final, atol=1e-5)
        pushed = [found.stages[stage]["margin"][place] for stage in one.loc[rows, "stage"]]
        assert np.allclose(pushed, effect, atol=1e-5)
