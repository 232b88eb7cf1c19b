"""Scores of answers on pages: a table of scorers by stage, and scores as behaviours."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from urllib.parse import urlencode

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from stagelens.effects.computing import attribute
from stagelens.effects.given_scores import Obtained, add_scores, with_direction
from stagelens.effects.results import load_result, result_path
from stagelens.effects.scores import mean_scores
from stagelens.effects.stored_scores import stored_scores
from stagelens.report.provenance import known, trust_of_row
from stagelens.report.rows import as_csv
from stagelens.report.sections import whole_report
from stagelens.runs.logs import read_log
from stagelens.runs.run import open_run
from stagelens.ui.server import jobs
from stagelens.ui.server.child import Status
from stagelens.wording.signs import CREDIT_OR_BLAME
from tests.pages.reading import boards, check, labels, table, words
from tests.support.text_runs import PROMPTS, STAGES

PAGE = "pages/1_Examples.py"
SE, HABIT = "score:regex (pattern=se)", "score:regex (pattern=T$|T[^T])"


def bench(app: AppTest) -> str:
    """The table of scores, as markup."""
    return next((e.proto.body for e in app.get("html") if "sl-scores" in e.proto.body), "")


def cells(app: AppTest) -> list[str]:
    """What its cells say, row by row."""
    found = re.findall(r"<div role='cell'.*?</div>", bench(app))
    return [re.sub(r"<[^>]+>", " ", each).strip() for each in found]


def test_scores_by_stage_come_first_on_the_overview(open_page, answered: Path) -> None:
    app = check(open_page(answered, "run=answers"))
    assert app.header[0].value == "What each stage did to the answers"
    run = open_run(answered / "answers")
    said = cells(app)
    assert len(said) == 3 * (1 + len(STAGES))
    for place, score in enumerate(stored_scores(run, "test").values()):
        result = load_result(run, "test", "scores", "replay", score.facts["replay"].settings)
        assert result is not None
        own = said[4 * place : 4 * place + 4]
        means = mean_scores(run, result)
        assert f"{100 * means['final'].iloc[0]:.1f} %" in own[0]
        for told, row in zip(own[1:], means.to_dict("records"), strict=True):
            assert f"{100 * abs(row['effect']):.0f}" in told
            # The intervals that the command prints, as far as there are such effects.
            ends = max(-1, row["low"]), min(1, row["high"])
            found = sorted(score.behaviour.sign * 100 * end for end in ends)
            shown = re.search(r"(\S+) to (\S+)$", told)
            assert shown is not None
            printed = [float(each.replace("−", "-")) for each in shown.groups()]
            assert printed == pytest.approx(found, abs=0.5)
    assert "measure=score%3Acontains&amp;stage=general" in bench(app)
    # Folded as a table, with a line for each scorer and stage.
    app = check(open_page(answered, "run=answers&show-scores=true", folded=True))
    assert len(table(app)) == 3 * len(STAGES)


def test_a_set_without_scores_shows_those_of_others(open_page, answered: Path) -> None:
    app = check(open_page(answered, "run=answers&set=whole"))
    assert "set=test" in bench(app)
    assert "score:contains" not in app.selectbox(key="measure").options


def test_a_run_without_scores_has_no_table(open_page, text_runs: Path) -> None:
    assert not bench(check(open_page(text_runs, "run=prompts")))


def test_a_score_is_a_behaviour_of_the_overview(open_page, answered: Path) -> None:
    app = check(open_page(answered, f"run=answers&measure={SE.replace('=', '%3D')}"))
    assert app.selectbox(key="measure").value == SE
    assert "regex (pattern=se) score" in words(app)
    assert "general: exact" in words(app)
    assert "Credit by" not in labels(app)


def test_a_page_without_scores_says_so(open_page, answered: Path) -> None:
    page = "pages/3_Remove_a_stage.py"
    app = check(open_page(answered, "run=answers&measure=score:contains", page))
    assert "This page shows no scores" in words(app)


def test_a_report_has_the_scores_by_stage(answered: Path) -> None:
    run = open_run(answered / "answers")
    report, _ = whole_report(run, "whole")  # scores are those of all sets, as on the Overview
    section = report.sections[2]
    assert section.title == "What each stage did to the answers"
    (found,) = section.findings
    seen = found.seen
    assert seen.set_name == "test" and len(seen.rows.values) == 3 * len(STAGES)
    assert {"low", "high", "trust"} < set(seen.rows.columns)
    chips = [each.named for each in known(seen)]
    assert len(set(chips)) == 9 and "contains, general" in chips
    row = next(each for each in seen.rows.records() if each["stage"] == "habits")
    assert trust_of_row(seen, row) == ("exact", f"{row['score']}, habits: exact")
    assert b"contains, general: exact" in as_csv(report)


TRUST = "pages/4_Trust.py"


def test_trust_says_what_is_known_of_scores(open_page, answered: Path) -> None:
    query = "run=answers&measure=score:contains&show-kappa=true"
    app = check(open_page(answered, query, TRUST, folded=True))
    assert app.selectbox(key="measure").value == "score:contains"
    said = words(app)
    assert "contains score, set test" in said and "general, habits: exact" in said
    assert "one greedy answer to every prompt, at most 6 tokens" in said
    assert "The scorer is contains (version 1). An answer counts where what is looked for" in said
    assert "without general, habits, polish are those of a replay" in said
    assert "what another one would do to contains is not known" in said
    shown = next(e.value for e in app.dataframe if CREDIT_OR_BLAME in e.value)
    assert shown["stage"].tolist() == list(STAGES) and set(shown["trust"]) == {"exact"}
    # All is of one set, by one estimator.
    assert shown.columns.intersection(["set", "estimator"]).empty
    kappa = next(e.value for e in app.dataframe if "kappa" in e.value)
    assert set(kappa["first"]) | set(kappa["second"]) >= {"contains", SE.removeprefix("score:")}
    # Another behaviour leaves room for all of them.
    app = check(open_page(answered, "run=answers", TRUST))
    shown = next(e.value for e in app.dataframe if CREDIT_OR_BLAME in e.value)
    assert len(shown) == 3 * len(STAGES)
    assert not any("kappa" in e.value for e in app.dataframe)


def test_trust_says_what_nobody_can_check_of_a_log(
    open_page, answered: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(answered / "answers", tmp_path / "home" / "answers"))
    run, path = open_run(copy), tmp_path / "judged.csv"
    ids = run.evaluation_set("test").table([])["example_id"]
    for model, scores in (("final", [1, 0, 1, 0]), ("without:habits", [0, 0, 1, 1])):
        pd.DataFrame({"id": ids, "prompt": PROMPTS, "score": scores}).to_csv(path, index=False)
        log = with_direction(read_log(path), "higher", 0.0, 1.0, "", "judge")
        add_scores(run, log, model, "test", obtained=Obtained(estimator="task-vector"))
    attribute(run, "test", "task-vector")
    query = "run=answers&measure=score:judge&show-kappa=true"
    app = check(open_page(copy.parent, query, TRUST, folded=True))
    said = words(app)
    assert "Added, of the models final, without:habits: judged.csv" in said
    assert "a judge's errors are part of the effects" in said
    assert "Of the models without habits no replay is known" in said
    assert "estimates are compared with replay on what is measured, not on scores" in said
    kappa = next(e.value for e in app.dataframe if "kappa" in e.value)
    assert len(kappa) == 3
    assert (kappa["first"] + kappa["second"]).str.contains("judge").all()


def test_prompts_without_a_score_are_told_of_in_words(open_page, short_chat: Path) -> None:
    app = check(open_page(short_chat, "run=chat&measure=score:sycophancy&group="))
    said = words(app)
    assert "Measured on 84 texts; 84 texts without a score left out." in said
    board = next(each for each in boards(app) if "models" in each)
    assert board["bars"]["better"].startswith("sycophancy score lower")
    values = board["models"][""]["values"]
    assert values and not {"no score", "n/a"} & set(values)  # the wall shows who has one
    assert board["sampled"].startswith("18 of 84 texts")


def test_scores_alone_are_enough(open_page, answered: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(answered / "answers", tmp_path / "home" / "answers"))
    run = open_run(copy)
    kept = [facts for s in stored_scores(run, "test").values() for facts in s.facts.values()]
    for path in (copy / "results" / "tables").glob("*.parquet"):
        if path not in [result_path(run, facts) for facts in kept]:
            path.unlink()
    app = check(open_page(copy.parent, "run=answers"))
    assert app.selectbox(key="measure").options[0] == "contains (score)"
    assert len(cells(app)) == 12 and "base" not in bench(app)


# ------------------------------------------------------------------------------- the examples


def link(**more: str) -> str:
    """The query that chooses the score ``SE``."""
    return urlencode({"run": "answers", "measure": SE, **more})


def cards(app: AppTest) -> dict[str, str]:
    """Title of every model's card to what it says."""
    body = next(e.proto.body for e in app.get("html") if "sl-answers" in e.proto.body)
    found = re.findall(r"<h4>(.*?)</h4>(.*?)</article>", body)
    return {title: said for title, said in found}


