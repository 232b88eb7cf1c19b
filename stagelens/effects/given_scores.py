"""Scores that other tools gave to models of a run: matched with examples, and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stagelens.contracts import SetError, StageLensError
from stagelens.estimators.registry import make_estimator
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs import fact_tables
from stagelens.runs.files import sha256_of
from stagelens.runs.logs.log import Log, LogScorer
from stagelens.runs.run import Run
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.sets.writer import write_set

from .exports import exported
from .given_files import GivenFacts, Source, given
from .given_rows import check_rows
from .given_tables import tables_of
from .model_names import WITHOUT, model_name, parsed
from .results import Result


@dataclass(frozen=True)
class Obtained:
    """How a scored model came to be, where its checkpoint does not say.

    Attributes:
        checkpoint: Its folder; None for the one that the log names.
        estimator: What it was obtained by; None to read it off the checkpoint.
    """

    checkpoint: Path | None = None
    estimator: str | None = None


@dataclass(frozen=True)
class Added:
    """What was added.

    Attributes:
        set_name: The examples.
        new_set: Whether they were made of the log's.
        scorers: What was added.
        results: Effect tables that the scores take part in.
        notes: What people should know.
    """

    set_name: str
    new_set: bool
    scorers: Sequence[LogScorer]
    results: Sequence[Result]
    notes: Sequence[str]


def add_scores(
    run: Run,
    log: Log,
    model: str,
    set_name: str | None = None,
    by_id: bool = False,
    obtained: Obtained = Obtained(),
    replacing: bool = False,
) -> Added:
    """Keep a log's scores of one model, and make effect tables where both sides have some.

    Args:
        run: The run.
        log: What a tool logged.
        model: Which model it scored: ``final``, ``after:STAGE`` or ``without:STAGE``.
        set_name: The evaluation set; None for the log's task. Where the run has none of this name,
            it is made of the log's ids and contents.
        by_id: Whether ids alone may decide where the log has no contents.
        obtained: How the model came to be.
        replacing: Whether other scores that were added before may go.

    Raises:
        SetError: An id or a content is not that of the set, by name; or a scorer's direction is not
            known.
        StageLensError: The model is another one than ``model`` says, or nothing says how it was
            obtained.
    """
    kind, stage = parsed(run, model)
    name = model_name(kind, stage)
    for scorer in log.scorers:
        if scorer.better is None:
            raise SetError(
                f"{log.path} does not say whether higher or lower numbers of {scorer.name!r} are "
                "better; say so: --better higher, or --better lower"
            )
    estimator, settings, trust, notes = _origin(run, log, name, obtained)
    wanted = set_name or log.task
    if not wanted:
        raise SetError(f"{log.path} does not name what it scored; name the set by --set")
    new_set = wanted not in run.set_names
    if new_set:
        _make_set(run, log, wanted)
    examples = run.evaluation_set(wanted)
    matched = check_rows(examples, log, by_id)
    notes += list(log.notes)
    if missing := examples.count - matched.examples:
        notes.append(f"{missing:,} of {examples.count:,} examples of {wanted!r} have no score")
    if matched.by_id:
        notes.append("examples were matched by id alone: the file has no contents to compare")
    source = Source(
        file=log.path.name,
        sha256=sha256_of(log.path),
        tool=log.tool,
        tool_version=log.tool_version,
        model=log.model,
        by_id=matched.by_id,
    )
    results = []
    for scorer in log.scorers:
        facts = GivenFacts(
            run_digest=run.digest,
            set_digest=examples.digest,
            model=name,
            scorer=scorer.facts,
            estimator=estimator,
            settings=settings,
            trust=trust,
            source=source,
        )
        _keep(run, facts, _table(log, scorer), replacing)
        notes += _other_versions(run, examples, facts)
        results += tables_of(run, examples, scorer.facts)
    return Added(wanted, new_set, log.scorers, results, notes)


def with_direction(
    log: Log, better: str | None, lowest: float | None, highest: float | None, unit: str, name: str
) -> Log:
    """A log with what its reader was told of its scorers, where the log does not know.

    Raises:
        SetError: It contradicts the log; or one name is given to several scorers, or a score is out
            of the range.
    """
    if name and len(log.scorers) > 1:
        raise SetError(f"{log.path} has {len(log.scorers)} scorers; --name is for one: --score")
    scorers, values = [], {}
    for scorer in log.scorers:
        if better is not None and scorer.better not in (None, better):
            raise SetError(
                f"{log.path} says that {scorer.better} numbers of {scorer.name!r} are better; "
                "leave --better out"
            )
        given = {"better": better, "lowest": lowest, "highest": highest, "unit": unit, "name": name}
        known: dict[str, Any] = {n: value for n, value in given.items() if value not in (None, "")}
        own = replace(scorer, **known)
        numbers = log.values[scorer.name]
        low, high = own.lowest, own.highest
        wrong = (numbers < (-np.inf if low is None else low)) | (
            numbers > (np.inf if high is None else high)
        )
        if wrong.any():
            at = int(wrong.argmax())
            raise SetError(
                f"{log.path}: {own.name} of example {log.rows['example_id'][at]!r} is "
                f"{numbers[at]:g}, which is out of the range from {low} to {high}; correct it, or "
                "--lowest and --highest"
            )
        scorers.append(own)
        values[own.name] = numbers
    return replace(log, scorers=scorers, values=values)


def _origin(
    run: Run, log: Log, model: str, obtained: Obtained
) -> tuple[str, dict[str, Any], StageTrust | None, list[str]]:
    """Estimator, settings, trust and notes of the model that was scored."""
    folder = obtained.checkpoint or (Path(log.model) if log.model else None)
    card = exported(folder) if folder is not None else None
    if card is None and obtained.checkpoint is not None:
        raise StageLensError(
            f"{obtained.checkpoint} was not written by stagelens export, so it does not say which "
            "model it is; leave --checkpoint out"
        )
    kind, _, stage = model.partition(":")
    if card is not None:
        if card.run_digest != run.digest:
            raise StageLensError(
                f"{folder}, which {log.path.name} scored, was exported from another run "
                f"({card.run!r}); give that run, or the log of a model of this one"
            )
        if card.model != model:
            raise StageLensError(
                f"{folder}, which {log.path.name} scored, is the model {card.model}, not {model}; "
                f"give --model {card.model}"
            )
        return card.estimator, dict(card.settings), card.trust, []
    if kind != WITHOUT:
        note = f"nothing but --model says that {log.path.name} scored the model {model}"
        return "", {}, None, [note]
    if obtained.estimator is None:
        raise StageLensError(
            f"nothing says how the model {model} was obtained that {log.path.name} scored; give "
            "the folder that stagelens export wrote by --checkpoint, or say it by --estimator"
        )
    made = make_estimator(obtained.estimator)
    reason = f"By {made.name}, as whoever added the scores says; the model itself was not seen."
    trust = StageTrust(stage=stage, estimator=made.name, trust="estimated", reason=reason)
    return made.name, dict(made.settings), trust, []


def _make_set(run: Run, log: Log, name: str) -> None:
    """An evaluation set of the log's own examples."""
    rows = log.rows.drop_duplicates("example_id")
    lacking = rows[rows["prompt"].isna()]
    if len(lacking):
        raise SetError(
            f"the run has no evaluation set {name!r}, and {log.path} has no prompts to make one "
            "of; add the set first (stagelens add-set), or give the file a column 'prompt'"
        )
    columns: dict[str, list[Any]] = {}
    if rows["reference"].notna().any():
        columns["reference"] = rows["reference"].tolist()
    if rows["choices"].notna().any():
        columns["choices"] = [None if one is None else list(one) for one in rows["choices"]]
    field = "text" if "text" in run.task.input_fields else "prompt"
    write_set(
        run.path,
        run.task,
        name,
        inputs={field: rows["prompt"].tolist()} if field != "text" else None,
        texts=rows["prompt"].tolist() if field == "text" else None,
        ids=rows["example_id"].tolist(),
        columns=columns,
        description=f"Prompts of {log.tool or 'a table'}, from {log.path.name}",
    )


