"""Scores of answers by stage: a row for every scorer on every set, and the report's section."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stagelens.contracts import BASE, SCORE, Behaviour
from stagelens.effects import summary
from stagelens.effects.results import load_result
from stagelens.effects.stored_scores import StoredScore, stored_scores
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.run import Run
from stagelens.runs.sets.clusters import clusters
from stagelens.trust import draws
from stagelens.trust.score_effects import with_scores
from stagelens.wording.folding import listed
from stagelens.wording.intervals import Interval, governing, is_marked, mean_interval
from stagelens.wording.numbers import axis_unit, scaled
from stagelens.wording.sentences import Sentence, mean_sentence
from stagelens.wording.signs import CREDIT_OR_BLAME, because
from stagelens.wording.trust_words import trust_word

from .finding import Finding, Rows

TITLE = "Scores of the answers by stage"
ABOUT = (
    "Mean stage effect on each score of what models answer: credit, above 0, where the score is "
    "better because of the stage, blame, below 0, where it is worse, whether higher or lower is "
    "better; intervals are over prompts, with an estimate's error (95 %). Scores "
    "from 0 to 1 are in percent, effects on them in points. Where the models of redraws of the "
    "recipe answered too, intervals over these say what other trainings would do."
)
SHOWN = 12
"""Scores that a takeaway names."""
DRAWN = ("redraws low", "redraws high")
NUMBERS = (CREDIT_OR_BLAME, "low", "high", *DRAWN, "final", "without the stage")
"""Columns of :func:`frame` with numbers of a score."""
FORMAT = "%.2f"


@dataclass(frozen=True)
class ScoreRow:
    """One scorer on one set.

    Attributes:
        score: What is stored of it.
        set_name: The set.
        estimate: How the models without a stage were obtained.
        behaviour: The score.
        means: From ``summary.stage_summary``, a row per stage.
        trust: Stage to what is known of its effects.
        base: The mean before the first stage; NaN where it is not known.
    """

    score: StoredScore
    set_name: str
    estimate: str
    behaviour: Behaviour
    means: pd.DataFrame
    trust: Mapping[str, StageTrust]
    base: float = float("nan")

    def interval(self, row: Mapping[str, Any]) -> Interval | None:
        """Of a stage's mean effect."""
        return mean_interval(row, self.trust.get(str(row["stage"])), self.behaviour)

    def governing(self, row: Mapping[str, Any]) -> Interval | None:
        """Which says whether a stage's mean effect is a finding."""
        return governing(row, self.trust.get(str(row["stage"])), self.behaviour)

    def is_marked(self, row: Mapping[str, Any]) -> bool:
        """Whether a stage's mean effect is credit or blame, and not neither."""
        return is_marked(row, self.trust.get(str(row["stage"])), self.behaviour)

    @property
    def called(self) -> str:
        """The scorer's name for people."""
        return self.behaviour.name.removeprefix(SCORE)

    def over_draws(self, row: Mapping[str, Any]) -> tuple[float, float]:
        """The ends of a stage's mean effect over draws of the recipe, as gains; NaN without any."""
        low, high = sorted(self.behaviour.sign * float(row[n]) for n in ("draw_low", "draw_high"))
        return low, high

    def size(self, stage: str) -> float:
        """A stage's effect, as a share of what the score can change by; 0 where not known."""
        gains = self.means.set_index("stage")["gain"]
        span = self.behaviour.highest - self.behaviour.lowest
        span = span if np.isfinite(span) else float(gains.abs().max())
        found = float(gains.get(stage, np.nan)) / (span or 1.0)
        return found if np.isfinite(found) else 0.0

    def largest(self) -> dict[str, Any] | None:
        """The row of the stage that moved it most, of those with a finding; None without one."""
        clear = [
            each
            for each in self.means.to_dict("records")
            if self.is_marked(each) and self.governing(each) is not None
        ]
        return max(clear, key=lambda each: abs(each["effect"]), default=None)


