"""A report stands alone, holds what every number needs, and shows names from data as they are."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
from typer.testing import CliRunner

from stagelens.cli import app
from stagelens.contracts import StageLensError
from stagelens.report.figures import kept
from stagelens.report.finding import Finding, FindingEdit, FindingView, Rows
from stagelens.report.page import LARGEST, Report, Section, as_html
from stagelens.report.provenance import FIRST_ORDER
from stagelens.report.rows import LEADING, as_csv, as_json
from stagelens.report.sections import whole_report
from stagelens.report.store import new_id
from stagelens.runs.run import open_run
from stagelens.wording.trust_words import TrustWord
from tests.conftest import DemoRun
from tests.support.every_chart import EVERY
from tests.support.findings import finding, scatter, seen, trust_of
from tests.support.hostile import MARKUP, OWNED, TEXTS
from tests.support.report_pages import PACKED, figures_of, page_of, report_of, table_of, unpacked

_OF_MARKDOWN = ("a", "blockquote", "br", "code", "em", "hr", "li", "ol", "pre", "strong", "ul")


@pytest.fixture
def short_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is drawn, 5 MB of plotly.js need not be read."""
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "const Plotly = {};")


# --------------------------------------------------------------------------- what numbers need


@pytest.mark.slow
def test_every_number_of_the_page_has_trust_estimator_set_and_sentence(
    whole: Report, short_plotly: None
) -> None:
    (main,) = page_of(as_html(whole)).all("main")
    articles = main.all("article")
    assert len(articles) == len(whole.findings) > 6
    for article in articles:
        for needed in ("trust", "estimator", "set", "said"):
            places = article.all(of=needed)
            assert places, f"{article.text[:60]}: {needed}"
            assert all(place.text.strip() for place in places), f"{article.text[:60]}: {needed}"
        assert re.search(r"[●◆◇◐○✕]", article.all(of="trust")[0].text)
    inside = {id(each) for article in articles for each in [article, *article.all()]}
    for element in main.all():
        if id(element) not in inside and element.tag in ("p", "dd", "td", "h2"):
            assert not re.search(r"\d\.\d", element.text), f"a number stands alone: {element.text}"


def test_every_row_of_the_json_has_trust_estimator_set_and_sentence(whole: Report) -> None:
    document = json.loads(as_json(whole))
    assert document["run"]["digest"] == whole.run_digest
    rows = 0
    for each in document["findings"]:
        assert each["estimator"] and each["run_digest"]
        assert each["set"]["name"] and each["set"]["digest"]
        assert each["trust"] and all(one["trust"] and one["means"] for one in each["trust"])
        assert each["sentences"] and all(each["sentences"])
        assert "filters" in each
        rows += len(each["rows"])
    assert rows > 30


def test_every_line_of_the_csv_has_trust_estimator_set_and_sentence(whole: Report) -> None:
    text = as_csv(whole).decode()
    comments = [line for line in text.splitlines() if line.startswith("# ")]
    assert f"# run digest: {whole.run_digest}" in comments
    assert any("filters: group: stamped" in line for line in comments)
    table = pd.read_csv(io.StringIO(text), skiprows=len(comments), keep_default_na=False)
    assert list(table.columns[: len(LEADING)]) == list(LEADING)
    assert len(table) > 30 and table.columns.is_unique
    # Nothing is promised of what is not estimated.
    for name in set(LEADING) - {"note", "reliable_of_row", "expected_error_of_row"}:
        assert (table[name].astype(str) != "").all(), name
    bars = table[(table["title"] == "Credit and blame") & (table["stage"] == "two")]
    assert bars["trust_of_row"].tolist() == ["verified"]
    assert bars["known_of_row"].tolist() == ["two: verified (r 0.97, error 20 %)"]
    assert set(table["trust_of_row"]) <= set(get_args(TrustWord))


def test_trust_that_nobody_told_is_not_made_up(short_plotly: None) -> None:
    text = page_of(as_html(report_of(finding(trust=(), estimator="")))).all(of="trust")[0].text
    assert "○ rough (trust not known)" in text
    text = page_of(as_html(report_of(finding(trust=(), observed="the models")))).all(of="trust")
    assert "● exact (observed on the models)" in text[0].text
    text = page_of(as_html(report_of(finding(trust=(), estimator=FIRST_ORDER)))).all(of="trust")
    assert "○ rough (first order, not checked)" in text[0].text and "not known" not in text[0].text


