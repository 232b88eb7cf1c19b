"""What the blocks of a network carry of a stage's effect: stored, read and summed up. No torch.

With f the final model, g the one without the stage, f_b the final model with the change undone in
block b alone (the block has g's values), and g_b the one without the stage but in block b (the
block has f's values), a behaviour y of one example has

    undone_b  = y(f) - y(f_b)        the change undone in the block, present in all others
    alone_b   = y(g_b) - y(g)        the change present in the block, undone in all others
    carried_b = (undone_b + alone_b) / 2

and each has its rest, the stage effect y(f) - y(g) less the sum over blocks: what the blocks do
only together. Signs are those of a stage effect. ``carried`` is the reading that is shown unless
another is asked for: what two blocks do together it gives to each by half, which is the Shapley
value where no three blocks interact, so that its rest holds only what three and more do together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from stagelens.contracts import ACCURACY, Behaviour
from stagelens.effects.contrasts import mean_spread
from stagelens.effects.results import BehaviourFacts
from stagelens.effects.summary import right_answers
from stagelens.estimators.registry import method_of
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs import fact_tables
from stagelens.runs.run import Run
from stagelens.runs.schema import digest
from stagelens.runs.sets.clusters import CLUSTER
from stagelens.runs.sets.evaluation_set import EvaluationSet

_NETWORK = 1
"""Part of every key; raised when blocks are found, or measured, in another way."""

Kind = Literal[
    "embedding",
    "attention",
    "cross-attention",
    "MLP",
    "norm",
    "convolution",
    "recurrent",
    "linear",
    "head",
    "layer",
    "other",
]

Reading = Literal["carried", "undone", "alone"]
READINGS: Mapping[Reading, str] = {
    "carried": "the mean of the other two, so that what two blocks do together counts half to each",
    "undone": "the stage's change undone in the block alone",
    "alone": "the stage's change present in the block alone",
}
_WAYS: tuple[Reading, ...] = ("undone", "alone")
REST = "interaction of the blocks"
"""The stage effect less the sum over the blocks."""

FINAL, WITHOUT = 0, 1
"""Numbers of the two whole models in a stored table; blocks follow, two models each."""


class Block(BaseModel):
    """Parameters and buffers that are undone together.

    Attributes:
        name: Tells it apart within its model.
        kind: What it is; ``layer`` is a whole one, in a model of very many blocks.
        layer: Name of its layer; None outside of layers.
        tensors: Names of its parameters and buffers.
        tied: Other names of those of its parameters that modules share.
        size: How many parameters it has, buffers not counted.
        moved: Norm of its change over the norm of its values without the stage; 0 where the stage
            changed nothing here, and then no model was measured.
        begins: Whether parameters of it first exist in the stage, or began anew: undone, they have
            the values that they began with.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    name: str
    kind: Kind
    layer: str | None = None
    tensors: tuple[str, ...]
    tied: tuple[str, ...] = ()
    size: int = 0
    moved: float = 0.0
    begins: bool = False


class NetworkFacts(BaseModel):
    """What a stored measurement says of itself.

    Attributes:
        run_digest: Of the run.
        set_digest: Of the evaluation set.
        estimator: How the counterfactual was obtained.
        settings: Of the estimator.
        stage: Whose change was undone.
        blocks: In the order of the forward pass.
        behaviours: That were measured.
        trust: What is known of the counterfactual.
    """

    model_config = ConfigDict(frozen=True)

    run_digest: str
    set_digest: str
    estimator: str
    settings: dict[str, Any]
    stage: str
    blocks: tuple[Block, ...]
    behaviours: tuple[BehaviourFacts, ...]
    trust: StageTrust


@dataclass(frozen=True)
class Network:
    """A stage's change undone block by block, on N examples.

    Attributes:
        facts: What was measured.
        table: Long: ``example_id``, ``model`` (0 the final one, 1 the one without the stage,
            2 + 2b with block b undone, 3 + 2b with block b alone), ``prediction``,
            ``confidence`` and a column per behaviour; examples in the set's order.
        labels: (N,) the examples' labels, for accuracy.
    """

    facts: NetworkFacts
    table: pd.DataFrame
    labels: pd.Series

    @property
    def behaviours(self) -> dict[str, Behaviour]:
        """What can be asked for, by name; accuracy comes first where any example has a label."""
        measured = {each.name: each.behaviour() for each in self.facts.behaviours}
        return {ACCURACY.name: ACCURACY, **measured} if self.labels.notna().any() else measured

    @property
    def ids(self) -> list[str]:
        """(N,) ids of the examples."""
        return [str(name) for name in self._rows(FINAL)["example_id"]]

    def _rows(self, model: int) -> pd.DataFrame:
        return self.table[self.table["model"] == model].reset_index(drop=True)

    def _model(self, block: int, reading: Reading) -> int:
        """Number of the model with a block undone or alone; one of the whole models without it."""
        if self.facts.blocks[block].moved:
            return 2 + 2 * block + (reading == "alone")
        return FINAL if reading == "undone" else WITHOUT

    def values(self, model: int, behaviour: str) -> np.ndarray:
        """(N,) a behaviour of one of the measured models; 1 and 0 for accuracy."""
        rows = self._rows(model)
        if behaviour == ACCURACY.name:
            return right_answers(rows["prediction"], self.labels).to_numpy(float)
        return rows[behaviour].to_numpy(float)

    def answers(self, block: int | None = None, reading: Reading = "undone") -> np.ndarray:
        """(N,) answers of the final model, or with the change undone in one block."""
        model = FINAL if block is None else self._model(block, reading)
        return self._rows(model)["prediction"].to_numpy(object)

    def total(self, behaviour: str) -> np.ndarray:
        """(N,) the stage effect by the counterfactual's weights; twins have no part in it."""
        return self.values(FINAL, behaviour) - self.values(WITHOUT, behaviour)

    def effects(self, behaviour: str, reading: Reading = "carried") -> np.ndarray:
        """(N, B) what each block does, see the module; NaN where the behaviour is not known."""
        if reading == "carried":
            undone, alone = (self.effects(behaviour, way) for way in _WAYS)
            return np.asarray((undone + alone) / 2)
        whole = self.values(FINAL if reading == "undone" else WITHOUT, behaviour)
        columns = []
        for number in range(len(self.facts.blocks)):
            own = self.values(self._model(number, reading), behaviour)
            columns.append(whole - own if reading == "undone" else own - whole)
        return np.stack(columns, axis=1) if columns else np.empty((len(whole), 0))

    def rest(self, behaviour: str, reading: Reading = "carried") -> np.ndarray:
        """(N,) the stage effect less the sum over blocks: :data:`REST`."""
        return np.asarray(self.total(behaviour) - self.effects(behaviour, reading).sum(axis=1))


