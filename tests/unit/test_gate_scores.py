"""The gate lays drops of scores to stages by exchanged models that answer, where it can."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import stagelens
from stagelens.analyses.gate.blame import ScoredKind, StageDrop, stage_drops
from stagelens.analyses.gate.finals import final_scores, scored_alike, shared_stages
from stagelens.contracts import Progress, no_progress
from stagelens.effects.answers import answer
from stagelens.effects.results import Result
from stagelens.effects.scores import scored
from stagelens.effects.scoring_again import own_scores
from stagelens.measuring.generation import Generation, generate
from stagelens.measuring.models import empty_model
from stagelens.measuring.scorers import find_scorer
from stagelens.replaying.exchange import replay_exchanged
from stagelens.runs.run import Run
from tests.support.text_runs import PROMPTS, STAGES, record_prompts

HOW = Generation(max_tokens=6)
PATTERN = "^TTT"
OTHERS = ("TTTT", "TTTT", "TTTT", "TTTT")


def record_scored(path: Path, *trained: tuple[str, ...]) -> Run:
    run = stagelens.open_run(record_prompts(path, (), *trained))
    scorer = find_scorer("regex", {"pattern": PATTERN, "better": "lower"})
    scored(run, "test", answer(run, "test", HOW), HOW, scorer)
    return run


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """Two recipes that differ in what the later two stages learn to answer."""
    folder = tmp_path_factory.mktemp("gate")
    return record_scored(folder / "old"), record_scored(folder / "new", OTHERS)


def drops(pair: tuple[Run, Run], again: bool) -> tuple[list[StageDrop], np.ndarray, Result]:
    old, new = pair
    examples = new.evaluation_set("test")
    sides = [(run, run.evaluation_set("test")) for run in pair]
    kind, tables = scored_alike(sides, "score:regex")
    (own,) = own_scores(new, "test").found
    final = final_scores(tables[1], examples)
    one = ScoredKind(kind, tables[1], own if again else None)
    progress = Progress(no_progress)
    found = stage_drops(old, new, examples, 1, {kind.name: final}, [], [one], progress)
    return found["score:regex"], final, tables[1]


@pytest.mark.slow
def test_exchanged_models_answer_and_are_scored(pair: tuple[Run, Run]) -> None:
    old, new = pair
    assert shared_stages(old, new) == 1
    found, final, _ = drops(pair, again=True)
    assert [each.how for each in found] == ["same", "exchange", "exchange"]
    module, prompts = empty_model(new), {str(n): text for n, text in enumerate(PROMPTS)}
    for each in found[1:]:
        weights = replay_exchanged(new, new.stage(each.stage), old, old.stage(each.stage))
        said = generate(new.task, module, weights.state.model, prompts, HOW)
        values = [float(own[0].text.startswith("TTT")) for own in said.values()]
        # A lower score is better: the new model is worse where its own is higher.
        np.testing.assert_array_equal(each.drops["score:regex"], final - np.array(values))
        assert each.trust is not None and each.trust.trust == "exact"
    assert any(each.drops["score:regex"].any() for each in found[1:])


@pytest.mark.slow
def test_scores_of_a_log_have_their_stored_effects_and_say_why(pair: tuple[Run, Run]) -> None:
    found, _, table = drops(pair, again=False)
    assert [each.how for each in found] == ["same", "stage effect", "stage effect"]
    for each in found[1:]:
        assert "because what scored the answers cannot be asked to score others" in each.reason
        effect = table.table.loc[table.table["stage"] == each.stage, "effect"].to_numpy()
        np.testing.assert_array_equal(each.drops["score:regex"], effect)
    assert [each.stage for each in found] == list(STAGES)
