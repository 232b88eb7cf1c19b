"""Everything that a dossier says, read from a run."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from contextlib import suppress
from math import isfinite

from stagelens.analyses.shares.bridge import bridges
from stagelens.analyses.shares.drawn_shares import drawn_shares_of
from stagelens.analyses.shares.sentences import share_sentence
from stagelens.analyses.shares.share_table import SHARE, Shares, shares_of
from stagelens.analyses.shares.stored import best_coalitions
from stagelens.contracts import Behaviour, StageLensError
from stagelens.effects.headlines import FEWEST, headlines
from stagelens.effects.results import stored_results
from stagelens.report.chance_text import exceeded
from stagelens.report.checking import stored_tables
from stagelens.report.sections import Basis
from stagelens.runs.described import OF_RUN, RunAnswers, answers
from stagelens.runs.merge_words import merge_words
from stagelens.runs.run import Run, Stage
from stagelens.trust.drawn_coalitions import of_recipe
from stagelens.trust.estimates import best_known
from stagelens.wording.hand_overs import end_lines, hand_over_lines
from stagelens.wording.numbers import count_text, measured_time, phrase
from stagelens.wording.objectives import objective_lines
from stagelens.wording.sentences import Sentence, slice_parts
from stagelens.wording.stage_facts import optimizer_words, steps_words
from stagelens.wording.trust_words import trust_explanation, trust_label, trust_word

from .computing import Counted, computing
from .content import Computing, Dossier, Fact, SetPart, Source, StagePart, Statement

_MOST = 2
"""Most effects told of one stage, set and behaviour: the strongest credit and blame."""


def dossier(run: Run, counted: Counted | None) -> Dossier:
    """What is known of a run: recorded, said, counted and measured.

    Args:
        run: The run.
        counted: What its stages took, see :func:`~.computing.count`; None if that is not known.
    """
    said = answers(run)
    took = computing([stage.name for stage in run.stages], counted, said.base_operations)
    bases = [Basis.of(run, name) for name in run.set_names if stored_results(run, name)]
    bases.sort(key=lambda basis: -basis.examples.count)
    digests = {reference.name: reference.sha256 or "" for reference in run.file.stages}
    stages = [
        _stage_part(stage, said, spent, bases, digests.get(stage.name, ""))
        for stage, spent in zip(run.stages, took, strict=True)
    ]
    sets = [
        SetPart(one.name, one.count, one.description, one.digest)
        for one in (run.evaluation_set(name) for name in run.set_names)
    ]
    return Dossier(
        run.title,
        run.digest,
        _run_facts(run, said),
        stages,
        sets,
        _run_limits(run, said, bases),
        _checks(run, [basis.examples.name for basis in bases]),
        said.base_operations is not None,
        stored_tables(run),
    )


# --------------------------------------------------------------------------------------- facts


_RUN_NAMES = {
    "responsible": "Who answers for it",
    "purpose": "Intended use",
    "licence": "Licence",
    "base": "Training started from",
    "base_licence": "Licence of that",
    "base_operations": "Operations of training that",
}
"""Field to the name of its fact; limits have a place of their own."""


def _run_facts(run: Run, said: RunAnswers) -> list[Fact]:
    facts = []
    for field in OF_RUN:
        if field in _RUN_NAMES:
            given = getattr(said, field)
            value = f"{given:.3g}" if isinstance(given, float) else given
            facts.append(Fact(_RUN_NAMES[field], value, "said" if value else ""))
    kind = run.file.task.name
    facts.append(Fact("Task", kind, "recorded"))
    facts.append(Fact("Stages", ", ".join(stage.name for stage in run.stages), "recorded"))
    return facts


def _stage_part(
    stage: Stage, said: RunAnswers, spent: Computing, bases: Sequence[Basis], digest: str
) -> StagePart:
    measured, silent = [], []
    for basis in bases:
        told = _statements(basis, stage.name)
        measured += told
        if not told:
            silent.append(
                f"Nothing stands out on set {basis.examples.name} "
                f"({count_text(basis.examples.count, basis.noun)})."
            )
    return StagePart(
        stage.name,
        _stage_facts(stage, said),
        spent,
        measured,
        silent,
        _stage_limits(stage, bases),
        digest,
    )


def _stage_facts(stage: Stage, said: RunAnswers) -> list[Fact]:
    own, facts = said.of(stage.name), stage.facts
    before = None if stage.previous is None else stage.previous.facts
    recorded = facts.environment
    minimised = "; ".join(objective_lines(facts)) or "the model's own loss"
    if facts.merge is not None:
        minimised = "nothing: merged, not trained"
    how = hand_over_lines(facts, before)
    ends = "; ".join(end_lines(facts))
    took = None if facts.seconds is None else measured_time(facts.seconds)
    return [
        Fact("Who", own.by, _said(own.by)),
        Fact("When", own.date, _said(own.date)),
        Fact("What for", own.objective, _said(own.objective)),
        Fact("Why this way", own.rationale, _said(own.rationale)),
        Fact("Data", own.data or facts.description or None, _said(own.data) or "recorded"),
        Fact("Licence of the data", own.data_licence, _said(own.data_licence)),
        Fact("Hash of the recorded batches", _hash_of_batches(stage), "recorded"),
        Fact("Minimised", minimised, "recorded"),
        Fact("Optimiser", ", ".join(optimizer_words(facts)), "recorded"),
        Fact("Steps", steps_words(stage), "recorded"),
        Fact("How it began", "; ".join(how) or _began(stage), "recorded"),
        *([Fact("How it ended", ends, "recorded")] if ends else []),
        Fact("Time", took, "recorded" if took else ""),
        Fact(
            "Hardware",
            own.hardware or (_hardware(stage) if recorded else None),
            _said(own.hardware) or "recorded",
        ),
        Fact("Licence of the weights", own.licence, _said(own.licence)),
    ]


def _hardware(stage: Stage) -> str:
    """What it was trained on, as its main process found it."""
    found, count = stage.environment, stage.facts.processes
    return (found.arithmetic or found.machine) + f", in {count} processes" * (count > 1)


def _began(stage: Stage) -> str:
    if stage.facts.merge is not None:
        return merge_words(stage.name, stage.facts.merge)
    if stage.previous is None:
        return "at the base"
    carried = " and its optimiser's state" if stage.facts.boundary.optimizer == "carried" else ""
    return f"with the weights{carried} that {stage.previous.name} ended with"


def _said(value: str | None) -> Source:
    return "said" if value else ""


def _hash_of_batches(stage: Stage) -> str | None:
    """One digest over the files that hold a stage's recorded batches; None where none were kept."""
    parts = [part for own in stage.facts.parts_of_each for part in own]
    files = [part.batches.sha256 for part in parts if part.batches is not None]
    return hashlib.sha256("".join(files).encode()).hexdigest() if files else None