def network_rows(
    found: Network,
    behaviour: str,
    chosen: np.ndarray | None = None,
    reading: Reading = "carried",
    clusters: np.ndarray | None = None,
) -> pd.DataFrame:
    """What each block carries on average, in the order of the forward pass; the rest comes last.

    Args:
        found: On N examples.
        behaviour: One of those measured, or accuracy.
        chosen: (N,) bool, of which examples; None for all.
        reading: See the module.
        clusters: (N,) as :func:`~stagelens.effects.contrasts.mean_spread` takes them.

    Returns:
        ``block``, ``kind``, ``layer``, ``effect``, its 95 % interval over examples ``low`` and
        ``high`` (NaN of one example), ``moved`` and ``n``; the rest is called :data:`REST` and has
        no kind.
    """
    blocks = found.facts.blocks
    values = np.column_stack([found.effects(behaviour, reading), found.rest(behaviour, reading)])
    known = np.isfinite(values).all(axis=1)
    kept = known if chosen is None else known & chosen
    # Of a block that did not change, no example at all could show an effect; nor a rest of as few
    # changed blocks as the reading gives everything to.
    could = [block.moved > 0 for block in blocks]
    could.append(sum(could) > (2 if reading == "carried" else 1))
    rows = []
    for number, column in enumerate(values[kept].T):
        one = blocks[number] if number < len(blocks) else None
        mean = float(column.mean()) if len(column) else float("nan")
        shared = None if clusters is None else clusters[kept]
        turns = behaviour == ACCURACY.name and could[number]
        low, high = mean_spread(column, shared, turns).ends()
        rows.append(
            {
                "block": REST if one is None else one.name,
                "kind": None if one is None else one.kind,
                "layer": None if one is None else one.layer,
                "effect": mean,
                "low": low,
                "high": high,
                "moved": float("nan") if one is None else one.moved,
                "n": int(kept.sum()),
            }
        )
    return pd.DataFrame(rows)


def sources_of(examples: pd.DataFrame) -> np.ndarray | None:
    """(N,) which examples share a source, for :func:`network_rows`; None where none do.

    Args:
        examples: As ``clusters.with_sources`` gives them.
    """
    return np.asarray(pd.factorize(examples[CLUSTER])[0]) if CLUSTER in examples else None


def strongest_block(rows: pd.DataFrame) -> int | None:
    """The place of the block with the largest effect by size; None where none has any."""
    sizes = rows.loc[rows["block"] != REST, "effect"].abs()
    return int(sizes.idxmax()) if len(sizes) and sizes.max() > 0 else None


def network_path(
    run: Run, examples: EvaluationSet, stage: str, estimator: str, settings: Mapping[str, Any]
) -> Path:
    """Where such a measurement is kept."""
    key = digest(
        _NETWORK, method_of(estimator), run.digest, examples.digest, stage, estimator,
        dict(settings),
    )[:32]  # fmt: skip
    return run.files.inside(f"results/network/{key}.parquet")


def save_network(run: Run, examples: EvaluationSet, found: Network) -> Path:
    """Store a measurement. Atomic."""
    facts = found.facts
    path = network_path(run, examples, facts.stage, facts.estimator, facts.settings)
    fact_tables.write(path, found.table, facts)
    return path


def load_network(
    run: Run, examples: EvaluationSet, stage: str, estimator: str, settings: Mapping[str, Any]
) -> Network | None:
    """A stored measurement; None where there is none that can be used."""
    path = network_path(run, examples, stage, estimator, settings)
    stored = fact_tables.read(path, NetworkFacts, ("example_id", "model", "prediction"))
    if stored is None:
        return None
    facts, table = stored
    # A file that was copied to this name is not believed.
    own = (run.digest, examples.digest, stage, estimator, dict(settings))
    if (facts.run_digest, facts.set_digest, facts.stage, facts.estimator, facts.settings) != own:
        return None
    labels = examples.table(["example_id", "label"])
    found = Network(facts, table, labels["label"])
    return found if found.ids == labels["example_id"].astype(str).tolist() else None
