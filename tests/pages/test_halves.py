"""On the Overview: a stage taken as two halves."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from stagelens.effects.coalition_results import key_of, save_part, stored_part
from stagelens.estimators.halves import halves_of, stored_halves, whole_mask
from stagelens.runs.run import open_run
from stagelens.ui.server import jobs
from tests.pages.conftest import OpenPage
from tests.pages.reading import check, words
from tests.support.coalitions import store

LINK = "run=digits&wall=all&measure=margin&credit=Share&halves=pretrain"


@pytest.mark.slow
def test_how_shares_would_change_is_said_or_computed(
    open_page: OpenPage, demo_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(demo_copy / "results" / "coalitions", ignore_errors=True)
    run = open_run(demo_copy)
    store(run, "test")
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(jobs, "start", lambda words, title, **_: started.append(tuple(words)))
    app = check(open_page(demo_copy.parent, LINK))
    said = words(app)
    assert "16 models, 1 of them recorded: 15 stages trained again" in said
    (button,) = [one for one in app.button if one.label == "Compute halves"]
    check(button.click().run())
    cut = halves_of(run, "pretrain")
    wanted = ("--set", "test", "--estimator", "replay", "--halves", f"pretrain:{cut.step}")
    assert started == [("shares", str(demo_copy), *wanted)]
    made = stored_halves(run, cut)
    assert made is not None, "the demo records checkpoints"
    examples, random = run.evaluation_set("test"), np.random.default_rng(0)
    for mask in range(32):
        whole = whole_mask(mask, 0)
        known = mask % 16 if whole is None else whole
        found = stored_part(run, key_of(run, examples, "replay", {}), known)
        assert found is not None
        part, table = found
        if whole is None:
            table = table.assign(margin=random.normal(size=len(table)))
        own = part.model_copy(update={"key": key_of(made, examples, "replay", {}), "mask": mask})
        save_part(made, own, table)
    said = words(check(open_page(demo_copy.parent, LINK)))
    steps = f"steps 1 to {cut.step} and steps {cut.step + 1} to {run.stages[0].steps}"
    assert f"Taken as two halves ({steps}), pretrain 's share of the mean margin on all" in said
    assert "shortcut 's would change by" in said
    said = words(check(open_page(demo_copy.parent, f"{LINK}&group=stamped")))
    assert "pretrain 's share of the mean margin on stamped images would be" in said