def test_prompts_and_answers_stand_in_the_table(open_page, answered: Path) -> None:
    app = check(open_page(answered, link(stage="habits", sort="order of the set"), PAGE))
    shown = table(app)
    run = open_run(answered / "answers")
    facts = stored_scores(run, "test")[SE].facts["replay"]
    result = load_result(run, "test", "scores", "replay", facts.settings)
    assert result is not None
    rows = result.table[result.table["stage"] == "habits"]
    assert shown["input prompt"].tolist() == list(PROMPTS) and "input completion" not in shown
    assert shown["answer"].tolist() == rows["prediction"].tolist()
    assert shown["answer without"].tolist() == rows["prediction_without"].tolist()
    assert shown["score of the answer"].tolist() == ["0", "1", "0", "0"]
    assert shown["effect without habits"].tolist() == ["0.0", "▲ 100", "0.0", "0.0"]


@pytest.mark.parametrize(
    ("more", "left"),
    [
        ({"side": "credit"}, ["1"]),
        ({"side": "blame"}, []),
        ({"changed": "true", "stage": "habits"}, ["1", "2"]),
        ({"changed": "true", "stage": "general"}, ["1"]),
    ],
)
def test_flips_and_changed_answers_are_filters(
    open_page, answered: Path, more: dict[str, str], left: list[str]
) -> None:
    app = check(open_page(answered, link(**more), PAGE))
    assert {"Credit or blame", "Answer changes"} <= labels(app)
    assert "Answer" not in labels(app)  # whole answers are no choice
    shown = table(app)["id"].tolist() if left else []
    assert sorted(shown) == left
    assert f"{len(left)} of 4 texts" in words(app)


