"""Models of a run as ordinary checkpoints, so that other tools can be run on them.

The model without a stage is the counterfactual itself. (``remove`` writes edits of the final model;
at strength 1 their floating weights are the same, but counts in buffers are those of the final
model.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stagelens.contracts import (
    BASE,
    Progress,
    ProgressCallback,
    Refused,
    no_progress,
)
from stagelens.effects.exports import ORIGIN, ExportFacts
from stagelens.effects.model_names import AFTER, FINAL, WITHOUT, model_name, parsed
from stagelens.estimators.counterfactuals import check_final, counterfactuals
from stagelens.estimators.registry import estimate_name, make_estimator
from stagelens.estimators.stage_trust import StageTrust
from stagelens.estimators.stored_counterfactuals import diverged
from stagelens.runs.files import new_folder, sha256_of
from stagelens.runs.run import Run
from stagelens.runs.states import Weights
from stagelens.runs.streaming import facts_of
from stagelens.wording.trust_words import trust_explanation, trust_word

from .checkpoints import write_checkpoint

CARD = "README.md"


def export(
    run: Run,
    models: Sequence[str],
    out: str | Path,
    estimator: str = "replay",
    settings: Mapping[str, Any] | None = None,
    progress: ProgressCallback = no_progress,
) -> tuple[dict[str, Path], dict[str, str]]:
    """Write models of a run as checkpoints that other tools open.

    Args:
        run: The run.
        models: ``final``, ``after:STAGE`` (of the final model's architecture) or
            ``without:STAGE``. One becomes ``out`` itself; several, a folder each in it.
        out: A folder that does not exist yet, or holds nothing.
        estimator: How models without a stage are obtained.
        settings: Of the estimator; None for its defaults.
        progress: Called for counterfactuals (the first half) and writing.

    Returns:
        Model to its folder, and to the reason why there is none.

    Raises:
        Refused: None of the models could be had.
        StageLensError: The folder holds something, or the final model is not a checkpoint by
            itself.
    """
    names = list(dict.fromkeys(models))
    kinds = {name: parsed(run, name) for name in names}
    made = make_estimator(estimator, settings)
    check_final(run)
    overall = Progress(progress)
    stages = [run.stage(stage) for kind, stage in kinds.values() if kind == WITHOUT]
    found = {
        each.stage: each
        for each in (counterfactuals(run, made, stages, overall.part(0.0, 0.5)) if stages else ())
    }
    refused = {
        model_name(WITHOUT, stage): each.trust.reason
        for stage, each in found.items()
        if each.weights is None
    }
    sources: dict[str, tuple[Callable[[], Weights], StageTrust | None]] = {}
    for name, (kind, stage) in kinds.items():
        if kind == WITHOUT:
            there = found[stage]
            if there.weights is not None:
                sources[name] = (lambda known=there.weights: known), there.trust  # type: ignore[misc]
        else:
            sources[name] = partial(_recorded, run, name), None
    if not sources:
        raise Refused("; ".join(f"{name}: {reason}" for name, reason in refused.items()))
    alone = len(names) == 1
    with new_folder(Path(out)) as folder:
        for number, (name, (weights, trust)) in enumerate(sources.items()):
            own = folder if alone else folder / folder_of(name)
            own.mkdir(exist_ok=True)
            part = overall.part(
                0.5 + number / len(sources) / 2, 0.5 + (number + 1) / len(sources) / 2
            )
            facts = ExportFacts(run=run.name, run_digest=run.digest, model=name, trust=trust)
            if trust is not None:
                update = {"estimator": made.name, "settings": dict(made.settings)}
                facts = facts.model_copy(update=update)
            _write(run, weights(), own, facts, part)
    whole = Path(out)
    return {name: whole if alone else whole / folder_of(name) for name in sources}, refused


def folder_of(model: str) -> str:
    """What the folder of one of several exported models is called: ``without-sft``."""
    return model.replace(":", "-")


def _recorded(run: Run, name: str) -> Weights:
    """The weights of the final model, or at a boundary.

    Raises:
        Refused: The model there has another architecture, or its training had diverged.
    """
    final = run.last.end().model
    kind, stage_name = parsed(run, name)
    if kind == FINAL:
        return final
    stage = run.stages[0] if stage_name == BASE else run.stage(stage_name)
    later = run.stages if stage_name == BASE else run.stages[stage.index + 1 :]
    if new := [each.name for each in later if each.appeared]:
        raise Refused(
            f"a part of the model is known from stage {new[0]} on only, so the one after "
            f"{stage_name} is not whole; take the checkpoint that was saved there"
        )
    weights = stage.start().model if stage_name == BASE else stage.end().model
    other = [
        tensor
        for tensor in final
        if tensor not in weights or facts_of(weights, tensor) != facts_of(final, tensor)
    ]
    if other:
        raise Refused(
            f"the model after {stage_name} differs from the final one in what it is made of "
            f"({other[0]}), so it cannot be written as a checkpoint of the same kind; take the "
            "checkpoint that was saved there"
        )
    if (wrong := diverged(stage, weights)) is not None:
        raise Refused(f"weights after {stage_name} are NaN or infinite ({wrong})")
    return weights


def _write(
    run: Run, weights: Weights, folder: Path, facts: ExportFacts, progress: ProgressCallback
) -> None:
    write_checkpoint(
        run,
        run.last.end().model,
        weights,
        folder,
        {CARD: _card(facts).encode()},
        partial(_not_finite, facts.model),
        progress,
    )
    files = {path.name: sha256_of(path) for path in sorted(folder.glob("*.safetensors"))}
    text = facts.model_copy(update={"files": files}).model_dump_json(indent=1)
    (folder / ORIGIN).write_text(f"{text}\n", "utf-8")


def _not_finite(model: str) -> None:
    raise Refused(f"weights of the model {model} are NaN or infinite, so it cannot answer anything")


def _card(facts: ExportFacts) -> str:
    """Markdown: which model of which run this is, and how far it can be trusted."""
    kind, _, stage = facts.model.partition(":")
    said = {
        FINAL: "The final model of the run.",
        AFTER: f"The model after `{stage}`, as it was recorded.",
        WITHOUT: f"The model that the run would have ended with without the stage `{stage}`: "
        "its later stages trained as they did, from where it began.",
    }[kind]
    lines = [
        f"# {facts.run}: {facts.model.replace(':', ' ')}",
        "",
        said,
        "",
        f"- Run digest: `{facts.run_digest}`",
    ]
    if facts.trust is not None:
        explained = " ".join(trust_explanation(facts.trust).split())
        lines += [
            f"- Obtained by: {estimate_name(facts.estimator, facts.settings)}",
            f"- Trust: {trust_word(facts.trust)}. {explained}",
        ]
    lines += [
        f"- Written by StageLens {facts.version}; sha256 of the weights in `{ORIGIN}`",
        "",
        "Scores of this model by an evaluation harness go back into the run with "
        f"`stagelens add-scores RUN LOG --model {facts.model}`.",
    ]
    return "\n".join(lines) + "\n"
