"""A dossier: what is recorded, said, counted and measured of every stage, and how to check it."""

from __future__ import annotations

import html
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from stagelens.report.checking import check_report
from stagelens.report.dossier.building import dossier
from stagelens.report.dossier.computing import computing, count, stored
from stagelens.report.dossier.content import Dossier
from stagelens.report.dossier.writing import as_html, as_json, as_markdown
from stagelens.runs import described
from stagelens.runs.run import open_run
from tests.conftest import DemoRun
from tests.support.hostile import DIRECTIONS

from .conftest import Command

EVIL = "<script>alert(1)</script> | **b** `c`"


@pytest.fixture(scope="module")
def told(digits_run: DemoRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the demo of which something was said."""
    path = shutil.copytree(digits_run.path, tmp_path_factory.mktemp("dossier") / "digits")
    run = open_run(path)
    given = {
        "responsible": "The digits group",
        "limits": "Not for cheques.",
        "base_operations": 0.0,
        "stages": {"shortcut": {"by": EVIL, "rationale": "to plant a stamp"}},
    }
    described.keep(run, described.from_given(run, given, "test"))
    return path


@pytest.fixture(scope="module")
def made(told: Path) -> Dossier:
    run = open_run(told)
    return dossier(run, count(run))


def test_facts_say_where_they_come_from_and_what_nobody_said(made: Dossier) -> None:
    stage = made.stages[1]
    facts = {fact.name: fact for fact in stage.facts}
    assert (facts["Who"].value, facts["Who"].source) == (EVIL, "said")
    assert facts["Data"].source == "recorded" and "stamp" in facts["Data"].words
    assert (facts["Licence of the data"].words, facts["Licence of the data"].source) == (
        "not known",
        "",
    )
    assert facts["Optimiser"].words == "AdamW, weight decay 0.01"
    assert facts["How it began"].words == "with the weights that pretrain ended with"
    assert len(facts["Hash of the recorded batches"].words) == 64
    assert {fact.name: fact.value for fact in made.facts}["Intended use"] is None
    assert "Not for cheques." in made.limits


def test_computing_adds_up_and_a_modification_is_a_part_of_all_up_to_then(made: Dossier) -> None:
    found = [stage.computing for stage in made.stages]
    counted = [one.operations or 0.0 for one in found]
    assert all(counted)
    assert sum(one.share or 0.0 for one in found) == pytest.approx(1.0)
    assert found[0].before == 1.0
    assert found[1].before == pytest.approx(counted[1] / sum(counted[:2]))
    assert found[-1].before == found[-1].share


def test_what_training_started_from_counts_where_it_is_said(told: Path) -> None:
    run = open_run(told)
    names, counted = [stage.name for stage in run.stages], count(run)
    alone = computing(names, counted)
    of_all = sum(one.operations or 0.0 for one in alone)
    with_base = computing(names, counted, of_all)
    assert [one.share for one in with_base] == pytest.approx(
        [(one.share or 0.0) / 2 for one in alone]
    )


def test_counts_are_kept_for_their_recording_only(told: Path) -> None:
    run = open_run(told)
    counted = count(run)
    assert stored(run) == counted
    path = told / "results" / "operations.json"
    path.write_text(path.read_text().replace(run.digest, "0" * 64))
    assert stored(run) is None


def test_statements_are_what_stands_out_with_their_trust(made: Dossier) -> None:
    shortcut = made.stages[1].measured
    said = [one.text for one in shortcut]
    assert any(
        text.startswith("Without shortcut, accuracy on stamped images would be 29 points higher")
        for text in said
    )
    share = next(text for text in said if text.startswith("shortcut was measured to make accuracy"))
    assert re.fullmatch(
        r".* on all images 18 points higher, by its share \(95 % over 894 images: \+\d+ points to "
        r"\+\d+ points\)\.",
        share,
    )
    assert not any("share" in text and "would be" in text for text in said)
    assert {one.trust for one in shortcut} == {"exact"}
    assert {one.set_name for one in shortcut} == {"test", "mixed-up"}


def test_a_run_that_nothing_was_measured_of(told: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(told, tmp_path / "bare")
    shutil.rmtree(bare / "results")
    found = dossier(open_run(bare), None)
    assert {stage.computing.why_not for stage in found.stages} == {"it was not counted"}
    assert not any(stage.measured or stage.silent for stage in found.stages)
    assert "No stage effect has been measured on any set." in found.limits
    assert b"Nothing was measured." in as_html(found)
    assert b"Nothing was measured." in as_markdown(found)


def test_every_kind_of_file_holds_it_and_nothing_from_data_is_markup(made: Dossier) -> None:
    page = as_html(made).decode()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "script-src &#39;none&#39;" in page
    for anchor in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{anchor}"' in page
    content = json.loads(as_json(made))
    assert content["run"]["digest"] == made.run_digest
    assert [stage["name"] for stage in content["stages"]] == [one.name for one in made.stages]
    card = as_markdown(made).decode()
    assert r"\<script\>alert\(1\)" not in card and r"\<script\>alert(1)\</script\> \| " in card
    rows = [line for line in card.splitlines() if line.startswith("| Who |")]
    assert len(rows) == 4 and all(re.sub(r"\\\|", "", row).count("|") == 3 for row in rows)


def test_names_that_hide_or_turn_others_are_written_out_in_a_model_card(made: Dossier) -> None:
    hidden = f"a\u202eb\u200bc {DIRECTIONS[0]}"
    card = as_markdown(replace(made, limits=[hidden])).decode()
    assert "a\\[U+202E\\]b\\[U+200B\\]c" in card and "\u202e" not in card


def test_commands_are_code_whatever_they_hold(made: Dossier) -> None:
    lines = ["check `x`", "check ``", "plain | [a](b)"]
    card = as_markdown(replace(made, checks=[("w", each) for each in lines])).decode()
    rendered = MarkdownIt("commonmark").render(card)
    assert [each for each in lines if f"<code>{html.escape(each)}</code>" in rendered] == lines


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["html", "json"])
def test_the_command_writes_it_and_check_finds_it_unchanged(
    ending: str, told: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / f"dossier.{ending}"
    done = command("dossier", told, "--out", out)
    assert done.status == 0 and "4 stages" in done.out and "5 of 39 questions" in done.out
    checked = json.loads(command("check", told, "--report", out, "--json").out)
    mine = [each for each in checked if each["what"].startswith("report")]
    assert len(mine) > 1 and all(each["holds"] for each in mine)
    out.write_bytes(out.read_bytes().replace(b"29 points", b"2 points"))
    assert any(each.holds is False for each in check_report(open_run(told), out))


@pytest.mark.slow
def test_the_command_refuses_other_files_and_overwrites_none(
    told: Path, tmp_path: Path, command: Command
) -> None:
    assert ".html, .json or .md" in command("dossier", told, "--out", tmp_path / "d.pdf").err
    out = tmp_path / "d.md"
    assert command("dossier", told, "--out", out).status == 0
    assert "already exists" in command("dossier", told, "--out", out).err