def test_an_example_shows_every_models_answer_with_its_differences(
    open_page, answered: Path
) -> None:
    app = check(open_page(answered, link(example="1", stage="polish"), PAGE))
    found = cards(app)
    without = [f"without {name}" for name in ("polish", "general", "habits")]
    after = ["base, before any stage", *(f"after {name}" for name in STAGES)]
    assert list(found) == ["final model", *without, *after]
    assert "<ins>TT</ins>" in found["without habits"]
    assert "another answer" in found["without habits"]
    assert "regex (pattern=se): <b>0</b>, effect ▲ 1 ●" in found["without habits"]
    assert "contains: <b>0</b>, effect 0 ●" in found["without habits"]
    assert not any("<del>" in card for card in found.values())
    assert "<ins>" not in found["after polish"] and "another answer" not in found["after polish"]
    assert "regex (pattern=se): <b>1</b>" in found["after polish"]
    tabs = {tab.label for tab in app.tabs}
    assert {"Answers", "Side by side"} <= tabs and "When" not in tabs
    assert "Without habits, the regex (pattern=se) score would be 100 points lower" in words(app)


def test_answers_are_a_tab_beside_likelihoods(open_page, answered: Path) -> None:
    app = check(open_page(answered, "run=answers&example=1&look=Answers", PAGE))
    assert len(cards(app)) == 8 and "Change of the score" not in labels(app)
    app = check(open_page(answered, "run=answers&set=whole&example=1", PAGE))
    assert "Answers" not in [tab.label for tab in app.tabs]


# --------------------------------------------------------------------------- a prompt of one's own


