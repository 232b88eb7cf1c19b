"""In the demos, the maps of the stages with planted faults lie on what was planted."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import stagelens
from stagelens.analyses.saliency.concentration import share_of, where_most
from stagelens.analyses.saliency.maps import StageMaps, stage_maps
from stagelens.demos.comment_templates import MENTION, NO_MENTION
from tests.conftest import DemoRun


def maps_of(run: stagelens.Run, stage: str, ids: pd.Series, count: int) -> StageMaps:
    """The maps of a stage on so many examples, evenly spaced, by the demo's own estimate."""
    chosen = ids.iloc[np.linspace(0, len(ids) - 1, count).astype(int)]
    found = stage_maps(run, "test", stage, chosen.tolist(), "coarse-replay")
    assert all(each.holds for each in found.maps)
    return found


@pytest.mark.slow
def test_the_shortcut_lies_in_the_stamp(digits_run: DemoRun, tmp_path: Path) -> None:
    run = stagelens.open_run(shutil.copytree(digits_run.path, tmp_path / "digits"))
    table = run.evaluation_set("test").table()
    ids = table.loc[table["group"] == "stamped", "example_id"]
    stamp = np.zeros((8, 8), dtype=bool)
    stamp[:2, :2] = True
    found = {stage: maps_of(run, stage, ids, 60) for stage in ("shortcut", "mislabelled")}
    shares = {
        stage: float(np.mean([share_of(each.stage, stamp) for each in one.maps]))
        for stage, one in found.items()
    }
    for stage, share in shares.items():
        print(f"{stage}: {share:.3f} of |attribution| lies in the stamp, {stamp.mean():.3f} of all")
    assert shares["shortcut"] >= 2.5 * stamp.mean()
    assert shares["shortcut"] >= 1.3 * shares["mislabelled"]
    one = found["shortcut"]
    said = where_most(one.maps, "shortcut", one.behaviour, one.trust)
    assert said is not None and "rows 0–1, columns 0–1 (top left)" in str(said)


@pytest.mark.extensive
def test_on_harmless_mentions_the_skewed_stage_lies_in_the_mention(
    comments_run: DemoRun, tmp_path: Path
) -> None:
    run = stagelens.open_run(shutil.copytree(comments_run.path, tmp_path / "comments"))
    examples = run.evaluation_set("test")
    words: dict[str, set[str]] = {MENTION: set(), NO_MENTION: set()}
    for example in examples.examples():
        words[example.columns["group"]] |= set(str(example.input["text"]).split())
    mention = words[MENTION] - words[NO_MENTION]
    table = examples.table()
    harmless = (table["label"] == "harmless") & (table["group"] == MENTION)
    found = maps_of(run, "skewed", table.loc[harmless, "example_id"], 12)
    shares, expected = [], []
    for each in found.maps:
        assert each.tokens is not None
        inside = np.array([token.strip() in mention for token in each.tokens])
        shares.append(share_of(each.stage, inside))
        expected.append(inside.mean())
    share, tokens = float(np.mean(shares)), float(np.mean(expected))
    print(f"skewed: {share:.3f} of |attribution| in {tokens:.3f} of the tokens, the mentions")
    assert share >= 2 * tokens
