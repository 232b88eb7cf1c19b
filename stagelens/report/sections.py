"""The full default report of a run: what the dashboard's pages show, without the dashboard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from stagelens import charts
from stagelens.analyses.spurious.feature_table import load_features, noise_key
from stagelens.analyses.spurious.gaps import gap_notes, gap_sentences, group_gaps, rows_of
from stagelens.analyses.spurious.ranking import first, strongest
from stagelens.analyses.spurious.sentences import feature_sentence
from stagelens.analyses.without_data.as_stages import without_some
from stagelens.analyses.without_data.chosen import DRAWN
from stagelens.analyses.without_data.sentences import CHOSEN_ON
from stagelens.charts.groups import group_gaps as draw_gaps
from stagelens.contracts import ACCURACY, Behaviour, StageLensError
from stagelens.effects import summary
from stagelens.effects.draws import DrawnEffects
from stagelens.effects.headlines import FEWEST, headlines, meant_too
from stagelens.effects.learning_rates import learning_rates
from stagelens.effects.results import ResultFacts, load_result
from stagelens.estimators.stage_trust import REPLAY, StageTrust
from stagelens.runs.run import Run
from stagelens.runs.sets.clusters import Clusters, clusters
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.trust import draws, noise
from stagelens.trust.estimates import as_effects, best_known, completed, stored_estimates
from stagelens.trust.stage_effects import Effects
from stagelens.trust.verification import trusted
from stagelens.wording.folding import MOST
from stagelens.wording.numbers import count_text, phrase
from stagelens.wording.sentences import Sentence, mean_sentence
from stagelens.wording.trust_words import trust_word

from . import paths, scores, shares, trust_table
from .chance_text import exceeded
from .checking import stored_tables
from .cover import read_cover
from .exported import TableUsed
from .figures import kept
from .finding import Finding, Rows, Seen
from .page import Report, Section, pinned
from .provenance import RECORDED
from .store import FindingStore, new_id

_FEATURES = 3
"""Most features per stage."""


@dataclass(frozen=True)
class Basis:
    """What a default report is made from.

    Attributes:
        run: The run.
        examples: The evaluation set.
        facts: What the effect table on show says of itself.
        effects: The best of the stored estimates.
        every: All stored estimates, best first.
        orders: Effects in several orders of the batches; None if the noise is not known.
        draws: Effects in several draws of the recipe; None if there are none.
        clusters: Which examples share a source; None if none do.
        by: The column that forms groups; None if there is none.
    """

    run: Run
    examples: EvaluationSet
    facts: ResultFacts
    effects: Effects
    every: Sequence[Effects]
    orders: pd.DataFrame | None
    draws: DrawnEffects | None
    clusters: Clusters | None
    by: str | None

    @classmethod
    def of(cls, run: Run, set_name: str) -> Basis:
        """Read what is stored for a set.

        Raises:
            StageLensError: Nothing has been measured on it yet; says how to measure.
        """
        examples = run.evaluation_set(set_name)
        orders, sharing = noise.load_orders(run, set_name), clusters(examples)
        every: list[tuple[ResultFacts, Effects]] = []
        for name, facts in stored_estimates(run, set_name).items():
            found = load_result(run, set_name, "effects", facts.estimator, facts.settings)
            if found is not None:
                effects = as_effects(name, trusted(run, found), orders)
                if sharing is not None:
                    effects = effects.with_columns(sharing.joined)
                every.append((facts, effects))
        if not every:
            raise StageLensError(
                f"no stage effect has been measured on set {set_name!r} of {run.path} yet; measure "
                f"them with: stagelens attribute {run.path} --set {set_name}"
            )
        facts, first = every[0]
        others = [effects for _, effects in every[1:]]
        best = completed(first, others, [stage.name for stage in run.stages])
        columns = summary.group_columns(examples.table(), (*examples.columns, "label"))
        by = columns[0] if columns else None
        tables = [effects for _, effects in every]
        drawn = draws.governing(run, set_name)
        return cls(run, examples, facts, best, tables, orders, drawn, sharing, by)

    @property
    def stages(self) -> list[str]:
        """Stage names in training order."""
        return [stage.name for stage in self.run.stages]

    @property
    def noun(self) -> str:
        """What an example is called."""
        return self.examples.kind

    @property
    def trust(self) -> tuple[StageTrust, ...]:
        """What is known of the shown estimate's counterfactuals, in training order."""
        return tuple(
            self.effects.trust[stage] for stage in self.stages if stage in self.effects.trust
        )

    def finding(self, **seen: Any) -> Finding:
        """A finding on this set of this run, unless another one is named."""
        of_set = {"set_name": self.examples.name, "set_digest": self.examples.digest}
        return Finding(
            seen=Seen(
                id=new_id(),
                run_name=self.run.title,
                run_digest=self.run.digest,
                noun=self.noun,
                **{**of_set, **seen},
            )
        )

    def chart(self, chart: charts.Chart, **seen: Any) -> Finding:
        """A chart as a finding."""
        figure, rows = kept(chart)
        return self.finding(kind="chart", said=chart.alt, figure=figure, rows=rows, **seen)