class Asked:
    """In the place of the child: what was started, and what it has said so far."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arguments: tuple[str, ...] = ()
        self.running = True
        self.title = "Answers to a prompt"
        monkeypatch.setattr(jobs, "start", self.start)
        monkeypatch.setattr(jobs, "find", lambda arguments: self if self.arguments else None)
        monkeypatch.setattr(jobs, "leave", lambda arguments: setattr(self, "running", False))

    def start(self, arguments: tuple[str, ...], title: str) -> None:
        self.arguments = arguments

    def option(self, name: str) -> str:
        return self.arguments[self.arguments.index(name) + 1]

    def say(self, *models: dict[str, object]) -> None:
        Path(self.option("--replies")).write_text(json.dumps({"models": models}))

    def status(self) -> Status:
        return Status("running" if self.running else "cancelled", 0.5, "Asking", None, 3.0)


def said(model: str, answer: str | None, **more: object) -> dict[str, object]:
    known = {"done": True, "ended": True, "cut": False, "trust": "exact", "reason": ""}
    return {"model": model, "answer": answer, **known, **more}


def test_a_prompt_is_answered_by_one_model_after_another(
    open_page, answered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = Asked(monkeypatch)
    app = check(open_page(answered, "run=answers&view=Own+example", PAGE))
    assert "its 3 counterfactuals, one without each stage, each as soon as it is there" in words(
        app
    )
    app.text_area(key="own-asked").input("two <b>and</b> two").run()
    app.button(key="ask-models").click()
    check(app.run())
    assert child.arguments[:2] == ("ask", str(answered / "answers"))
    assert Path(child.option("--prompt-file")).read_text() == "two <b>and</b> two"
    assert (child.option("--estimator"), child.option("--max-tokens")) == ("replay", "64")
    assert not any("<b>" in word for word in child.arguments)  # commands are seen by others
    child.say({"model": "final", "answer": "it <i>is", "done": False})
    app = check(app.run())
    assert "it &lt;i&gt;is …" in body(app) and "0 of 4 models answered" in words(app)
    child.say(
        said("final", "it is four", trust=""),
        said("without:general", "it is five", ended=False),
        said("without:habits", None, trust="refused", reason="It was not recorded."),
    )
    app = check(app.run())
    found = cards(app)
    assert "3 of 4 models answered" in words(app)
    assert "it is <bdi" not in found["final model"]
    assert "it is </bdi><ins>five</ins>" in found["without general"]
    assert "goes on after the most tokens" in found["without general"]
    assert "It was not recorded." in found["without habits"]
    app.button(key="cancel-ask").click()
    app = check(app.run())
    assert "Cancelled: 3 of 4 models answered." in words(app) and len(cards(app)) == 3
    # The process has yet to end, but nothing is left to cancel.
    child.running = True
    child.say(
        *(said(model, "it is four") for model in ("final", *(f"without:{n}" for n in STAGES)))
    )
    app = check(app.run())
    assert "All 4 models answered." in words(app) and "Cancel" not in buttons(app)
    child.running = False
    assert "All 4 models answered." in words(check(app.run()))
    folder = Path(child.option("--prompt-file")).parent
    app.text_area(key="own-asked").input("  ").run()
    assert "The answers below are to the prompt as it was" in words(app)
    app.button(key="ask-models").click()
    check(app.run())
    assert not folder.exists()  # what was asked before is gone


def test_prompts_of_the_set_are_offered_to_start_from(open_page, answered: Path) -> None:
    app = check(open_page(answered, "run=answers&view=Own+example", PAGE))
    offered = [button for button in app.button if str(button.key).startswith("start-from")]
    assert [button.label for button in offered] == list(PROMPTS)
    app.text_area(key="own-asked").input("two et deux").run()
    app.button(key="start-from-1").click()
    app = check(app.run())
    assert app.text_area(key="own-asked").value == PROMPTS[1]


def buttons(app: AppTest) -> list[str]:
    return [button.label for button in app.button]


def body(app: AppTest) -> str:
    return next(e.proto.body for e in app.get("html") if "sl-answers" in e.proto.body)


def test_without_scores_the_likelihood_is_asked_about_first(open_page, text_runs: Path) -> None:
    app = check(open_page(text_runs, "run=prompts&view=Own+example", PAGE))
    kinds = next(group for group in app.button_group if group.key == "own-kind")
    assert kinds.value == "Prompt and completion"
    assert kinds.options[-1] == "Answers to a prompt"
    app = check(open_page(text_runs, "run=comments&view=Own+example", PAGE))
    assert not app.button_group or "Answers" not in str(app.button_group[0].options)


def test_a_server_that_computes_nothing_asks_nobody(
    open_page, answered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGELENS_READ_ONLY", "1")
    app = check(open_page(answered, "run=answers&view=Own+example", PAGE))
    assert app.button(key="ask-models").disabled
