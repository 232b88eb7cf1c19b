"""Tables of coalitions, made up."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from stagelens.effects.coalition_results import (
    CoalitionFacts,
    CoalitionPart,
    CoalitionResult,
    key_of,
    save_part,
)
from stagelens.effects.results import BehaviourFacts, load_result
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.run import Run

from .stage_trust import trust

EXACT = trust("exact", estimator="replay", reason="Replay repeats the recording bit for bit.")


def made(
    v: Mapping[int, np.ndarray],
    names: tuple[str, ...],
    known: Mapping[int, StageTrust] | None = None,
    better: str = "higher",
    labelled: bool = True,
) -> CoalitionResult:
    """A result of one behaviour, ``score``, from coalition to (N,) values."""
    models = {
        mask: pd.DataFrame(
            {
                "prediction": np.where(np.asarray(values) > 0, "a", "b"),
                "confidence": 0.9,
                "score": values,
            }
        )
        for mask, values in v.items()
    }
    ids = [f"e{row}" for row in range(len(next(iter(v.values()))))]
    examples = pd.DataFrame({"example_id": ids, "label": "a" if labelled else None})
    facts = CoalitionFacts(
        run_digest="r",
        set_name="test",
        set_digest="s",
        estimator="replay",
        behaviours=[BehaviourFacts.model_validate({"name": "score", "better": better})],
        parties=tuple((name,) for name in names),
        trust={**{mask: EXACT for mask in v}, **(known or {})},
    )
    return CoalitionResult(facts, examples, models)


def store(
    run: Run,
    set_name: str,
    known: Mapping[int, StageTrust] | None = None,
    estimator: str = "replay",
    seed: int = 0,
    leave_out: frozenset[int] = frozenset(),
) -> None:
    """Store made-up coalitions of all stages of a run, with the behaviours that its task has.

    Early stages help most, and the second harms only where the first happened.
    """
    effects = load_result(run, set_name, "effects", "task-vector")
    assert effects is not None
    kinds = effects.facts.behaviours
    examples = run.evaluation_set(set_name)
    ids = examples.table(["example_id"])["example_id"]
    random, m = np.random.default_rng(seed), len(run.stages)
    own = random.normal(1.0, 0.3, (m, len(ids)))
    base = random.normal(0.0, 0.3, len(ids))
    answers = effects.table.drop_duplicates("example_id").set_index("example_id").loc[ids]
    for mask in range(1 << m):
        if mask in leave_out:
            continue
        score = base + sum(own[s] / (s + 1) for s in range(m) if mask >> s & 1)
        if mask & 3 == 3:
            score = score - 1.5
        part = CoalitionPart(
            key=key_of(run, examples, estimator, {}),
            mask=mask,
            behaviours=kinds,
            trust=(known or {}).get(mask, EXACT),
            passes=1,
        )
        table = pd.DataFrame(
            {"example_id": ids, "prediction": answers["prediction"].to_numpy(), "confidence": 0.8}
        )
        for kind in kinds:
            table[kind.name] = score if kind.better == "higher" else -score
        save_part(run, part, table if part.trust.trust != "refused" else table[:0])
