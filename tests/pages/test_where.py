"""Where in the input a stage's effect sits, on both pages that show it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from stagelens.analyses.saliency.map_table import load_maps, map_facts, save_maps
from stagelens.report.store import FindingStore
from stagelens.runs.run import open_run
from stagelens.ui.examples import saliency
from stagelens.ui.server import jobs
from tests.pages.reading import check, figures, words

PAGE, EXAMPLES = "pages/2_Spurious_features.py", "pages/1_Examples.py"
LINK = "run=digits&part=Where+in+the+input&stage=shortcut&group=stamped&side=blame"


def maps(app) -> list[dict]:
    return [each for each in figures(app) if each["alt"].startswith("Where in example")]


def test_the_gallery_shows_the_strongest_examples_with_their_sums(
    open_page, demo_copy: Path
) -> None:
    app = check(open_page(demo_copy.parent, LINK, PAGE))
    shown = maps(app)
    assert len(shown) == 6 and all("% of it, by size, lies in rows" in s["alt"] for s in shown)
    said = words(app)
    assert re.search(r"On these 6 images, \d+ % of the effect of shortcut on the margin", said)
    sums = re.findall(r"Effect (\S+) = pixels (\S+) \+ baseline (\S+) nats", said)
    assert len(sums) == 6
    for numbers in sums:
        effect, pixels, baseline = (float(n.replace("−", "-")) for n in numbers)
        assert effect == pytest.approx(pixels + baseline, abs=0.06) and effect < 0
    assert "label" in said and "without shortcut" in said
    first = shown[0]
    heat = [trace for trace in first["data"] if trace["type"] == "heatmap"]
    colors = first["layout"]["coloraxis"]
    assert len(heat) == 3 and colors["cmin"] == -colors["cmax"]
    assert len(first["layout"]["images"]) == 3


def test_a_map_is_kept_and_another_baseline_is_another_map(open_page, demo_copy: Path) -> None:
    run = open_run(demo_copy)
    link = f"{LINK}&estimator=coarse-replay+1/4"
    for baseline in ("black", "mean"):
        app = check(open_page(demo_copy.parent, f"{link}&baseline={baseline}", PAGE))
        facts = map_facts(
            *(run, "test", "coarse-replay", {"budget": 0.25}, "shortcut", "margin", baseline)
        )
        found = load_maps(run, facts)
        assert len(found) == 6 and len(maps(app)) == 6
        assert f"from the baseline ({baseline}:" in words(app)


def test_a_map_whose_sums_do_not_hold_is_not_shown(open_page, demo_copy: Path) -> None:
    check(open_page(demo_copy.parent, f"{LINK}&estimator=coarse-replay+1/4", PAGE))
    run = open_run(demo_copy)
    facts = map_facts(
        *(run, "test", "coarse-replay", {"budget": 0.25}, "shortcut", "margin", "black")
    )
    one, *_ = load_maps(run, facts).values()
    one.final[:] *= 3
    save_maps(run, facts, [one])
    app = check(open_page(demo_copy.parent, f"{LINK}&estimator=coarse-replay+1/4", PAGE))
    assert len(maps(app)) == 5 and "No map is shown: after" in words(app)


def test_larger_models_are_attributed_in_a_child_process(
    open_page, demo_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saliency, "_QUICK", 0)
    asked = []
    monkeypatch.setattr(jobs, "start", lambda arguments, title: asked.append(arguments))
    monkeypatch.setattr(saliency, "_job", lambda arguments: asked.append(arguments))
    app = check(open_page(demo_copy.parent, LINK, PAGE))
    assert maps(app) == []
    ((command, path, *options),) = asked
    assert command == "saliency" and path == str(demo_copy)
    assert options.count("--example") == 6 and "shortcut" in options


def test_an_example_shows_its_own_map(open_page, demo_copy: Path) -> None:
    link = "run=digits&example=stamped-004&look=Where&measure=margin&stage=shortcut"
    app = check(open_page(demo_copy.parent, link, EXAMPLES))
    (shown,) = maps(app)
    assert "example stamped-004 the effect of shortcut on the margin" in shown["alt"]
    assert "On this image" in words(app)
    figure = json.loads(json.dumps(shown))
    titles = [note["text"] for note in figure["layout"]["annotations"]]
    assert titles == ["final model", "without shortcut", "effect of shortcut"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "behaviour"),
    [
        ("comments", "margin"),
        pytest.param("prompts", "log-likelihood", marks=pytest.mark.extensive),
    ],
)
def test_texts_have_their_tokens_shaded(
    open_page, text_runs: Path, tmp_path: Path, run: str, behaviour: str
) -> None:
    home = tmp_path / "home"
    shutil.copytree(text_runs / run, home / run)
    link = f"run={run}&example=1&look=Where&measure={behaviour}"
    app = check(open_page(home, link, EXAMPLES))
    bodies = [e.proto.body for e in app.get("html") if "Where in example" in e.proto.body]
    assert len(bodies) == 1 and "final model" in bodies[0] and "blame" in bodies[0]
    assert re.search(r"Effect \S+ = tokens \S+ \+ baseline \S+ nats", words(app))
    check(app.button(key="pin-to-where-1").click().run())
    check(app.button(key="pin-it").click().run())
    (found,) = FindingStore(open_run(home / run)).read().kept
    assert (
        found.seen.rows.columns[:2] == ("token", "final model") and len(found.seen.rows.values) > 1
    )
    app = check(open_page(home, f"run={run}&set=hostile&part=Where+in+the+input", PAGE))
    bodies = [e.proto.body for e in app.get("html")]
    assert any("Where in example" in body for body in bodies)
    assert all("<script" not in body and "<img" not in body for body in bodies)


def test_an_example_without_a_number_says_so(open_page, text_runs: Path) -> None:
    app = check(open_page(text_runs, "run=comments&example=5&look=Where", EXAMPLES))
    assert "No map: the margin of this example is not known." in words(app)
    link = "run=prompts&example=1&look=Where&measure=preference"
    assert "cannot be attributed" in words(check(open_page(text_runs, link, EXAMPLES)))
