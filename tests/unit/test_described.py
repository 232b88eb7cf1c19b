"""What people say of a run: asked once, kept with it, and no number depends on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stagelens.contracts import RunError, StageLensError
from stagelens.runs import described
from stagelens.runs.run import open_run

from .conftest import Command


def test_answers_are_kept_and_no_digest_changes(copied: Path) -> None:
    run = open_run(copied)
    given = {"responsible": "A & B", "stages": {"shortcut": {"by": "C", "data": "300 <digits>"}}}
    described.keep(run, described.from_given(run, given, "said.json"))
    more = {"stages": {"shortcut": {"rationale": "to show it"}}, "base_operations": 3e21}
    described.keep(run, described.from_given(run, more, "said.json"))
    again = open_run(copied)
    said = described.answers(again)
    assert (said.responsible, said.base_operations) == ("A & B", 3e21)
    assert said.of("shortcut").by == "C" and said.of("shortcut").rationale == "to show it"
    assert said.of("pretrain").by is None
    assert again.digest == run.digest
    left = described.unanswered(again, said)
    assert "by" not in left["shortcut"] and "by" in left["pretrain"]
    assert "responsible" not in left[""]


def test_an_answer_is_taken_back_by_null(copied: Path) -> None:
    run = open_run(copied)
    described.keep(run, described.from_given(run, {"purpose": "digits"}, "f"))
    described.keep(run, described.from_given(run, {"purpose": None}, "f"))
    assert described.answers(run).purpose is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "give a JSON object"),
        ({"colour": "red"}, "there is no field colour; there are responsible, purpose"),
        ({"stages": {"shortcuts": {}}}, "the run has no stage 'shortcuts'; it has pretrain, short"),
        ({"stages": {"shortcut": {"who": "me"}}}, "stages: shortcut: give an object with fields"),
        ({"stages": {"shortcut": "me"}}, "stages: shortcut: give an object with fields"),
        ({"stages": ["shortcut"]}, "stages: give an object, stage name to its fields"),
        ({"base_operations": "many"}, "base_operations: Input should be a valid number"),
        ({"base_operations": -1}, "base_operations: Input should be greater than or equal"),
        ({"purpose": "x" * 5000}, "purpose: String should have at most 4000"),
    ],
)
def test_what_fits_no_question_is_told_by_name(given: object, says: str, copied: Path) -> None:
    with pytest.raises(StageLensError, match=r"said\.json: ") as told:
        described.from_given(open_run(copied), given, "said.json")
    assert says in str(told.value)


def test_a_damaged_file_is_told(copied: Path) -> None:
    run = open_run(copied)
    described.keep(run, described.from_given(run, {"purpose": "digits"}, "f"))
    path = copied / described.FILE
    path.write_text(path.read_text().replace("digits", "letters"))
    with pytest.raises(RunError, match=r"description\.json was changed"):
        described.answers(run)


def test_the_command_writes_questions_and_takes_answers(
    copied: Path, tmp_path: Path, command: Command
) -> None:
    asked = tmp_path / "said.json"
    assert command("describe", copied, "--template", asked).status == 0
    questions = json.loads(asked.read_text())
    assert list(questions["stages"]) == ["pretrain", "shortcut", "mislabelled", "adapt"]
    for fields, asked_of in (
        (questions["stages"]["adapt"], described.OF_STAGE),
        ({k: v for k, v in questions.items() if k not in ("? how", "stages")}, described.OF_RUN),
    ):
        # Before each field stands what it asks.
        assert list(fields) == [each for name in asked_of for each in (f"? {name}", name)]
        assert all(fields[f"? {name}"] == asked_of[name] for name in asked_of)
    questions["stages"]["adapt"]["by"] = "Ada"
    asked.write_text(json.dumps(questions))
    done = command("describe", copied, "--answers", asked)
    assert done.status == 0 and "1 of 39 questions answered" in done.out
    printed = command("describe", copied, "--json")
    assert json.loads(printed.out)["stages"]["adapt"]["by"] == "Ada"
    assert "already exists" in command("describe", copied, "--template", asked).err
    asked.write_text("{")
    assert "this is no JSON" in command("describe", copied, "--answers", asked).err


def test_without_a_terminal_nothing_is_asked(copied: Path, command: Command) -> None:
    done = command("describe", copied)
    assert done.status == 1 and "--template" in done.err and "--answers" in done.err


def test_every_question_has_its_field() -> None:
    assert set(described.OF_STAGE) == set(described.StageAnswers.model_fields)
    assert {*described.OF_RUN, "stages", "version"} == set(described.RunAnswers.model_fields)
