"""Every number that rests on an estimate carries one of the eight words, and the right one."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
from typer.testing import CliRunner

import stagelens
from stagelens.analyses.spurious.gaps import gap_sentences, group_gaps, rows_of
from stagelens.cli import app
from stagelens.contracts import Trust
from stagelens.effects.headlines import headlines
from stagelens.effects.results import load_result
from stagelens.runs.run import Run
from stagelens.trust.estimates import as_effects
from stagelens.trust.stage_effects import Effects
from stagelens.trust.verification import trusted
from stagelens.ui.pieces import glossary
from stagelens.wording.sentences import mean_sentence
from stagelens.wording.trust_words import TrustWord, trust_word
from tests.support.every_standing import SET, STANDINGS, every_standing

COARSE = ("--estimator", "coarse-replay")
WORDS = frozenset(get_args(TrustWord))
KEPT = {stage: word for stage, word in STANDINGS.items() if word != "refused"}
ERRORS = {"delta": 0.2, "epsilon": 0.5, "zeta": 0.6}
"""Stage to the error that nine of ten such estimates stay within, where it is known."""
NO_FINDING = {s for s, w in STANDINGS.items() if w in ("does not agree", "sign uncertain")}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return every_standing(tmp_path_factory.mktemp("standings") / "run")


@pytest.fixture(scope="module")
def effects(run: Run) -> Effects:
    found = load_result(run, SET, "effects", "coarse-replay", {"budget": 0.25})
    assert found is not None
    return as_effects("coarse-replay 1/4", trusted(run, found), None)


def printed(run: Run, command: str, *options: object) -> str:
    words = [command, str(run.path), "--set", SET, *map(str, options)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output or done.exception
    return done.output


def test_the_run_has_every_standing(effects: Effects) -> None:
    assert {name: trust_word(known) for name, known in effects.trust.items()} == STANDINGS
    assert set(STANDINGS.values()) == WORDS - {"on recorded samples"}


# ----------------------------------------------------------------------------------- the terminal


def test_attribute_prints_and_writes_them(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "effects.csv"
    said = printed(run, "attribute", *COARSE, "--out", out)
    for stage, word in STANDINGS.items():
        assert re.search(rf"│ {stage} .*│ {word} +│", said), stage
    table = pd.read_csv(out)
    assert dict(zip(table["stage"], table["trust"], strict=True)) == STANDINGS
    promised = table[["stage", "trust", "reliable", "expected_error"]].drop_duplicates("stage")
    assert len(table[["stage", "trust"]].drop_duplicates()) == len(promised) == len(STANDINGS)
    promised = promised.set_index("stage")
    assert promised.index[promised["reliable"].astype(bool)].tolist() == ["gamma", "delta"]
    assert promised["expected_error"].dropna().to_dict() == ERRORS


def test_features_prints_and_writes_them(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "features.parquet"
    said = printed(run, "features", *COARSE, "--out", out)
    for stage, word in KEPT.items():
        assert f"Trust in the effect of {stage}: {word}. " in said
    table = pd.read_parquet(out)
    assert dict(zip(table["stage"], table["trust"], strict=True)) == KEPT
    assert set(table.loc[table["reliable"], "stage"]) == {"gamma", "delta"}
    assert printed(run, "features", *COARSE)  # from the stored table, with the same trust


@pytest.mark.parametrize("stage", ["gamma", "zeta"])
def test_saliency_prints_it(run: Run, stage: str) -> None:
    example = run.evaluation_set(SET).examples(0, 1)[0].example_id
    said = printed(run, "saliency", *COARSE, "--stage", stage, "--example", example)
    assert f"Trust in the effect of {stage}: {KEPT[stage]}. " in said


def test_contributions_are_rough(run: Run) -> None:
    said = printed(run, "contributions", "--since", "zeta")
    rows = [line.split("│") for line in said.splitlines() if line.startswith(("│ zeta", "│ eta"))]
    assert [row[-2].strip() for row in rows] == ["rough", "rough"]


def test_remove_prints_them_and_its_card_has_them(run: Run, tmp_path: Path) -> None:
    stages = [word for stage in KEPT for word in ("--stage", stage)]
    out = tmp_path / "edited"
    said = printed(run, "remove", *COARSE, *stages, *["--strength", 0.5] * len(KEPT), "--out", out)
    card = (out / "README.md").read_text()
    for stage, word in KEPT.items():
        assert re.search(rf"^{stage}, 50%: {word}[ :]", said, re.MULTILINE), stage
        assert f"| `{stage}` | 50% | {word} | " in card


@pytest.mark.extensive
def test_verify_gives_a_verdict_for_every_estimate(run: Run, tmp_path: Path) -> None:
    own = stagelens.open_run(Path(shutil.copytree(run.path, tmp_path / "run")))
    asked = ("--estimator", "coarse-replay", "--estimator", "unrolled-jump")
    rows = pd.DataFrame(json.loads(printed(own, "verify", *asked, "--json")))
    assert set(rows["trust"]) <= {"exact", "verified", "does not agree", "refused"}
    promised = rows[rows["estimator"] == "coarse-replay"].set_index("stage")
    assert promised["expected_error"].dropna().groupby("stage").first().to_dict() == ERRORS
    assert promised.loc["gamma", "reliable"].all()
    checked = rows[rows["trust"].isin(["verified", "does not agree"])]
    agrees = (checked["r"] >= 0.9) & (checked["relative_error"] <= 0.5)
    assert ((checked["trust"] == "verified") == agrees).all() and len(agrees)
    said = printed(own, "verify", *asked)
    last = [line.split("│")[-2].strip() for line in said.splitlines() if line.startswith("│ ")]
    assert last == rows["trust"].tolist()


# ------------------------------------------------------------------------------------- the report


@pytest.mark.slow
def test_the_report_has_them_in_every_format(run: Run, tmp_path: Path) -> None:
    for ending in ("json", "csv", "html"):
        printed(run, "report", "--out", tmp_path / f"report.{ending}")
    document = json.loads((tmp_path / "report.json").read_text())
    for finding in document["findings"]:
        for known in finding["trust"]:
            assert known["trust"] == STANDINGS.get(known["stage"], "exact"), finding["title"]
            assert known["known"].startswith(known["trust"])
            assert known["expected_error"] == ERRORS.get(known["stage"])
            assert known["reliable"] in (known["stage"] in ("gamma", "delta"), None)
    text = (tmp_path / "report.csv").read_text()
    lines = [line for line in text.splitlines(keepends=True) if not line.startswith("# ")]
    rows = list(csv.DictReader(io.StringIO("".join(lines))))
    for row in rows:
        assert row["trust_of_row"] in WORDS and row["known_of_row"]
        if row["stage"]:
            assert row["trust_of_row"] == (row["trust"] or STANDINGS[row["stage"]])
        if row["title"].startswith("Credit and blame"):
            assert row["reliable_of_row"] == str(row["stage"] in ("gamma", "delta"))
            assert row["expected_error_of_row"] == str(ERRORS.get(row["stage"], ""))
    # The weakest word where a row is about no single stage, and a row's own where it has one.
    gaps = [row["trust_of_row"] for row in rows if row["title"] == "Accuracy by group"]
    free = [row for row in rows if row["estimator of row"] == "task-vector"]
    assert set(gaps) == {"refused"}
    assert {row["stage"]: row["trust_of_row"] for row in free}["alpha"] == "sign uncertain"
    page = (tmp_path / "report.html").read_text()
    marks = re.findall(r'<span class="word">(\S) ([^<]+)</span>', page)
    assert {word for _, word in marks} <= WORDS and len(marks) >= len(KEPT)


# ---------------------------------------------------------------------------------------- findings


@pytest.mark.parametrize("behaviour", ["margin", "loss"])
def test_what_may_have_the_wrong_sign_is_no_headline(effects: Effects, behaviour: str) -> None:
    kind, stages = effects.behaviours[behaviour], list(STANDINGS)
    found = headlines(
        effects.of(behaviour), kind, stages, effects.trust, by="group", limit=len(stages) * 2
    )
    named = {each.trust.stage for each in found if each.trust is not None}
    assert named == set(KEPT) - NO_FINDING


def test_what_may_have_the_wrong_sign_is_no_finding_on_a_gap(effects: Effects) -> None:
    kind, stages = effects.behaviours["margin"], list(STANDINGS)
    gaps = group_gaps(rows_of(effects, ["group"]), stages, ["group"], kind)
    said = gap_sentences(gaps, stages, effects.trust, "image", limit=len(stages))
    named = {each.trust.stage for each in said if each.trust is not None}
    assert named and not named & NO_FINDING


def test_an_uncertain_sign_is_said_in_the_sentence(effects: Effects) -> None:
    row = {"stage": "zeta", "group": None, "effect": 1.234, "n": 80}
    said = mean_sentence(row, effects.behaviours["loss"], "image", None, effects.trust["zeta"])
    assert "may be some 1 lower or higher, its sign uncertain" in str(said)


# ------------------------------------------------------------------------------------- the sources

OTHER = re.compile(
    r"(verified, agrees|verified, does not agree|estimated, (reliable|rough)|not verified"
    r"|unverified|untrusted|^agrees$|^disagrees$|^trustworthy$|^poor$)",
    re.IGNORECASE,
)
"""Standings in other words."""


@pytest.mark.slow
def test_the_sources_know_no_other_word_for_a_standing() -> None:
    """Neither in a text, nor as an argument, under a key or in a comparison of trust."""
    # The one entry that explains the word itself.
    allowed = {*WORDS, *get_args(Trust), glossary.WORDS["trust"]}
    root = Path(stagelens.__file__).parent
    for path in [*root.rglob("*.py"), *(root.parent / "pages").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not OTHER.search(node.value), f"{path}:{node.lineno}: {node.value!r}"
            for value in _trusts(node):
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    assert value.value in allowed, f"{path}:{value.lineno}: {value.value!r}"


def _trusts(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.keyword) and node.arg == "trust":
        yield node.value
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "trust":
                yield value
    elif isinstance(node, ast.Compare) and getattr(node.left, "attr", "") == "trust":
        yield from node.comparators