def test_the_default_report_says_what_the_demo_hides(whole: Report, short_plotly: None) -> None:
    main = page_of(as_html(whole)).all("main")[0]
    headings = [each.text for each in main.all("h2")]
    assert headings == [
        "Findings",
        "Contents",
        *(
            "What stands out",
            "Credit and blame",
            "Shares",
            "Stages",
            "Paths",
            "Trust",
            "Group gaps",
        ),
    ]
    said = main.text.replace("\n", "")
    assert re.search(
        r"Without shortcut, accuracy on stamped images would be \d+ points higher", said
    )
    assert "The gap in accuracy between stamped and clean images" in said
    assert "shortcut does its harm only because pretrain came before" in said
    assert "A note beside it" in said


def test_a_finding_of_another_recording_says_so(whole: Report, short_plotly: None) -> None:
    other = finding(run_digest="f" * 64)
    text = page_of(as_html(report_of(other))).all("article")[0].text
    assert "of another recording than this report" in text


# -------------------------------------------------------------------------------- stands alone


def test_nothing_is_loaded_from_anywhere(whole: Report) -> None:
    root = page_of(as_html(whole))
    for element in root.all():
        for name, value in element.attributes.items():
            loads = name in ("src", "href", "srcset", "action", "data", "poster", "background")
            inside = (value or "").startswith(("data:", "#"))
            assert not loads or inside, (element.tag, name, value)
            assert not name.startswith("on"), (element.tag, name)
    assert not root.all("link") and not root.all("iframe") and not root.all("base")
    for style in root.all("style"):
        assert "url(" not in style.text and "@import" not in style.text


def test_only_the_two_scripts_of_the_report_may_run(whole: Report) -> None:
    root = page_of(as_html(whole))
    (policy,) = (
        each.attributes["content"] or ""
        for each in root.all("meta")
        if each.attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy and "unsafe-eval" not in policy
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    scripts = root.all("script")
    texts = [each.text for each in scripts if each.attributes.get("type") != PACKED]
    texts += [unpacked(each) for each in scripts if each.attributes.get("id") == "plotly"]
    run = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts}
    assert run == allowed and len(run) == 2


def test_plotly_stands_in_it_once_and_twenty_large_findings_fit() -> None:
    marks = scatter(6_000)
    copies = [Finding(seen=marks.model_copy(update={"id": new_id()})) for _ in range(6)]
    many = [*(finding() for _ in range(14)), *copies]
    content = as_html(report_of(*many))
    assert len(content) < LARGEST["interactive"]
    root = page_of(content)
    assert sum(each.attributes.get("id") == "plotly" for each in root.all("script")) == 1
    assert len(root.all(of="chart")) == 20
    assert "1,500 of" in root.text and "marks of credit are drawn" in root.text
    kinds = {t["type"] for text in figures_of(root) for t in json.loads(text)["data"]}
    assert kinds == {"bar", "scatter"}  # WebGL would need scripts that are made while running


def test_a_picture_that_leaves_no_room_is_left_out_and_that_is_said() -> None:
    huge = {"data": [{"type": "heatmap", "z": [[0.123456789] * 40_000] * 10}], "layout": {}}
    content = as_html(report_of(finding(figure=huge), finding()))
    assert len(content) < LARGEST["interactive"]
    root = page_of(content)
    assert len(root.all(of="chart")) == 1
    assert "too large for a report" in root.text


@pytest.mark.slow
def test_a_static_report_has_pictures_no_script_and_every_number_in_a_table(whole: Report) -> None:
    """With a copy of every kind of chart that can be pinned, it is under 1 MB."""
    pinned = [finding(title=name, **_drawn(name)) for name in EVERY]
    report = replace(whole, sections=[*whole.sections, Section("Findings", "", pinned)])
    content = as_html(report, "static")
    assert len(content) < LARGEST["static"] == 1_000_000
    root = page_of(content)
    assert not root.all("script") and b"script-src &#39;none&#39;" in content
    drawn = [each for each in report.findings if each.seen.figure is not None]
    assert len(drawn) > len(EVERY) + 4
    for each in drawn:
        (article,) = [a for a in root.all("article") if a.attributes["id"] == f"finding-{each.id}"]
        wide, narrow = article.all("svg")
        for picture in (wide, narrow):
            told, said = picture.all("title")[0], picture.all("desc")[0]
            assert (told.text, said.text) == (each.seen.title, each.seen.said)
        assert article.all("details")[0].all("td"), each.seen.title
    assert "reports only" not in root.text and "too large" not in root.text