def score_rows(run: Run, set_name: str) -> list[ScoreRow]:
    """Every scorer on a set, each by its best estimate."""
    scores = stored_scores(run, set_name)
    examples, stages = run.evaluation_set(set_name), [stage.name for stage in run.stages]
    sharing, drawn = clusters(examples), draws.governing(run, set_name)
    rows = []
    for name, score in scores.items():
        effects = with_scores(run, score.best, None, {name: score})
        assert effects is not None, "there is a score"
        effects = effects if sharing is None else effects.with_columns(sharing.joined)
        kind = score.behaviour
        means = summary.stage_summary(effects.of(name), kind, stages, None, None, drawn)
        base = float("nan")
        if score.boundaries is not None:
            found = load_result(run, set_name, "score-boundaries", "", score.boundaries.settings)
            if found is not None:
                there = found.table.loc[found.table["boundary"] == BASE, "value"]
                base = float(there.mean())
        trust = effects.trust_of(name)
        rows.append(ScoreRow(score, set_name, score.best, kind, means, trust, base))
    return rows


def takeaway(rows: Sequence[ScoreRow]) -> str:
    """Each scorer with the stage that moved it most, where that is clear."""
    said = []
    for row in rows[:SHOWN]:
        if (most := row.largest()) is None:
            said.append(f"{row.called}: no clear effect")
        else:
            said.append(f"{row.called}: {because(most, row.behaviour)}")
    return f"{TITLE}. The largest clear effects: {'; '.join(said)}."


def frame(rows: Sequence[ScoreRow]) -> pd.DataFrame:
    """One line per scorer and stage; scores from 0 to 1 in percent and points."""
    lines = []
    for row in rows:
        kind = row.behaviour
        for each in row.means.to_dict("records"):
            interval = row.interval(each)
            low, high = (float("nan"),) * 2 if interval is None else interval.gains(kind)
            drawn = row.over_draws(each)
            trust = row.trust.get(str(each["stage"]))
            lines.append(
                {
                    "score": row.called,
                    "set": row.set_name,
                    "better": kind.better,
                    "stage": each["stage"],
                    "prompts": each["n"],
                    "final": scaled(each["final"], kind),
                    "without the stage": scaled(each["without"], kind),
                    CREDIT_OR_BLAME: scaled(each["gain"], kind),
                    "low": scaled(low, kind),
                    "high": scaled(high, kind),
                    **dict(zip(DRAWN, (scaled(one, kind) for one in drawn), strict=True)),
                    "trust": "" if trust is None else trust_word(trust, kind.name),
                    "unit": axis_unit(kind),
                    "estimator": row.estimate,
                }
            )
    made = pd.DataFrame(lines)
    # Columns that say nothing of a row take room from those that do: without draws of the recipe,
    # and where all is of one set, or by one estimator, which what stands around the table says.
    idle = [name for name in ("set", "estimator") if made[name].nunique() == 1]
    idle += list(DRAWN) if made[list(DRAWN)].isna().to_numpy().all() else []
    return made.drop(columns=idle)


def known_of(rows: Sequence[ScoreRow]) -> tuple[list[StageTrust], list[str]]:
    """What is known of every effect in a table of scores, and which score each is on."""
    pairs = [(known, row.behaviour.name) for row in rows for known in row.trust.values()]
    return [known for known, _ in pairs], [name for _, name in pairs]


def score_findings(run: Run, noun: str, finding: Callable[..., Finding]) -> list[Finding]:
    """A table of scores by stage for every set that has some.

    Args:
        run: The run.
        noun: What an example is called.
        finding: Makes one, of these attributes of ``Seen``.
    """
    made = []
    for set_name in run.set_names:
        rows = score_rows(run, set_name)
        if not rows:
            continue
        trust, trust_of = known_of(rows)
        made.append(
            finding(
                kind="table",
                title=f"{TITLE}, set {set_name}",
                said=takeaway(rows),
                sentences=_sentences(rows, noun),
                set_name=set_name,
                set_digest=run.evaluation_set(set_name).digest,
                estimator=listed(list(dict.fromkeys(row.estimate for row in rows))),
                trust=tuple(trust),
                trust_of=tuple(trust_of),
                rows=Rows.of(frame(rows), dict.fromkeys(NUMBERS, FORMAT)),
            )
        )
    return made


def _sentences(rows: Sequence[ScoreRow], noun: str) -> tuple[Sentence, ...]:
    """Of each score, what its largest clear effect is."""
    found = [(row, row.largest()) for row in rows[:SHOWN]]
    return tuple(
        mean_sentence(most, row.behaviour, noun, None, row.trust.get(str(most["stage"])))
        for row, most in found
        if most is not None
    )
