"""Run folders that were recorded by an earlier version: they open, and say what they said then.

How they were made stands in ``tests/fixtures/runs/README.md``.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import stagelens
from stagelens import cli
from stagelens.runs.files import is_sealed
from stagelens.trust.noise import load_noise
from stagelens.trust.verification import load_verification

RUNS = Path(__file__).parents[1] / "fixtures" / "runs"


@dataclass(frozen=True)
class Kept:
    """What is known of a kept run.

    Attributes:
        digest: Of the run as it was recorded. It is written down here so that no later version
            takes a recording for another one than it was.
        set_digest: Of its evaluation set, likewise.
        stages: Their names, and how many steps each has.
        behaviours: What was measured.
        examples: How many the evaluation set has.
    """

    digest: str
    set_digest: str
    stages: dict[str, int]
    behaviours: tuple[str, ...]
    examples: int


KEPT = {
    "classifier": Kept(
        digest="461b8f45250b34dabcb2de3151213f38de4cfeb12380b9d325fcfe42df88efeb",
        set_digest="bba5e0c97f042b634738e82bb653bcbfefad260b6df4d15e16e9b036db62330e",
        stages={"shapes": 10, "marks": 8, "polish": 6},
        behaviours=("margin", "loss", "probability"),
        examples=28,
    ),
    "language_model": Kept(
        digest="11060866ca88fe81cefcd66543a860961393ef7d7a998334390c5175903dfed4",
        set_digest="ff83c798adfa4e577f13f7ba6e089fb7c09459cb95f01c9e83ab593975ab3f98",
        stages={"language": 12, "warmth": 3},
        behaviours=("log-likelihood", "log-likelihood per token", "preference", "perplexity"),
        examples=20,
    ),
}


# In layout 2 of the folder, recorded by the same loops. Where the batches of the classifier lay in
# memory is part of a recording, and was another place.
KEPT |= {
    "classifier-2": replace(
        KEPT["classifier"],
        digest="f6855c38c162aac013b984c9c5e69380fe14a060c2b76fc553e386bd320ae3f5",
    ),
    "language_model-2": KEPT["language_model"],
}
# The same recordings, with estimates that say what they promise.
KEPT |= {
    "classifier-3": replace(
        KEPT["classifier"],
        digest="93a99f0a3967dd791f7c739e4f632687848c449c503deee8d73ce57508b67a56",
    ),
    "language_model-3": KEPT["language_model"],
}


@pytest.fixture(params=sorted(KEPT))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(name: str, tmp_path: Path) -> Path:
    """A copy of the run, to change."""
    return Path(shutil.copytree(RUNS / name, tmp_path / name))


def command(*words: object) -> str:
    """What a command prints, in this process."""
    done = CliRunner().invoke(cli.app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def contents(folder: Path) -> dict[str, str]:
    """File to the sha256 of what it holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def effects(path: Path, estimator: str) -> pd.DataFrame:
    """The effect table, as the command line writes it."""
    out = path.parent / f"{estimator}.parquet"
    command("attribute", path, "--estimator", estimator, "--out", out)
    return pd.read_parquet(out)


def test_the_recording_is_the_one_that_it_was(name: str, path: Path) -> None:
    run, kept = stagelens.open_run(path), KEPT[name]
    assert run.problems == []
    assert {stage.name: stage.steps for stage in run.stages} == kept.stages
    assert all(stage.replayable for stage in run.stages)
    assert run.digest == kept.digest
    assert run.evaluation_set("test").digest == kept.set_digest


def test_a_run_of_either_layout_says_so(name: str, path: Path) -> None:
    run = stagelens.open_run(path)
    layout = 2 if name.endswith(("-2", "-3")) else 1
    assert {run.file.version, *(stage.facts.version for stage in run.stages)} == {layout}
    assert is_sealed(path / "run.json") is (True if layout == 2 else None)


def test_stored_effects_are_found_and_read(name: str, path: Path) -> None:
    # Estimates of an earlier revision are computed again; replays stay what they are.
    estimators = ["replay", "coarse-replay"] if name.endswith("-3") else ["replay"]
    for estimator in estimators:
        before, kept = contents(path), KEPT[name]
        table = effects(path, estimator)
        assert contents(path) == before  # nothing was computed anew
        assert len(table) == len(kept.stages) * len(kept.behaviours) * kept.examples
        assert tuple(table["stage"].unique()) == tuple(kept.stages)
        assert tuple(table["behaviour"].unique()) == kept.behaviours
        assert set(table["estimator"]) == {estimator}
        assert np.isfinite(table["effect"]).all()
        assert table["within_noise"].notna().sum() > 0  # so the stored noise was found too


def test_stored_features_are_found(path: Path) -> None:
    before = contents(path)
    printed = command("features", path, "--estimator", "replay")
    assert contents(path) == before
    assert "tests pass" in printed


def test_contributions_are_computed_once_more_and_are_what_was_stored(
    name: str, path: Path
) -> None:
    """Derivatives in every example's weight, and what a mean over the rest asks, come anew."""
    before = contents(path)
    (was,) = (pd.read_parquet(file) for file in (path / "results/contributions").iterdir())
    printed = command("contributions", path)
    assert all(stage in printed for stage in KEPT[name].stages)
    after = contents(path)
    made = {file for file in after if after[file] != before.get(file)}
    (new,) = (file for file in made if file.startswith("results/contributions/"))
    whole = pd.read_parquet(path / new)
    assert "batch" in set(whole["part"]) and "batch" not in set(was["part"])
    now = whole[whole["part"] != "batch"].reset_index(drop=True)
    own = ["part", "stage", "step", "position", "label"]
    pd.testing.assert_frame_equal(now[own], was[own], check_dtype=False)
    np.testing.assert_allclose(now["value"], was["value"], rtol=1e-4, atol=1e-5)
    assert "slope" in now and "slope" not in was
    command("contributions", path)
    assert contents(path) == after


def test_the_stored_verification_is_read(name: str, path: Path) -> None:
    kept = KEPT[name]
    rows = load_verification(stagelens.open_run(path))
    if not name.endswith("-3"):
        assert rows.empty  # of estimates of an earlier revision
        return
    assert len(rows) == len(kept.stages) * len(kept.behaviours)
    assert set(rows["estimator"]) == {"coarse-replay"}
    assert tuple(rows["stage"].unique()) == tuple(kept.stages)
    assert rows["r_low"].notna().any()


def test_the_stored_noise_is_read(name: str, path: Path) -> None:
    run = stagelens.open_run(path)
    noise = load_noise(run, run.evaluation_set("test").digest)
    assert noise is not None
    assert set(noise["stage"]) == set(KEPT[name].stages) - {run.last.name}


def test_replay_gives_the_stored_effects_again(path: Path) -> None:
    """To a tolerance: another processor, or another version of torch, adds up in another order.

    In float32 that moves a value of order 1 by some 1e-7 per step, and training carries it on. On
    the machine that recorded them, replays of these runs are bit for bit.
    """
    stored = effects(path, "replay")
    shutil.rmtree(path / "results")
    again = effects(path, "replay")
    own = ["stage", "behaviour", "example_id"]
    pd.testing.assert_frame_equal(again[own], stored[own])
    for column in ("final", "without", "effect"):
        np.testing.assert_allclose(again[column], stored[column], rtol=1e-4, atol=1e-5)
    assert "refused" not in set(again["trust"])
