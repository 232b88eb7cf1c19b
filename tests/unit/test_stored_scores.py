"""Scores beside the effects of an estimate, whatever is stored of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import stagelens
from stagelens.contracts import RunError
from stagelens.effects.results import (
    EFFECT_COLUMNS,
    BehaviourFacts,
    Result,
    ResultFacts,
    result_path,
    save_result,
)
from stagelens.effects.stored_scores import stored_scores
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.run import Run
from stagelens.trust.score_effects import with_scores
from tests.support.text_runs import STAGES, record_prompts


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_prompts(tmp_path_factory.mktemp("scores") / "run", ())


@pytest.fixture
def save(recorded: Path) -> Any:
    """Stores a table of scores: ``save(run, estimator, settings, stages)``; taken away again."""
    made: list[Path] = []

    def keep(run: Run, estimator: str, settings: dict[str, Any], stages: tuple[str, ...]) -> Path:
        own = run.evaluation_set("test").table()
        rows = [
            pd.DataFrame(
                {
                    **dict.fromkeys(EFFECT_COLUMNS),
                    "set": "test",
                    "example_id": own["example_id"],
                    "stage": stage,
                    "behaviour": "score:exact",
                    "final": 1.0,
                    "without": 0.0,
                    "effect": 1.0,
                    "estimator": estimator,
                    "prediction": "yes",
                    "prediction_without": "no",
                    "confidence": np.nan,
                    "confidence_without": np.nan,
                    "within_noise": pd.array([None] * len(own), dtype="boolean"),
                }
            )
            for stage in stages
        ]
        facts = ResultFacts(
            kind="scores",
            run_digest=run.digest,
            set_name="test",
            set_digest=run.evaluation_set("test").digest,
            estimator=estimator,
            settings=settings,
            behaviours=[BehaviourFacts(name="score:exact", better="higher", lowest=0, highest=1)],
            stages=[
                StageTrust(stage=name, estimator=estimator, trust="exact", reason="Made.")
                for name in stages
            ],
        )
        save_result(run, Result(facts, pd.concat(rows, ignore_index=True)))
        made.append(result_path(run, facts))
        return made[-1]

    yield keep
    for path in made:
        path.unlink(missing_ok=True)


Save = Callable[..., Path]
SCORER = {"name": "exact", "settings": {}}


def test_scores_of_one_scorer_are_told_apart_by_their_settings(recorded: Path, save: Save) -> None:
    run = stagelens.open_run(recorded)
    greedy = {"answers": {"samples": 0, "max_tokens": 8}, "scorer": SCORER}
    save(run, "replay", greedy, STAGES)
    assert list(stored_scores(run, "test")) == ["score:exact"]
    save(run, "task-vector", greedy, STAGES)
    (only,) = stored_scores(run, "test").values()
    assert list(only.facts) == ["replay", "task-vector"] and only.best == "replay"
    sampled = {"answers": {"samples": 4, "max_tokens": 8, "seed": 1}, "scorer": SCORER}
    save(run, "replay", sampled, STAGES)
    save(run, "given", {"scorer": SCORER, "given": {"harness": "lm-eval"}}, STAGES)
    found = stored_scores(run, "test")
    assert set(found) == {
        "score:exact (samples=0, max_tokens=8)",
        "score:exact (samples=4, max_tokens=8, seed=1)",
        "score:exact (harness=lm-eval)",
    }
    assert found["score:exact (samples=4, max_tokens=8, seed=1)"].samples == 4
    assert found["score:exact (harness=lm-eval)"].best == "given"


@pytest.mark.parametrize("stage", [None, STAGES[0], STAGES[2]])
def test_stages_without_scores_have_no_numbers(
    recorded: Path, save: Save, stage: str | None
) -> None:
    run = stagelens.open_run(recorded)
    path = save(run, "given", {"scorer": SCORER}, STAGES[2:])
    effects = with_scores(run, "replay", None, stored_scores(run, "test"))
    assert effects is not None
    trust = effects.trust_of("score:exact")
    assert [trust[name].trust for name in STAGES] == ["refused", "refused", "exact"]
    assert effects.about("score:exact").sources == dict.fromkeys(STAGES, "given")
    if stage is None:
        rows = effects.of("score:exact")
        assert sorted(set(rows["stage"])) == sorted(STAGES)
        assert len(rows) == 3 * run.evaluation_set("test").count
    else:
        rows = effects.of_stage("score:exact", stage, ())
    known = rows["stage"] == STAGES[2]
    assert rows.loc[known, "effect"].eq(1.0).all() and rows.loc[~known, "effect"].isna().all()
    assert rows.loc[~known, "prediction_without"].isna().all()
    assert rows["prediction"].eq("yes").all()
    path.unlink()
    again = with_scores(run, "replay", None, {"score:exact": _gone(run)})
    assert again is not None
    with pytest.raises(RunError, match="the scores score:exact on set test cannot be read"):
        again.of("score:exact")


def _gone(run: Run) -> Any:
    """What was known of a table that somebody has deleted since."""
    from stagelens.effects.stored_scores import StoredScore

    facts = ResultFacts(
        kind="scores",
        run_digest=run.digest,
        set_name="test",
        set_digest=run.evaluation_set("test").digest,
        estimator="given",
        settings={"scorer": SCORER},
        behaviours=[BehaviourFacts(name="score:exact", better="higher")],
        stages=[StageTrust(stage=STAGES[2], estimator="given", trust="exact", reason="Made.")],
    )
    return StoredScore("score:exact", {"given": facts})
