"""What scores are worth, in words: how answers were had, what was seen here, and what was not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stagelens.contracts import REFERENCE_COLUMN
from stagelens.estimators.stage_trust import is_ground_truth
from stagelens.runs.run import Run
from stagelens.wording.folding import listed
from stagelens.wording.numbers import count_text

from .given_files import GivenFacts, given
from .model_names import AFTER, FINAL, WITHOUT
from .results import ResultFacts
from .stored_scores import ANSWERS, GIVEN, SCORER, StoredScore

_COUNTS = {
    "exact": " Only a whole answer counts, not one that goes on.",
    "contains": " An answer counts where what is looked for stands anywhere in it, whatever else "
    "it says.",
    "regex": " An answer counts where the pattern fits anywhere in it, unless the pattern says "
    "where.",
    "numeric": " The last number of an answer counts, whatever is said before it.",
}
"""What the built-in rules count, where an answer may surprise."""
_ORDER = (FINAL, AFTER, WITHOUT)


def given_of(run: Run, set_name: str, score: StoredScore) -> list[GivenFacts]:
    """What files of given scores say of themselves, of a score that was added; else none."""
    if GIVEN not in score.any.settings:
        return []
    scorer = score.any.settings[SCORER]
    found = [facts for facts, _ in given(run, run.evaluation_set(set_name), scorer)]
    return sorted(found, key=lambda one: (_ORDER.index(one.model.partition(":")[0]), one.model))


def what_is_known(score: StoredScore, files: Sequence[GivenFacts]) -> list[str]:
    """What is known of a score, as sentences: how it came to be, and what nobody here can check.

    Args:
        score: The score.
        files: From :func:`given_of`.
    """
    if GIVEN in score.any.settings:
        return _of_a_log(files)
    return [_answered(score.any), *_by_rule(score.any), _models(score)]


def _answered(facts: ResultFacts) -> str:
    how: dict[str, Any] = facts.settings.get(ANSWERS) or {}
    if "multiple-choice" in how:
        norm = how["multiple-choice"]
        by = "" if norm == "none" else f", divided by the number of {norm}"
        return f"Each model's answer is the choice that it finds likeliest{by}: nothing is drawn."
    most = f"at most {count_text(int(how.get('max_tokens', 0)), 'token')}"
    if samples := int(how.get("samples") or 0):
        return (
            f"Each model answered every prompt {samples} times, sampled at temperature "
            f"{how['temperature']:g} with seed {how['seed']}, {most}. All models had the same "
            "random numbers; other seeds would give other answers, and what they would change is "
            "part of the intervals over prompts."
        )
    return (
        f"Each model gave one greedy answer to every prompt, {most}: nothing is drawn, and asked "
        "again it answers the same."
    )


def _by_rule(facts: ResultFacts) -> list[str]:
    scorer = facts.settings[SCORER]
    against = ""
    if (column := scorer.get("reference", REFERENCE_COLUMN)) != REFERENCE_COLUMN:
        against = f", held against the column {column}"
    named = f"The scorer is {scorer['name']} (version {scorer['version']}){against}."
    named += _COUNTS.get(scorer["name"], "")
    if scorer["name"] == "classifier":
        return [f"{named} It is a model, whose errors are part of the score, and not known here."]
    return [
        named,
        "A rule gives the same answer the same number; whether it says what people mean by its "
        "name, no number tells.",
    ]


def _models(score: StoredScore) -> str:
    trusts = score.facts[score.best].stages
    exact = [known.stage for known in trusts if is_ground_truth(known)]
    others = [known.stage for known in trusts if known.stage not in exact]
    said = []
    if exact:
        said.append(
            f"The models without {listed(exact)} are those of a replay, so their answers are what "
            "they would say, and intervals are over the choice of prompts alone."
        )
    if others:
        said.append(
            f"Those without {listed(others)} are estimates: an answer can tip over at the smallest "
            "error of the weights, so no error of a score is promised."
        )
    return " ".join(said)


def _of_a_log(files: Sequence[GivenFacts]) -> list[str]:
    if not files:
        return ["The files in scores/ that these were added from are gone; nothing says more."]
    models = listed([one.model for one in files])
    tools = {" ".join(filter(None, (one.source.tool, one.source.tool_version))) for one in files}
    by = listed(sorted(filter(None, tools)))
    names = listed([one.source.file for one in files])
    said = [f"Added{f' from {by}' if by else ''}, of the models {models}: {names}."]
    estimated = [one for one in files if one.trust is not None and not is_ground_truth(one.trust)]
    unseen = [one.model for one in files if one.trust is None]
    if unseen:
        verb = "is" if len(unseen) == 1 else "are"
        said.append(
            f"That the log of {listed(unseen)} {verb} of that model, the command that added it "
            "says, or the checkpoint that it names."
        )
    if estimated:
        stages = [one.trust.stage for one in estimated if one.trust is not None]
        said.append(f"Of the models without {listed(stages)} no replay is known.")
    if by_id := [one.model for one in files if one.source.by_id]:
        said.append(
            f"Of {listed(by_id)}, prompts were matched by their ids alone: the log had none."
        )
    if len(tools) > 1:
        said.append("Different versions of a tool may score one answer differently.")
    said.append(
        "Nobody here can check that the tool asked all models in the same way, nor how often its "
        "scorer errs: a judge's errors are part of the effects. Its agreement with a second "
        "scorer of the same answers shows how large they may be."
    )
    return said