def _drawn(name: str) -> dict[str, object]:
    figure, rows = kept(EVERY[name]())
    return {"figure": figure, "rows": rows}


def test_a_figure_that_is_no_picture_leaves_its_table_and_says_why() -> None:
    box = {"data": [{"type": "box", "y": [1, 2]}], "layout": {}}
    wrong = {"data": [{"type": "bar", "x": "?", "marker": 3}], "layout": {"xaxis": 1}}
    content = as_html(report_of(finding(figure=box), finding(figure=wrong)), "static")
    root = page_of(content)
    assert "A trace of the kind box is drawn in interactive reports only" in root.text
    assert "The figure is not as plotly writes it" in root.text
    assert not root.all("svg") and len(root.all("details")) == 2


def test_a_static_report_of_many_marks_is_thinned_and_says_so() -> None:
    content = as_html(report_of(Finding(seen=scatter(6_000))), "static")
    assert len(content) < LARGEST["static"]
    root = page_of(content)
    assert len(root.all("svg")) == 2 and "300 of" in root.text


def test_a_report_without_charts_needs_no_plotly() -> None:
    content = as_html(report_of(table_of(pd.DataFrame({"a": [1, 2]}))))
    assert len(content) < 50_000 and b'id="plotly"' not in content


def test_links_lead_back_to_the_view(short_plotly: None) -> None:
    view = FindingView(page="Examples", title="Examples", query={"set": "a&b", "q": "<x>"})
    one = finding(view=view)
    known = report_of(one, address="http://127.0.0.1:8501/Report", run_reference="digits")
    (link,) = page_of(as_html(known)).all("article")[0].all("a")
    assert link.attributes["href"] == (
        "http://127.0.0.1:8501/Examples?run=digits&set=a%26b&q=%3Cx%3E"
    )
    assert not page_of(as_html(report_of(one))).all("article")[0].all("a")
    script = report_of(one, address="javascript:alert(1)//")
    assert not page_of(as_html(script)).all("article")[0].all("a")


# ------------------------------------------------------------------------------------ escaping


@pytest.mark.parametrize("text", TEXTS[:-1], ids=range(len(TEXTS) - 1))
def test_names_and_notes_are_shown_as_they_are(text: str, short_plotly: None) -> None:
    name = text.replace("\x00", "")
    what = seen(
        (name, "two"),
        title=name,
        said=name,
        set_name=name,
        run_name=name,
        estimator=name,
        filters={name: name},
        view=FindingView(title=name, query={name: name}),
        trust=(trust_of(name),),
    )
    rows = pd.DataFrame({name: [name, "b"], "n": [1, 2]})
    findings = [
        Finding(seen=what, history=(FindingEdit(at=1, note=name),)),
        table_of(rows, title=name),
    ]
    report = Report(name, "d" * 64, [Section(name, name, findings)])
    root = page_of(as_html(report))
    plain = page_of(
        as_html(report_of(finding(), table_of(pd.DataFrame({"a": ["a", "b"], "n": [1, 2]}))))
    )
    tags = {each.tag for each in plain.all()}
    # Notes are Markdown, which has a few tags of its own, none of which can do anything.
    assert {each.tag for each in root.all()} <= tags | {"h2", *_OF_MARKDOWN}
    for link in root.all("a"):
        assert (link.attributes["href"] or "").startswith(("https://", "http://", "#"))
    assert len(root.all("script")) == len(plain.all("script"))
    for element in root.all():
        assert not any(each.startswith("on") for each in element.attributes)
    shown = root.all("main")[0].text
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b\ufeff]", shown)
    words = " ".join(re.findall(r"[a-z]{4,}", name)[:2])
    assert words in " ".join(re.findall(r"[a-z]{4,}", shown))
    assert json.loads(as_json(report))["findings"][0]["title"] == name
    list(csv.reader(io.StringIO(as_csv(report).decode())))


