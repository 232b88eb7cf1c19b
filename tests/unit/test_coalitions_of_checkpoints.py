"""Coalitions of a run that was assembled from checkpoints: by task vectors, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

import stagelens
from stagelens.contracts import Refused
from stagelens.effects.coalition_measuring import measure_coalitions
from stagelens.estimators.coalitions import coalitions
from stagelens.runs.run import Run
from stagelens.runs.states import same_tensor
from tests.support.checkpoints import changed, classifiers, labelled_texts, save
from tests.support.loops import differing
from tests.support.small_texts import bert, bert_tokenizer


@pytest.fixture
def headless(tmp_path: Path) -> Run:
    """A base without a head, which the first of two stages brings."""
    tokenizer = bert_tokenizer()
    classifier = bert(tokenizer)
    folders = {"base": save(classifier.bert, tmp_path / "base")}
    folders["sft"] = save(changed(classifier, 1), tmp_path / "sft")
    folders["dpo"] = save(changed(classifier, 2), tmp_path / "dpo", tokenizer)
    few = labelled_texts(tmp_path / "few.jsonl")
    return stagelens.assemble(folders, tmp_path / "run", evaluation=few)


def test_what_first_appears_in_a_missing_stage_keeps_what_that_made_of_it(headless: Run) -> None:
    final = headless.last.end().model
    for one in coalitions(headless, range(4), "task-vector"):
        assert one.weights is not None
        weights = {name: one.weights[name] for name in one.weights}
        assert weights.keys() == final.keys()
        without_first = not one.mask & 1
        said = "of sft (classifier.bias and 1 more) keeps what that stage made of it"
        assert (said in one.trust.reason) == without_first
        assert one.trust.trust == ("estimated" if without_first else "exact")
        if one.mask == 1:
            assert differing(weights, headless.stages[0].end().model) == []
        if without_first:
            known = final if one.mask else headless.stages[0].end().model
            assert same_tensor(weights["classifier.bias"], known["classifier.bias"])
    found = measure_coalitions(headless, "few", "task-vector")
    assert found.complete and found.trust[0].trust == "estimated"


def test_nothing_can_be_trained_again(tmp_path: Path) -> None:
    few = labelled_texts(tmp_path / "few.jsonl")
    run = stagelens.assemble(classifiers(tmp_path), tmp_path / "run", evaluation=few)
    found = {one.mask: one for one in coalitions(run, range(4), "replay")}
    # The boundaries are recorded, and both stages go on with the same parameters.
    assert {mask for mask, one in found.items() if one.weights is not None} == {0, 1, 3}
    assert "no steps were recorded of stage 'dpo'" in found[2].trust.reason
    with pytest.raises(Refused, match="no steps were recorded of stage 'dpo'"):
        measure_coalitions(run, "few", "replay")
