"""The edited model as an ordinary checkpoint, with a card that says how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from stagelens.analyses.slices.saved import examples_of
from stagelens.contracts import Progress, Refused
from stagelens.effects.groups import GroupMetrics
from stagelens.estimators.registry import make_estimator
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.files import new_folder
from stagelens.runs.run import Run
from stagelens.runs.sets.clusters import clusters
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.wording.numbers import number
from stagelens.wording.trust_words import trust_explanation, trust_word

from .comparison import AFTER, BEFORE, Change, answers, by_groups, mean_changes
from .measurements import known_trust, measure_edits
from .parts import validation_part
from .spec import Edit
from .targets import groups_of

if TYPE_CHECKING:
    from stagelens.contracts import ProgressCallback

CARD, SPEC = "README.md", "stagelens_edit.json"

WHAT_IT_IS = (
    "An edit guided by an estimate: the final weights minus a strength times what the stage is "
    "estimated to have done to them. It is not the model that training without the stage would "
    "have given, and not a cure; measure it on what it is meant for."
)


@dataclass(frozen=True)
class Figures:
    """What an edit changed, on the report part of a set.

    Attributes:
        metrics: Accuracy of either model, overall and by group; none without labels.
        changes: Mean of every behaviour before and after.
    """

    metrics: GroupMetrics
    changes: list[Change]

    @property
    def accuracies(self) -> list[dict[str, Any]]:
        """Rows of the groups whose accuracy is known."""
        rows = self.metrics.groups
        return rows[rows["accuracy"].notna()].to_dict("records")


def before_and_after(
    run: Run,
    examples: EvaluationSet,
    edit: Edit,
    by: str | None,
    progress: ProgressCallback | None = None,
) -> tuple[Figures, list[StageTrust]]:
    """Figures of the final and the edited model on the report part, and the trust of the edit.

    Raises:
        Refused: An estimator cannot give a stage.
        SetError: There is no such column.
    """
    table, sharing = examples_of(run, examples), clusters(examples)
    table = table if sharing is None else sharing.joined(table)
    if by is not None:
        # Only for its error, before anything is computed.
        groups_of(table, by)
    rows = ~validation_part(table, [by] if by else [])
    nothing = edit.model_copy(update={"strengths": {}, "layers": {}})
    before, after = measure_edits(run, examples, [nothing, edit], progress)
    models = {BEFORE: answers(before, table, rows), AFTER: answers(after, table, rows)}
    kinds = [b for b in run.task.behaviour_kinds if b.name in models[BEFORE]]
    changes = mean_changes(models[BEFORE], models[AFTER], kinds)
    return Figures(by_groups(models, by), changes), known_trust(run, examples, after)


def save(
    run: Run,
    edit: Edit,
    out: str | Path,
    examples: EvaluationSet | None,
    by: str | None = None,
    progress: ProgressCallback | None = None,
) -> Path:
    """Write the edited model: weights, configuration, tokenizer, and ``README.md``.

    Args:
        run: The run.
        edit: What to do to its final model.
        out: A folder that does not exist yet, or holds nothing; nothing is ever overwritten.
        examples: Where to measure before and after; None where the run has no set.
        by: Column of the groups that are measured separately.
        progress: Called for counterfactuals, measuring and writing.

    Raises:
        Refused: The edit takes nothing out, or an estimator cannot give a stage.
        StageLensError: The folder holds something, or the final model is not a checkpoint by
            itself.
    """
    if not edit.strengths:
        raise Refused("nothing is taken out, so this is the final model; give a stage a strength")
    overall, share = Progress(progress), 0.0 if examples is None else 0.7
    with new_folder(Path(out)) as folder:
        figures, trust = None, None
        if examples is not None:
            figures, trust = before_and_after(run, examples, edit, by, overall.part(0.0, share))
        # What is computed from the recording and stored needs a recording that was checked before.
        free = make_estimator(edit.estimator, edit.settings).free
        with run.files.hashed_beside() if free else nullcontext():
            if free:
                _begin_reading(run, edit)
            _write(run, edit, folder, (figures, trust), (examples, by), overall.part(share, 1.0))
    return Path(out)


def _begin_reading(run: Run, edit: Edit) -> None:
    """Have the files of an edit hashed: the disk is read while torch is imported."""
    stages = [run.stage(name).facts for name in edit.strengths]
    states = [run.last.facts.end, *(each for one in stages for each in (one.start, one.end))]
    for state in filter(None, states):
        list(run.files.paths(state.shards))


def _write(
    run: Run,
    edit: Edit,
    folder: Path,
    known: tuple[Figures | None, list[StageTrust] | None],
    measured_on: tuple[EvaluationSet | None, str | None],
    progress: ProgressCallback,
) -> None:
    """Everything in the folder; of each model the weights are read once."""
    from .checkpoints import write_checkpoint
    from .edits import EditedWeights, material

    figures, trust = known
    obtained = partial(material, run, edit.estimator, edit.settings, list(edit.strengths))
    own = obtained(look=False)
    # Measured on a set, it includes what was verified there.
    trust = trust or [own.without[stage].trust for stage in edit.strengths]
    card = model_card(run, edit, trust, figures, *measured_on)
    cards = {CARD: card.encode(), SPEC: (edit.model_dump_json(indent=1) + "\n").encode()}
    # Refused if the models that it is made of are not finite.
    edited = EditedWeights(own, edit)
    write_checkpoint(run, own.final, edited, folder, cards, obtained, progress)


def model_card(
    run: Run,
    edit: Edit,
    trust: list[StageTrust],
    figures: Figures | None,
    examples: EvaluationSet | None,
    by: str | None,
) -> str:
    """Markdown: what was taken out of which model, how far that can be trusted, and the figures."""
    stages = ", ".join(f"`{name}`" for name in edit.strengths)
    lines = [
        f"# {run.name}, edited",
        "",
        f"The final model of the run `{run.name}` with {stages} taken out in part or as a whole. "
        f"{WHAT_IT_IS}",
        "",
        "## How it was made",
        "",
        f"- Run digest: `{run.digest}`",
        f"- Estimator: {edit.estimate}",
        "",
        "| stage | strength | trust | what is known |",
        "|---|---|---|---|",
        *(
            f"| `{one.stage}` | {edit.strengths[one.stage]:.0%} | {trust_word(one)} | "
            f"{_cell(trust_explanation(one))} |"
            for one in trust
        ),
        *_layer_lines(edit),
        "",
        "## Measured before and after",
        "",
    ]
    if figures is None or examples is None:
        lines.append("Not measured: the run has no evaluation set.")
    else:
        lines += _figure_lines(figures, examples, by)
    return "\n".join(lines) + "\n"


def _layer_lines(edit: Edit) -> list[str]:
    if not edit.layers:
        return []
    lines = ["", "Strengths by layer, found on the validation part of the evaluation set:", ""]
    for stage, layers in edit.layers.items():
        said = ", ".join(f"`{name}` {edit.strength(stage, name):.0%}" for name in layers)
        lines.append(f"- `{stage}`: {said}")
    return lines


def _figure_lines(figures: Figures, examples: EvaluationSet, by: str | None) -> list[str]:
    lines = [
        f"On the report part of the set `{examples.name}` (digest `{examples.digest}`); nothing "
        "was chosen on these examples by a search. 95 % intervals over examples.",
    ]
    if figures.accuracies:
        lines += ["", "| examples | n | accuracy before | accuracy after |", "|---|---|---|---|"]
    for group, rows in _by_group(figures, by).items():
        before, after = rows[BEFORE], rows[AFTER]
        lines.append(f"| {_cell(group)} | {before['n']:,} | {_share(before)} | {_share(after)} |")
    lines += [
        "",
        "| behaviour | n | mean before | mean after | mean change |",
        "|---|---|---|---|---|",
    ]
    for one in figures.changes:
        ends = f"{number(one.change)} ({number(one.low)} to {number(one.high)})"
        means = f"{number(one.before)} | {number(one.after)}"
        lines.append(f"| {_cell(one.behaviour.name)} | {one.n:,} | {means} | {ends} |")
    return lines


def _by_group(figures: Figures, by: str | None) -> dict[str, dict[str, Mapping[str, float]]]:
    """What a row is about, to each model, to its figures."""
    found: dict[str, dict[str, Mapping[str, float]]] = {}
    for row in figures.accuracies:
        if pd.isna(row["group"]):
            name = "all"
        elif by is None:
            continue
        else:
            name = f"{by} {row['group']}"
        found.setdefault(name, {})[str(row["model"])] = row
    return found


def _share(row: Mapping[str, float]) -> str:
    low, high = (number(100 * row[f"accuracy_{end}"]) for end in ("low", "high"))
    return f"{100 * row['accuracy']:.1f} % ({low} to {high})"


def _cell(text: str) -> str:
    """Text in a cell of a Markdown table, which ends at a bar or a new line."""
    return " ".join(text.split()).replace("|", "\\|")