def test_figures_cannot_end_their_script(short_plotly: None) -> None:
    evil = {"data": [{"type": "bar", "name": MARKUP[0], "x": [1], "y": [1]}], "layout": {}}
    content = as_html(report_of(finding(figure=evil)))
    assert f"<script>{OWNED}".encode() not in content
    (figure,) = figures_of(page_of(content))
    assert json.loads(figure)["data"][0]["name"] == MARKUP[0]


def test_no_cell_of_the_csv_is_a_formula() -> None:
    rows = pd.DataFrame({"name": ["=1+1", "@x", "-2", "+3"], "value": [-1.0, 2.0, -3.0, 4.0]})
    text = as_csv(report_of(table_of(rows, title="=HYPERLINK()"))).decode()
    lines = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    assert [line["name"] for line in lines] == ["'=1+1", "'@x", "'-2", "'+3"]
    assert [line["value"] for line in lines] == ["-1.0", "2.0", "-3.0", "4.0"]
    assert lines[0]["title"] == "'=HYPERLINK()"


def test_tables_print_numbers_and_pictures_as_the_page_did(short_plotly: None) -> None:
    picture = "data:image/png;base64,iVBORw0KGgo="
    rows = pd.DataFrame({"input": [picture], "share": [-12.345], "n": [1200], "right": [True]})
    one = finding(kind="table", figure=None, rows=Rows.of(rows, {"share": "%.1f"}))
    cells = page_of(as_html(report_of(one))).all("td")
    assert [each.text for each in cells] == ["", "−12.3", "1,200", "yes"]
    assert cells[0].all("img")[0].attributes["src"] == picture
    assert json.loads(as_json(report_of(one)))["findings"][0]["rows"][0]["input"] is None


# --------------------------------------------------------------------------------- command line


@pytest.mark.slow
def test_the_command_writes_a_report_and_never_over_a_file(
    whole: Report, digits_run: DemoRun, tmp_path: Path
) -> None:
    out = tmp_path / "report.json"
    command = ["report", str(digits_run.path), "--set", "test", "--out", str(out)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert f"{out}: {len(whole.findings) - 1} findings" in done.output
    before = out.read_bytes()
    refused = CliRunner().invoke(app, command)
    assert "already exists; give another name, or --force" in str(refused.exception)
    assert out.read_bytes() == before
    assert CliRunner().invoke(app, [*command, "--force"]).exit_code == 0
    wrong = CliRunner().invoke(app, [*command[:-1], str(tmp_path / "report.pdf")])
    assert "name the file .html, .csv or .json" in str(wrong.exception)
    nowhere = CliRunner().invoke(
        app, [*command[:3], "no-such-set", "--out", str(tmp_path / "x.csv")]
    )
    assert "has no evaluation set 'no-such-set'" in str(nowhere.exception)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "set_name"),
    [("comments", "test"), ("comments", "hostile"), ("prompts", "test"), ("prompts", "hostile")],
)
def test_runs_of_texts_have_a_report_too(
    text_runs: Path, run: str, set_name: str, short_plotly: None
) -> None:
    made, _ = whole_report(open_run(text_runs / run), set_name)
    root = page_of(as_html(made))
    assert len(root.all("article")) == len(made.findings) >= 3
    for article in root.all("article"):
        assert all(article.all(of=needed) for needed in ("trust", "estimator", "set", "said"))
    assert not root.all("img") and not root.all("iframe") and not root.all("form")
    assert json.loads(as_json(made))["findings"] and as_csv(made)


@pytest.mark.slow
def test_what_has_not_been_measured_is_measured_first(digits_run: DemoRun, tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    shutil.copytree(digits_run.path, folder, ignore=shutil.ignore_patterns("results"))
    with pytest.raises(StageLensError, match="measure them with: stagelens attribute"):
        whole_report(open_run(folder), "test")
    out = tmp_path / "report.json"
    command = ["report", str(folder), "--set", "test", "--out", str(out)]
    assert CliRunner().invoke(app, command).exit_code == 0
    estimators = {each["estimator"] for each in json.loads(out.read_bytes())["findings"]}
    assert "replay" in estimators  # within its time limit
