"""A small run in which the stages' effects have every standing that a run can have today."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from stagelens.effects.computing import attribute, boundaries
from stagelens.effects.results import Result, save_result
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.run import Run
from stagelens.runs.schema import canonical_json
from stagelens.runs.sets.writer import write_set
from stagelens.trust.verification import COLUMNS, save_verification
from stagelens.wording.trust_words import TrustWord

from .odd_runs import CLASSES, images, record

STANDINGS: dict[str, TrustWord] = {
    "alpha": "exact",
    "beta": "verified",
    "gamma": "does not agree",
    "delta": "reliable",
    "epsilon": "rough",
    "zeta": "sign uncertain",
    "eta": "refused",
}
"""Stage, in training order, to the word for its effects."""

SET = "many"
COUNT = 80
"""Examples of the set, half of which are in each group."""

_FIGURES = {"beta": (0.97, 0.12), "gamma": (0.4, 1.3)}
"""Pearson r and relative error of the estimates that were checked."""


def every_standing(path: Path) -> Run:
    """Record the run, with its effect table by ``coarse-replay`` and the trust of each stage."""
    run = record(path, dict.fromkeys(STANDINGS, (1, 0.05)))
    # 20 examples of either group in each of two labels: enough to test a feature.
    labels = [CLASSES[number // 2 % 2] for number in range(COUNT)]
    groups = {"group": [("left", "right")[number % 2] for number in range(COUNT)]}
    write_set(path, run.task, SET, images=images(COUNT), labels=labels, columns=groups)
    boundaries(run, SET)
    # A coarse replay of so few steps is refused, so its table is made of another one.
    free = attribute(run, SET, "task-vector")
    ours = {"estimator": "coarse-replay", "settings": {"budget": 0.25}}
    made = Result(free.facts.model_copy(update=ours), free.table)
    stages = [_known(one) for one in free.facts.stages]
    refused = made.table["stage"].map(STANDINGS) == "refused"
    table = made.table.assign(estimator="coarse-replay")
    numbers = ["effect", "without", "prediction_without", "confidence_without"]
    table.loc[refused, numbers] = np.nan
    # Large, of one sign, and larger in one group: only its trust keeps it from being a finding.
    shift = np.where(table["group"] == "left", 5.0, 20.0) * table["effect"].std()
    table["effect"] = table["effect"] + shift
    table["without"] = table["final"] - table["effect"]
    save_result(run, Result(made.facts.model_copy(update={"stages": stages}), table))
    save_verification(run, _verification(made))
    return run


def _known(one: StageTrust) -> StageTrust:
    word = STANDINGS[one.stage]
    errors = {"reliable": 0.2, "rough": 0.5, "sign uncertain": 0.6}
    wrong = {"rough": 0.1, "sign uncertain": 0.3}
    return StageTrust(
        stage=one.stage,
        estimator="coarse-replay",
        trust=word if word in ("exact", "refused") else "estimated",
        reason="As it was made.",
        expected_error=errors.get(word),
        wrong_signs=wrong.get(word),
        # Promised of the one that was found not to agree too: the promise stays beside it.
        reliable=word in ("reliable", "does not agree"),
    )


def _verification(made: Result) -> pd.DataFrame:
    rows = [
        {
            **dict.fromkeys(COLUMNS, np.nan),
            "set": SET,
            "stage": stage,
            "behaviour": behaviour,
            "estimator": made.facts.estimator,
            "r": r,
            "slope": 1.0,
            "relative_error": error,
            "trust": STANDINGS[stage],
            "set_digest": made.facts.set_digest,
            "settings": canonical_json(made.facts.settings),
        }
        for stage, (r, error) in _FIGURES.items()
        for behaviour in made.behaviours
    ]
    return pd.DataFrame(rows)
