"""Rows of a log against the examples of a set: ids and contents have to be the same.

Scores that are joined by their position make up flips where the order differs, which look like
effects. So nothing is joined by position here, and nothing by an id that only counts rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from stagelens.contracts import SetError
from stagelens.runs.logs.log import Log, content_of
from stagelens.runs.sets.evaluation_set import EvaluationSet, few

from .prompts import prompts_of, references_of


@dataclass(frozen=True)
class Matched:
    """What was found.

    Attributes:
        examples: How many examples of the set have a row.
        by_id: Whether contents of some could not be compared.
    """

    examples: int
    by_id: bool


def check_rows(examples: EvaluationSet, log: Log, by_id: bool) -> Matched:
    """Match rows with examples by id and sha256 of the prompt, and references where both have one.

    Args:
        examples: The set.
        log: Its rows.
        by_id: Whether rows without contents may be matched by their ids.

    Raises:
        SetError: Something is not the same; names the examples, and never shows what they say.
    """
    prompts, references = prompts_of(examples), references_of(examples)
    rows = log.rows.drop_duplicates("example_id")
    ids = rows["example_id"].tolist()
    if other := [name for name in ids if name not in prompts]:
        raise SetError(
            f"{log.path} scores {len(other):,} examples that set {examples.name!r} lacks: "
            f"{few(other)}; name the set that it is of by --set (a new name makes one of the log), "
            "or the field that holds the set's ids by --id"
        )
    changed = log.rows.groupby("example_id")["content"].nunique(dropna=False)
    if several := changed[changed > 1].index.tolist():
        raise SetError(f"{log.path} has different prompts under one id: {few(several)}")
    known = rows["content"].notna().to_numpy()
    if not known.all():
        _check_names(log, [name for name, own in zip(ids, known, strict=True) if not own], by_id)
    wrong = [
        (name, prompt)
        for name, prompt, content in zip(ids, rows["prompt"], rows["content"], strict=True)
        if isinstance(content, str) and content != content_of(prompts[name])
    ]
    if wrong:
        name, prompt = wrong[0]
        where = ""
        if isinstance(prompt, str):
            pairs = zip(prompt, prompts[name], strict=False)
            same = sum(1 for _ in takewhile(lambda two: two[0] == two[1], pairs))
            where = f" (that of {name!r} from character {same + 1} on)"
        raise SetError(
            f"{log.path}: the prompts of {few([one for one, _ in wrong])} are not those of the "
            f"examples of these ids in set {examples.name!r}{where}, so their scores are of other "
            f"examples ({len(wrong):,} of {len(ids):,}); nothing was added"
        )
    other = [
        name
        for name, reference in zip(ids, rows["reference"], strict=True)
        if isinstance(reference, str)
        and references[name] is not None
        and reference.strip() != str(references[name]).strip()
    ]
    if other:
        raise SetError(
            f"{log.path}: the references of {few(other)} are not those of set {examples.name!r}, "
            "so scores were given for other answers; nothing was added"
        )
    return Matched(len(ids), bool((~known).any()))


def _check_names(log: Log, without: list[str], by_id: bool) -> None:
    """Whether rows without contents may be matched by their ids.

    Raises:
        SetError: They may not.
    """
    count = len(log.rows["example_id"].unique())
    counted = {str(number) for number in np.arange(count + 1)}
    if len(without) > 1 and set(without) <= counted:
        raise SetError(
            f"{log.path} has row numbers for ids and no contents, so its rows could be matched by "
            "their position only; add a column 'prompt', or 'sha256' with that of the prompt"
        )
    if not by_id:
        raise SetError(
            f"{log.path} does not say what {few(without)} is; add a column 'prompt', or 'sha256' "
            "with that of the prompt, so that rows are compared, or give --by-id if these ids "
            "never change"
        )
