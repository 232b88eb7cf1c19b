"""Features that go with a stage's effect, found without being named by any column.

Which ones are looked for depends on what an example is: words and pairs of words; patches of
images, by the change of the stage effect when a patch is taken out; and for every task groups of
examples that the final model sees as alike, and values of the set's columns. How they are
tested is described in :mod:`~stagelens.analyses.spurious.statistics`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from stagelens.contracts import (
    Behaviour,
    Example,
    Progress,
    ProgressCallback,
    is_score,
    no_progress,
)
from stagelens.effects.computing import attribute, combined
from stagelens.effects.draws import DrawnEffects
from stagelens.effects.results import BehaviourFacts, Result
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.estimators.registry import estimate_name, make_estimator
from stagelens.estimators.stage_trust import REPLAY, StageTrust
from stagelens.measuring.models import BATCH_SIZE, empty_model, measure
from stagelens.runs.run import Run
from stagelens.runs.sets.clusters import CLUSTER
from stagelens.runs.sets.clusters import clusters as sources_of
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.states import Weights
from stagelens.trust.draws import governing
from stagelens.trust.estimates import known_trust
from stagelens.trust.noise import load_orders
from stagelens.trust.score_effects import score_result

from .candidates import clusters, columns, merged, named_by_shared, words
from .feature_table import (
    COLUMNS,
    MORE_COLUMNS,
    FeatureFacts,
    Features,
    StageFeatures,
    load_features,
    noise_key,
)
from .feature_table import save_features as save
from .grids import Patch, grid
from .patches import MOST_IMAGES, background, candidates, occluded, occupied
from .representations import representations
from .statistics import Candidates, DrawnGains, judged_features

SHOWN = 12
"""Examples that are kept per feature and label."""
_KEPT = 400
"""Rows per stage that are kept beside those of patches."""


def find_features(
    run: Run,
    set_name: str,
    estimator: str,
    settings: Mapping[str, Any] | None = None,
    progress: ProgressCallback = no_progress,
    score: str | None = None,
) -> Features:
    """Features that go with the effect of each stage; stored with the run's results.

    Where some stages have been replayed, those alone are looked at by ``replay``: the others may
    take long. Of a score, words are those of the prompts: completions are no part of what is
    answered.

    Args:
        run: The run.
        set_name: One of its evaluation sets.
        estimator: How counterfactuals are obtained.
        settings: Of the estimator; None for its defaults.
        progress: Called as the work proceeds.
        score: The effects are on this score of answers, by its name on pages; None for the margin,
            or the first behaviour.

    Raises:
        Refused: The estimator can give none of the stages.
        RunError: The set is not there.
    """
    overall = Progress(progress)
    if score is not None:
        result = score_result(run, set_name, score, estimate_name(estimator, settings or {}))
    else:
        there = known_trust(run, set_name, estimator, settings or {}) if estimator == REPLAY else {}
        result = attribute(
            run, set_name, estimator, list(there) or None, overall.part(0.0, 0.4), settings
        )
    orders, drawn = load_orders(run, set_name), governing(run, set_name)
    # The noise decides which features pass, so it is part of the key.
    used, known = result.facts.settings, noise_key(orders, drawn)
    stored = load_features(run, set_name, estimator, used, known)
    look = Look.at(run, set_name, result)
    if stored is not None and stored.holds(trust.stage for trust in look.stages):
        return stored
    own = look.candidates(overall.part(0.4, 0.5))
    removed = look.patches(overall.part(0.5, 1.0))
    # All stages have the same patches in the same images.
    input_too = [*own, *list(removed.values())[:1]]
    own = [named_by_shared(one, input_too) if one.kind == "cluster" else one for one in own]
    tables, facts = [], []
    for stage in look.stages:
        each = [*own, *([removed[stage.stage]] if removed else [])]
        effects = look.gains(result.table, stage.stage)
        noise = None if orders is None else look.noise(orders, stage.stage)
        over = look.drawn(drawn, stage.stage)
        table = judged_features(each, effects, look.labels, noise, over, look.sources)
        counts = {"tested": len(table), "passed": int(table["passes"].sum())}
        facts.append(StageFeatures(stage=stage.stage, **counts))
        tables.append(look.kept(table, each, effects).assign(stage=stage.stage))
    found = Features(
        FeatureFacts(
            run_digest=run.digest,
            set_digest=look.examples.digest,
            estimator=estimator,
            settings=used,
            noise=known,
            behaviour=look.behaviour_facts,
            stages=facts,
            kinds=[each.kind for each in own] + (["patch"] if removed else []),
            examples=look.examples.count,
            sources=look.shared,
            images=len(look.rows) if removed else 0,
            shape=look.shape,
        ),
        pd.concat(tables, ignore_index=True)[[*COLUMNS, *MORE_COLUMNS]],
    )
    save(run, found)
    return found


def _is_clear(draws: DrawnEffects, numbers: np.ndarray) -> bool:
    """Whether draws leave no doubt about the sign of a number.

    Where all are alike they tell no spread, and its interval over examples is what remains.
    """
    found = draws.interval(numbers)
    return found.is_clear or (found.sd == 0 and found.mean != 0)


@dataclass(frozen=True)
class Look:
    """Where features are looked for.

    Attributes:
        run: The run.
        examples: The evaluation set.
        table: One row per example.
        labels: (N,) labels as text; None where there is none.
        behaviour: Whose effects; gains are positive where they are credit.
        settings: Of the estimator.
        stages: Those that were not refused.
        rows: Places of the examples whose images are changed.
        sources: (N,) number of the source of each example, -1 where it shares none; None where all
            are apart.
        shared: What examples share, in words; empty where they share nothing.
        grid: Patches of an image; empty where there are no images.
        shape: (height, width) of the images; None for none.
    """

    run: Run
    examples: EvaluationSet
    table: pd.DataFrame
    labels: np.ndarray
    behaviour: Behaviour
    settings: Mapping[str, Any]
    stages: list[StageTrust]
    rows: np.ndarray
    sources: np.ndarray | None
    shared: str
    grid: list[Patch]
    shape: tuple[int, int] | None

    @classmethod
    def at(cls, run: Run, set_name: str, result: Result) -> Look:
        examples = run.measurable_set(set_name)
        table = examples.table()
        labels = table["label"].astype(object).map(str, na_action="ignore")
        kinds = result.behaviours
        behaviour = kinds.get("margin", next(iter(kinds.values())))
        stages = [trust for trust in result.facts.stages if trust.trust != "refused"]
        patches, shape, rows = [], None, np.arange(0)
        if run.task.input_kind == "image":
            height, width = np.shape(examples.examples(0, 1)[0].input["image"])[:2]
            patches, shape = grid(height, width), (height, width)
            count = min(examples.count, MOST_IMAGES)
            # The same images each time, so that the same question has the same answer.
            drawn = np.random.default_rng(0).choice(examples.count, count, replace=False)
            rows = np.sort(drawn)
        sharing = sources_of(examples)
        sources = None if sharing is None else pd.factorize(sharing.joined(table)[CLUSTER])[0]
        return cls(
            run,
            examples,
            table,
            labels.to_numpy(dtype=object, na_value=None),
            behaviour,
            result.facts.settings,
            stages,
            rows,
            sources,
            "" if sharing is None else sharing.by,
            patches,
            shape,
        )

    @property
    def behaviour_facts(self) -> BehaviourFacts:
        return BehaviourFacts.of(self.behaviour)

    def gains(self, table: pd.DataFrame, stage: str) -> np.ndarray:
        """(N,) effects of a stage, positive for credit."""
        rows = table[(table["stage"] == stage) & (table["behaviour"] == self.behaviour.name)]
        effects = rows.set_index("example_id")["effect"].reindex(self.table["example_id"])
        return self.behaviour.sign * effects.to_numpy(dtype=float)

    def noise(self, orders: pd.DataFrame, stage: str) -> np.ndarray | None:
        """(N, K) gains in K orders of the batches."""
        return self._wide(orders, stage, "order")

    def drawn(self, draws: DrawnEffects | None, stage: str) -> DrawnGains | None:
        """Gains in draws of the recipe; None where they have no intervals."""
        gains = None if draws is None else self._wide(draws.table, stage, "draw")
        # Some stages may have been left out in fewer draws.
        if draws is None or gains is None or not draws.has_interval(gains.shape[1]):
            return None
        return DrawnGains(gains, partial(_is_clear, draws))

    def _wide(self, table: pd.DataFrame, stage: str, by: str) -> np.ndarray | None:
        rows = table[(table["stage"] == stage) & (table["behaviour"] == self.behaviour.name)]
        if rows.empty:
            return None
        wide = rows.pivot(index="example_id", columns=by, values="effect")
        wide = wide.reindex(self.table["example_id"])
        return self.behaviour.sign * wide.to_numpy(dtype=float)

    def candidates(self, progress: ProgressCallback = no_progress) -> list[Candidates]:
        """Words, clusters and columns."""
        found = []
        if self.run.task.input_kind == "text":
            progress(0.0, "Counting words")
            every = (e for b in self.examples.batches(BATCH_SIZE) for e in b)
            asked = is_score(self.behaviour)
            found += words([_prompt(e) if asked else _text(e) for e in every])
        progress(0.5, "Grouping examples that look alike to the model")
        seen = representations(self.run, self.examples)
        # With fewer, even two clusters would hold fewer than 40 examples each.
        if seen is not None and len(seen) >= 80:
            found.append(clusters(seen, self.labels))
        metadata = [name for name in self.examples.columns if name in self.table]
        return [each for each in (*found, columns(self.table, metadata)) if len(each.names)]

    def patches(self, progress: ProgressCallback) -> dict[str, Candidates]:
        """Stage to patches with how its effects change without each; empty without images."""
        if not self.grid or not self.stages:
            return {}
        ids = self.table["example_id"].to_numpy()[self.rows].tolist()
        images = self.examples.by_id(ids)
        pixels = [np.asarray(example.input["image"]) for example in images]
        ground = background(pixels)
        there = occupied(pixels, self.grid, ground)
        own = self._measured([images], len(images), no_progress)
        count = len(images) * len(self.grid)
        batches = occluded(images, self.grid, ground, BATCH_SIZE)
        without = self._measured(batches, count, progress)
        found = {}
        for stage in self.stages:
            # occluded() goes patch by patch, through all images for each.
            left = without[stage.stage].reshape(len(self.grid), len(images)).T
            changes = own[stage.stage][:, None] - left
            found[stage.stage] = candidates(self.grid, self.rows, there, changes)
        return found

    def _measured(
        self, batches: Iterable[list[Example]], count: int, progress: ProgressCallback
    ) -> dict[str, np.ndarray]:
        """Gains of every stage on these examples, by its counterfactual and its twins."""
        estimator = make_estimator(self.stages[0].estimator, self.settings)
        chosen = [self.run.stage(trust.stage) for trust in self.stages]
        models: list[list[Weights]] = []
        for each, trust in zip(
            counterfactuals(self.run, estimator, chosen), self.stages, strict=True
        ):
            assert each.weights is not None, "refused stages were left out"
            # Twins that weigh 0 would cost forward passes for nothing.
            twins = [each.twins.factual, each.twins.counterfactual] if each.twins else []
            models.append([each.weights, *(twins if trust.twins_share else [])])
        flat = [self.run.last.end().model, *(w for own in models for w in own)]
        task = self.run.task
        final, *rest = measure(task, empty_model(self.run), flat, batches, count, progress)
        left, gains = iter(rest), {}
        for own, trust in zip(models, self.stages, strict=True):
            measured = [next(left) for _ in own]
            effects = combined(task.behaviour_kinds, final, measured, trust)
            gains[trust.stage] = self.behaviour.sign * effects[self.behaviour.name]
        return gains

    def kept(
        self, table: pd.DataFrame, each: Sequence[Candidates], effects: np.ndarray
    ) -> pd.DataFrame:
        """The rows that are stored, with places of patches and examples."""
        by_kind = {one.kind: one for one in each}
        table = merged(table, by_kind)
        patch = (table["kind"] == "patch").to_numpy()
        # All patches are kept, whether they pass or not: the map of patches is drawn from them.
        table = table[patch | (np.cumsum(~patch) <= _KEPT)].reset_index(drop=True)
        ids = self.table["example_id"].to_numpy()
        shown, places = [], []
        for row in table.itertuples():
            one = by_kind[str(row.kind)]
            has = one.members[:, [row.feature]].toarray().ravel() > 0
            if row.label is not None:
                has &= self.labels[one.rows] == row.label
            rows = np.flatnonzero(has)
            values = effects[one.rows] if one.changes is None else one.changes[:, row.feature]
            order = np.argsort(-np.sign(row.difference) * values[rows], kind="stable")
            shown.append(ids[one.rows[rows[order[:SHOWN]]]].tolist())
            at = self.grid[row.feature] if one.kind == "patch" else None
            places.append((at.top, at.left, at.height, at.width) if at else (None,) * 4)
        corners = pd.DataFrame(places, columns=["top", "left", "height", "width"], dtype="Int64")
        return pd.concat([table, corners], axis=1).assign(examples=shown)


def _text(example: Example) -> str:
    return " ".join(str(text) for text in example.input.values() if text is not None)


def _prompt(example: Example) -> str:
    """What a model is asked: the prompt, or a text by itself."""
    return str(example.input.get("prompt") or example.input.get("text") or "")