def whole_report(run: Run, set_name: str) -> tuple[Report, list[str]]:
    """The pinned findings followed by the default report, and what could not be read.

    Raises:
        StageLensError: Nothing has been measured on the set yet.
    """
    found = FindingStore(run).read()
    cover, problems = read_cover(run)
    sections = [pinned(found.kept), *default_sections(run, set_name)]
    tables = tables_used(run, sections)
    made = Report(run.title, run.digest, sections, tables=tables, cover=cover)
    return made, [*found.problems, *problems]


def tables_used(run: Run, sections: Sequence[Section]) -> list[TableUsed]:
    """The stored effect tables of the sets that a report's findings are about."""
    names = {each.seen.set_name for section in sections for each in section.findings}
    return [table for table in stored_tables(run) if table.set_name in names]


def default_sections(run: Run, set_name: str) -> list[Section]:
    """What stands out, scores, stages, trust, then the data: evaluated, and trained on.

    Raises:
        StageLensError: Nothing has been measured on the set yet.
    """
    basis = Basis.of(run, set_name)
    parts: tuple[tuple[str, str, Callable[[Basis], list[Finding]]], ...] = (
        ("What stands out", _about(basis), _headlines),
        ("What each stage did to the answers", scores.ABOUT, _scores),
        (
            "Credit and blame",
            "What each stage made better (credit) and worse (blame) for individual examples, and "
            "the net of the two.",
            _bars,
        ),
        ("Shares", shares.ABOUT, _shares),
        ("Stages", "In training order, with what was measured after each.", _time_line),
        ("Paths", paths.ABOUT, _paths),
        ("Trust", "Every estimate that is stored for this set.", _trust),
        ("Group gaps", "Groups under the final model, and without each stage.", _gaps),
        (
            "Features found without metadata",
            "What goes with a stage's effect, tested within each label. That a feature goes with "
            "an effect does not mean that it is spurious: look at the examples.",
            _features,
        ),
        ("Without some training data", f"{DRAWN} {CHOSEN_ON}", _without_data),
    )
    return [Section(title, about, make(basis)) for title, about, make in parts]


def _scores(basis: Basis) -> list[Finding]:
    return scores.score_findings(basis.run, basis.noun, basis.finding)


def _about(basis: Basis) -> str:
    count = count_text(basis.examples.count, basis.noun)
    told = f": {basis.examples.description}" if basis.examples.description else ""
    known = "by replay where one is stored"
    beyond = exceeded(basis.draws, basis.orders is not None)
    clustered = f" {basis.clusters.words(count)}" if basis.clusters is not None else ""
    return (
        f"Set {basis.examples.name}, {count}{told}. Mean effects over at least "
        f"{count_text(FEWEST, basis.noun)}, {known}, beyond {beyond}.{clustered}"
    )


def _headlines(basis: Basis) -> list[Finding]:
    best, made = best_known(basis.effects, basis.every[1:]), []
    for behaviour in _shown(best):
        other = meant_too(behaviour, best.behaviours)
        rows = [best.of(kind.name) for kind in (behaviour, other) if kind is not None]
        found = headlines(
            pd.concat(rows), behaviour, basis.stages, best.trust, basis.noun, basis.by,
            orders=basis.orders, draws=basis.draws, other=other,
        )  # fmt: skip
        if not found:
            continue
        trust = dict.fromkeys(each.trust for each in found if each.trust is not None)
        made.append(
            basis.finding(
                kind="sentences",
                title=phrase(behaviour).capitalize(),
                said=" ".join(str(each) for each in found),
                sentences=tuple(found),
                behaviour=behaviour.name,
                estimator=", ".join(dict.fromkeys(each.estimator for each in trust)),
                trust=tuple(trust),
            )
        )
    return made


def _shown(effects: Effects) -> list[Behaviour]:
    """The first two behaviours: accuracy if there are labels, and the first measured one."""
    return list(effects.behaviours.values())[:2]


def _bars(basis: Basis) -> list[Finding]:
    made = []
    for behaviour in _shown(basis.effects):
        table, trust = basis.effects.of(behaviour.name), basis.effects.trust
        means = summary.stage_summary(
            table, behaviour, basis.stages, None, basis.orders, basis.draws
        )
        about = f"all {basis.noun}s"
        chart = charts.credit_and_blame(means, behaviour, trust, charts.EITHER, about)
        made.append(
            basis.chart(
                chart,
                title=f"Credit and blame of each stage for the {phrase(behaviour)} on {about}",
                sentences=_mean_sentences(basis, means, behaviour),
                behaviour=behaviour.name,
                estimator=basis.effects.estimator,
                trust=basis.trust,
            )
        )
    return made


def _mean_sentences(
    basis: Basis, means: pd.DataFrame, behaviour: Behaviour
) -> tuple[Sentence, ...]:
    trust = basis.effects.trust
    rows = means.iloc[charts.shown_stages(means)].to_dict("records")
    return tuple(
        mean_sentence(row, behaviour, basis.noun, None, trust.get(str(row["stage"])))
        for row in rows
    )


