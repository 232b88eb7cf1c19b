"""Which scores are stored for a set, and what each is called. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stagelens.contracts import Behaviour
from stagelens.estimators.registry import estimate_name, estimators, find
from stagelens.runs.run import Run
from stagelens.runs.schema import digest

from .results import ResultFacts, stored_results

ANSWERS, SCORER, GIVEN = "answers", "scorer", "given"
"""Settings of a table of scores beside the estimator's own: how answers were generated, what scored
them, and where scores are from that were added."""
OWN = (ANSWERS, SCORER, GIVEN)
"""All of them: what is left of a table's settings is the estimator's."""
_SAID = 60
"""Characters of the settings that tell scores of one scorer apart."""


@dataclass(frozen=True)
class StoredScore:
    """A scorer's numbers on a set, by every estimate that there is of them.

    Attributes:
        name: What pages call it: ``score:NAME``, with the settings that tell it from others of the
            same scorer.
        facts: Estimate to what its table says of itself, the best first.
        boundaries: What the table of scores after every boundary says of itself; None without one.
    """

    name: str
    facts: Mapping[str, ResultFacts]
    boundaries: ResultFacts | None = None

    @property
    def best(self) -> str:
        """The estimate of which most is known."""
        return next(iter(self.facts))

    @property
    def any(self) -> ResultFacts:
        """What all its tables have in common: the scorer, and how answers were generated."""
        return self.facts[self.best]

    @property
    def key(self) -> str:
        """The same for all numbers of this scorer on answers that were had in this way."""
        return score_key(self.any)

    @property
    def behaviour(self) -> Behaviour:
        """The scorer's, under the name of pages."""
        return self.any.behaviours[0].model_copy(update={"name": self.name}).behaviour()

    @property
    def samples(self) -> int:
        """Answers per prompt that were sampled; 0 where one was generated, or none is known."""
        return int(self.any.settings.get(ANSWERS, {}).get("samples") or 0)


def stored_scores(run: Run, set_name: str) -> dict[str, StoredScore]:
    """The scores that are stored for a set as it is now, by name."""
    boundaries = {_key(facts): facts for facts in stored_results(run, set_name, "score-boundaries")}
    alike: dict[str, dict[str, ResultFacts]] = {}
    for facts in sorted(stored_results(run, set_name, "scores"), key=_rank):
        alike.setdefault(_key(facts), {})[estimate_of(facts)] = facts
    kinds: dict[str, list[str]] = {}
    for key, tables in alike.items():
        kinds.setdefault(next(iter(tables.values())).behaviours[0].name, []).append(key)
    found = {}
    for kind, keys in sorted(kinds.items()):
        settings = [_flat(next(iter(alike[key].values()))) for key in keys]
        for key, own in zip(keys, settings, strict=True):
            name = kind if len(keys) == 1 else f"{kind} ({_apart(own, settings)})"
            # However much alike two are called, none hides the other.
            name = name if name not in found else f"{name} {key[:6]}"
            found[name] = StoredScore(name, alike[key], boundaries.get(key))
    return dict(sorted(found.items()))


def _rank(facts: ResultFacts) -> tuple[int, str]:
    known = facts.estimator in estimators()
    return -find(facts.estimator).preference if known else 0, estimate_of(facts)


def estimate_of(facts: ResultFacts) -> str:
    """How the models without a stage were obtained, as ``estimate_name`` writes it."""
    own = {name: value for name, value in facts.settings.items() if name not in OWN}
    return estimate_name(facts.estimator, own)


def score_key(facts: ResultFacts) -> str:
    """See ``StoredScore.key``, of one of its tables."""
    return _key(facts)[:16]


def _key(facts: ResultFacts) -> str:
    """The same for all tables of one scorer on answers generated in one way."""
    return digest({name: facts.settings.get(name) for name in OWN})


def _flat(facts: ResultFacts) -> dict[str, Any]:
    """The settings that may tell two scores apart, by short names."""
    scorer = dict(facts.settings.get(SCORER) or {})
    own = {name: value for name, value in scorer.items() if name not in ("name", "settings")}
    more = (scorer.get("settings"), facts.settings.get(ANSWERS), facts.settings.get(GIVEN))
    for each in more:
        own |= each if isinstance(each, Mapping) else {} if each is None else {"from": each}
    return own


def _apart(own: Mapping[str, Any], every: list[dict[str, Any]]) -> str:
    names = dict.fromkeys(name for each in every for name in each)
    differ = [name for name in names if len({repr(each.get(name)) for each in every}) > 1]
    # The direction stands beside the name wherever it matters.
    differ = [name for name in differ if name != "better"] or differ
    said = ", ".join(f"{name}={own[name]}" for name in differ if name in own)
    said = said or "as usual"
    return said if len(said) <= _SAID else f"{said[: _SAID - 1]}…"