# ------------------------------------------------------------------------------------ measured


def _statements(basis: Basis, stage: str) -> list[Statement]:
    """What stands out of a stage on a set: effects on all and by group, and its share."""
    best = best_known(basis.effects, basis.every[1:])
    made = []
    for behaviour in list(best.behaviours.values())[:2]:
        found = headlines(
            best.of(behaviour.name), behaviour, [stage], best.trust, basis.noun, basis.by,
            limit=_MOST, orders=basis.orders, draws=basis.draws,
        )  # fmt: skip
        told = [*_share(basis, stage, behaviour), *found]
        made += [_statement(one, basis.examples.name, behaviour) for one in told]
    return made


def _share(basis: Basis, stage: str, behaviour: Behaviour) -> list[Sentence]:
    """A stage's share, and why its effect may seem to contradict it; none where not known.

    Of the recipe where it was drawn, else in this run.
    """
    found: Shares | None = None
    if (redrawn := of_recipe(basis.run, basis.examples.name)) is not None:
        found = drawn_shares_of(redrawn, behaviour.name)
    measured = best_coalitions(basis.run, basis.examples.name)
    if found is None and measured is not None and behaviour.name in measured.behaviours:
        with suppress(StageLensError):  # too little was computed for shares
            found = shares_of(measured, behaviour.name)
    if found is None:
        return []
    one = next((each for each in found.means(SHARE) if each.name == stage), None)
    if one is None or one.trust.trust == "refused" or not isfinite(one.mean):
        return []
    said = share_sentence(one, behaviour, slice_parts(basis.noun), basis.noun)
    return [said, *bridges(found, only=stage)]


def _statement(sentence: Sentence, set_name: str, behaviour: Behaviour) -> Statement:
    known = sentence.trust
    word = "" if known is None else trust_word(known, behaviour.name)
    label = "" if known is None else trust_label(known, behaviour.name)
    return Statement(str(sentence), set_name, phrase(behaviour), word, label)


# -------------------------------------------------------------------------------------- limits


def _stage_limits(stage: Stage, bases: Sequence[Basis]) -> list[str]:
    facts, limits = stage.facts, []
    if facts.origin == "assembled":
        limits.append(f"{stage.not_recorded[:1].upper()}{stage.not_recorded[1:]}.")
    elif why := stage.no_replay:
        limits.append(f"It cannot be replayed: {why}.")
    if facts.unchecked:
        limits.append(f"Its recording was not checked: {facts.unchecked}.")
    if facts.kernels:
        limits.append(f"Trained by {', '.join(facts.kernels)}, which replays compute otherwise.")
    for basis in bases:
        trust = basis.effects.trust.get(stage.name)
        name = basis.examples.name
        if trust is None:
            limits.append(f"Its effect on set {name} was not measured.")
        elif trust_word(trust) != "exact":
            limits.append(f"On set {name}: {trust_label(trust)}. {trust_explanation(trust)}")
    return limits


def _run_limits(run: Run, said: RunAnswers, bases: Sequence[Basis]) -> list[str]:
    limits = [said.limits] if said.limits else []
    if not bases:
        limits.append("No stage effect has been measured on any set.")
    for basis in bases:
        beyond = exceeded(basis.draws, basis.orders is not None)
        limits.append(
            f"On set {basis.examples.name}, what is stated are mean effects over at least "
            f"{count_text(FEWEST, basis.noun)}, beyond {beyond}."
        )
    return [*limits, *(f"{problem}." for problem in run.problems)]


def _checks(run: Run, measured: Sequence[str]) -> list[tuple[str, str]]:
    at = shlex.quote(str(run.path))
    found = [
        ("Every digest of the run, and a sample of its numbers", f"stagelens check {at}"),
        ("Every recorded step, by running it again", f"stagelens check {at} --full"),
        ("This document against the run", f"stagelens check {at} --report DOSSIER.html"),
    ]
    found += [
        (
            f"The effects on set {name}, against exact replays",
            f"stagelens verify {at} --set {shlex.quote(name)}",
        )
        for name in measured
    ]
    return found