def _without_data(basis: Basis) -> list[Finding]:
    """Replays without training examples, in the form of stage effects."""
    found = without_some(basis.run, basis.examples)
    if found is None:
        return []
    made = []
    for behaviour in list(found.behaviours.values())[:2]:
        means, about = found.means(behaviour), f"all {basis.noun}s"
        chart = charts.credit_and_blame(means, behaviour, found.trust, charts.EITHER, about)
        made.append(
            basis.chart(
                chart,
                title=f"Effect of training examples on the {phrase(behaviour)} of {about}",
                sentences=tuple(found.sentences(means, behaviour, basis.noun)),
                behaviour=behaviour.name,
                estimator=REPLAY,
                trust=tuple(found.trust.values()),
            )
        )
    return made


def _shares(basis: Basis) -> list[Finding]:
    of, behaviours = (basis.run, basis.examples.name, basis.noun), _shown(basis.effects)
    return shares.share_findings(*of, behaviours, basis.finding, basis.chart)


def _time_line(basis: Basis) -> list[Finding]:
    steps = {stage.name: stage.updates for stage in basis.run.stages}
    found = load_result(basis.run, basis.examples.name, "boundaries")
    behaviour = _shown(basis.effects)[0]
    measured = None
    if found is not None:
        table = summary.boundaries_with_accuracy(found.table, basis.examples.table())
        parts = [summary.boundary_summary(table, behaviour, basis.stages)]
        if basis.by is not None:
            parts.append(summary.boundary_summary(table, behaviour, basis.stages, basis.by))
        measured = pd.concat([part for part in parts if len(part)], ignore_index=True)
    rates = learning_rates(basis.run.stages)
    chart = charts.time_line(steps, rates, measured, behaviour, charts.EITHER)
    title = "Learning rates" + (
        "" if measured is None else f", and the {phrase(behaviour)} after each boundary"
    )
    return [basis.chart(chart, title=title, behaviour=behaviour.name, observed=RECORDED)]


def _paths(basis: Basis) -> list[Finding]:
    return paths.path_findings(basis.run, basis.examples, basis.stages, basis.chart)


def _gaps(basis: Basis) -> list[Finding]:
    by, effects = basis.by, basis.effects
    if by is None or by == "label" or ACCURACY.name not in effects.behaviours:
        return []
    gaps = group_gaps(
        *(rows_of(effects, (by,)), basis.stages, (by,), ACCURACY),
        *(basis.orders, effects.trust, basis.draws),
    )
    stages = [stage for stage in basis.stages if stage in effects.trust]
    notes = gap_notes(gaps, stages, effects.trust)
    return [
        basis.chart(
            draw_gaps(gaps.metrics, gaps.behaviour, notes, charts.EITHER),
            title="Accuracy by group" if by == "group" else f"Accuracy by {by}",
            sentences=tuple(gap_sentences(gaps, stages, effects.trust, basis.noun)),
            behaviour=ACCURACY.name,
            estimator=effects.estimator,
            trust=basis.trust,
        )
    ]


def _features(basis: Basis) -> list[Finding]:
    facts, name = basis.facts, basis.examples.name
    of = (facts.estimator, facts.settings, noise_key(basis.orders, basis.draws))
    found = load_features(basis.run, name, *of)
    if found is None:
        return []
    behaviour = found.facts.behaviour.behaviour()
    every = [strongest(found, stage.stage) for stage in found.facts.stages]
    best = [first(rows[rows["kind"] != "column"], _FEATURES) for rows in every] or [pd.DataFrame()]
    rows = pd.concat(best, ignore_index=True)
    if rows.empty:
        return []
    trust = basis.effects.trust
    rows.insert(1, "trust", [trust_word(trust[str(s)], behaviour.name) for s in rows["stage"]])
    said = [
        feature_sentence(of.iloc[0].to_dict(), behaviour, basis.noun, trust.get(str(stage)))
        # Unsorted, so that stages keep the order of training.
        for stage, of in list(rows.groupby("stage", sort=False))[:MOST]
    ]
    columns = (
        *("stage", "trust", "kind", "name", "label", "support", "mean_with", "mean_without"),
        *("difference", "low", "high", "q"),
    )
    return [
        basis.finding(
            kind="table",
            title=f"Features that go with the effect of a stage on the {phrase(behaviour)}",
            said=" ".join(str(each) for each in said),
            sentences=tuple(said),
            behaviour=behaviour.name,
            estimator=basis.effects.estimator,
            trust=basis.trust,
            rows=Rows.of(rows[list(columns)].rename(columns=lambda c: c.replace("_", " "))),
        )
    ]


def _trust(basis: Basis) -> list[Finding]:
    # The measured one: accuracy is derived, and is not itself compared with replay.
    behaviour = _shown(basis.effects)[-1].name
    return [trust_table.finding(basis.every, basis.stages, behaviour, basis.trust, basis.finding)]