def _table(log: Log, scorer: LogScorer) -> pd.DataFrame:
    table = log.rows[["example_id", "sample", "answer"]].copy()
    table["answer"] = table["answer"].astype("object")
    table["value"] = log.values[scorer.name]
    return table


def _keep(run: Run, facts: GivenFacts, table: pd.DataFrame, replacing: bool) -> None:
    path = run.files.inside(facts.path)
    stored = fact_tables.read(path, GivenFacts)
    if stored is not None and not replacing:
        same = stored[1]["value"].equals(table["value"].reset_index(drop=True))
        if not (same and stored[1]["example_id"].tolist() == table["example_id"].tolist()):
            raise StageLensError(
                f"the model {facts.model} has other scores by {facts.scorer['name']!r} already, "
                f"from {stored[0].source.file}; give --replace to put these in their place"
            )
    fact_tables.write(path, table, facts)


def _other_versions(run: Run, examples: EvaluationSet, facts: GivenFacts) -> list[str]:
    """A note where another model was scored by another version of the tool."""
    others = {
        one.source.tool_version
        for one, _ in given(run, examples, facts.scorer)
        if one.source.tool_version and one.source.tool_version != facts.source.tool_version
    }
    if not others or not facts.source.tool_version:
        return []
    return [
        f"{facts.model} was scored by {facts.source.tool} {facts.source.tool_version}, other "
        f"models by {', '.join(sorted(others))}"
    ]
