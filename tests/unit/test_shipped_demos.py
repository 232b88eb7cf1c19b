"""What the demos ship with: draws of their recipe on every set, within their time."""

from __future__ import annotations

import importlib
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from stagelens.contracts import ACCURACY
from stagelens.demos import building
from stagelens.effects.draws import FEWEST
from stagelens.effects.headlines import headlines
from stagelens.effects.summary import with_accuracy
from stagelens.runs.run import Run, open_run
from stagelens.trust.draws import governing
from stagelens.trust.estimates import best_result
from tests.conftest import ROOT, offline
from tests.unit.conftest import Command


@pytest.mark.parametrize("name", ["digits", "comments", "chat"])
@pytest.mark.parametrize("asked", [None, 0, 2])
def test_a_demo_has_as_many_draws_as_it_ships_with_or_as_are_asked_for(
    name: str, asked: int | None, tmp_path: Path, run: Run, command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    given: list[int] = []

    def instead(*words: object) -> Run:
        given.append(words[5])  # type: ignore[arg-type]
        return run

    monkeypatch.setattr(building, "build", instead)
    options = [] if asked is None else ["--draws", asked]
    answer = command("demo", name, "--out", tmp_path / "new", *options)
    assert answer.status == 0, answer.err
    own = importlib.import_module(f"stagelens.demos.{name}").DRAWS
    assert own >= FEWEST and given == [own if asked is None else asked]


@pytest.mark.extensive
@pytest.mark.parametrize(("name", "limit"), [("digits", 30), ("comments", 60)])
def test_headlines_of_a_fresh_demo_have_intervals_within_its_time_on_two_cores(
    name: str, limit: int, tmp_path: Path
) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [sys.executable, "-m", "stagelens", "demo", name, "--out", str(tmp_path / name)]
    subprocess.run(words, cwd=ROOT, env=offline(), check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, which other work on the machine lengthens less than it does the time waited.
    taken = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert taken < 2 * limit
    made = open_run(tmp_path / name)
    own = importlib.import_module(f"stagelens.demos.{name}").DRAWS
    stages = [stage.name for stage in made.stages]
    for set_name in made.set_names:
        drawn = governing(made, set_name)
        assert drawn is not None and drawn.words == f"{own} redraws"
    known = best_result(made, "test", stages)
    trust = {each.stage: each for each in known.facts.stages}
    said = headlines(
        with_accuracy(known.table), ACCURACY, stages, trust, by="group",
        draws=governing(made, "test"),
    )  # fmt: skip
    # Where draws differ an interval over them; else that they are all alike.
    assert said and all(f"{own} redraws" in str(each) for each in said)
