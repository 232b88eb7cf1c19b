"""Checkpoint folders become a run, without any recording."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers

import stagelens
from stagelens.contracts import Refused
from stagelens.effects.computing import attribute, boundaries
from stagelens.estimators.registry import default_estimator
from stagelens.replaying.replay import check_replayable
from stagelens.tasks import CausalLM, TextClassification
from tests.support.checkpoints import (
    changed,
    classifiers,
    edit_json,
    labelled_texts,
    language_models,
    save,
)
from tests.support.loops import differing
from tests.support.small_texts import CLASSES, TEXTS, bert, bert_tokenizer, gpt, gpt_tokenizer


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return classifiers(tmp_path)


def loaded(folder: Path, kind: str = "AutoModelForSequenceClassification") -> Any:
    return getattr(transformers, kind).from_pretrained(folder).eval()


def parameters(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def test_the_first_folder_is_the_base_and_each_further_one_ends_a_stage(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    run = stagelens.assemble(folders, tmp_path / "run")
    assert [stage.name for stage in run.stages] == ["sft", "dpo"]
    assert run.problems == []
    models = {name: parameters(loaded(folder)) for name, folder in folders.items()}
    states = [run.stages[0].start(), run.stages[0].end(), run.stages[1].start(), run.last.end()]
    for state, name in zip(states, ["base", "sft", "sft", "dpo"], strict=True):
        own = {n: state.model[n] for n in models[name]}
        assert differing(own, models[name]) == []
        assert state.optimizer == {}
    assert all(stage.steps == 0 and stage.facts.origin == "assembled" for stage in run.stages)


def test_the_run_needs_its_originals_no_more(folders: dict[str, Path], tmp_path: Path) -> None:
    run = stagelens.assemble(folders, tmp_path / "run")
    digest = run.digest
    for folder in folders.values():
        shutil.rmtree(folder)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    again = stagelens.open_run(tmp_path / "elsewhere")
    assert again.digest == digest
    assert again.last.end().model.keys() == again.stages[0].start().model.keys()
    assert isinstance(again.task, TextClassification)


def test_the_final_model_of_a_run_answers_as_the_checkpoint_does(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    run = stagelens.assemble(
        folders, tmp_path / "run", evaluation=labelled_texts(tmp_path / "few.jsonl")
    )
    assert run.set_names == ["few"]
    table = boundaries(run, "few").table
    for name, folder in folders.items():
        batch = run.task.collate(list(run.evaluation_set("few").by_id(["0", "1", "2", "3", "4"])))
        with torch.inference_mode():
            logits = run.task.outputs(loaded(folder), batch)
        expected = run.task.behaviours(logits, batch)["loss"]
        rows = table[(table["boundary"] == name) & (table["behaviour"] == "loss")]
        torch.testing.assert_close(torch.tensor(rows["value"].to_numpy()), expected)


def test_attribution_gives_task_vectors_and_the_exact_last_stage_at_once(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    run = stagelens.assemble(
        folders, tmp_path / "run", evaluation=labelled_texts(tmp_path / "few.jsonl")
    )
    assert default_estimator(run) == "task-vector"
    result = attribute(run, "few", default_estimator(run))
    assert {name: trust.trust for name, trust in result.trust.items()} == {
        "sft": "estimated",
        "dpo": "exact",
    }
    assert result.table["effect"].notna().all()
    means = boundaries(run, "few").table.groupby(["boundary", "behaviour"])["value"].mean()
    effects = result.table.groupby(["stage", "behaviour"])["effect"].mean()
    for behaviour in ("margin", "loss", "probability"):
        observed = means["dpo", behaviour] - means["sft", behaviour]
        assert effects["dpo", behaviour] == pytest.approx(observed)


@pytest.mark.parametrize("estimator", ["coarse-replay", "replay", "unrolled-jump"])
def test_what_needs_recorded_steps_is_refused_with_what_to_do(
    estimator: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    run = stagelens.assemble(
        folders, tmp_path / "run", evaluation=labelled_texts(tmp_path / "few.jsonl")
    )
    trust = attribute(run, "few", estimator).trust
    assert trust["sft"].trust == "refused"
    assert trust["sft"].reason == (
        "no steps were recorded of stage 'dpo': this run was assembled from checkpoints; use "
        "--estimator task-vector, or record the stage while it is trained"
    )
    assert trust["dpo"].trust == "exact"
    with pytest.raises(Refused, match="assembled from checkpoints"):
        check_replayable(run.stages)


def test_two_folders_are_one_stage_and_its_effect_is_exact(tmp_path: Path) -> None:
    folders = classifiers(tmp_path, ["pretrained", "tuned"])
    run = stagelens.assemble(
        folders, tmp_path / "run", evaluation=labelled_texts(tmp_path / "few.jsonl")
    )
    assert [stage.name for stage in run.stages] == ["tuned"]
    assert "from pretrained (pretrained)" in run.stages[0].facts.description
    assert default_estimator(run) == "task-vector"
    assert attribute(run, "few", "task-vector").trust["tuned"].trust == "exact"


def test_shards_give_the_same_run_as_one_file(tmp_path: Path) -> None:
    whole = stagelens.assemble(classifiers(tmp_path / "whole"), tmp_path / "one")
    sharded = classifiers(tmp_path / "sharded", max_shard_size="8KB")
    assert len(list(sharded["sft"].glob("*.safetensors"))) > 2
    many = stagelens.assemble(sharded, tmp_path / "many")
    for one, other in zip(whole.stages, many.stages, strict=True):
        assert differing(one.start().model, other.start().model) == []
        assert differing(one.end().model, other.end().model) == []
        assert len(other.facts.start.shards) > 2
    assert whole.digest != many.digest  # other files were recorded


def test_every_shard_counts_for_the_run_digest(tmp_path: Path) -> None:
    folders = classifiers(tmp_path / "a", max_shard_size="8KB")
    one = stagelens.assemble(folders, tmp_path / "one").digest
    model = loaded(folders["sft"])
    with torch.no_grad():
        model.classifier.bias.add_(1)
    save(model, folders["sft"], max_shard_size="8KB")
    assert stagelens.assemble(folders, tmp_path / "other").digest != one


def test_linked_weights_take_no_room(folders: dict[str, Path], tmp_path: Path) -> None:
    run = stagelens.assemble(folders, tmp_path / "run", link=True)
    copied = stagelens.assemble(folders, tmp_path / "copied")
    linked = run.path / run.last.facts.end.model.path  # type: ignore[union-attr]
    assert linked.samefile(folders["dpo"] / "model.safetensors")
    assert run.digest == copied.digest


def test_a_language_model_shares_its_embeddings_with_its_head(tmp_path: Path) -> None:
    folders = language_models(tmp_path)
    run = stagelens.assemble(folders, tmp_path / "run")
    assert isinstance(run.task, CausalLM)
    state = run.last.end().model
    assert "transformer.wte.weight" in state
    assert "lm_head.weight" not in state
    final = parameters(loaded(folders["dpo"], "AutoModelForCausalLM"))
    assert differing(state, final) == []


def test_half_precision_is_kept_as_it_is(tmp_path: Path) -> None:
    tokenizer = gpt_tokenizer()
    model = gpt(tokenizer).bfloat16()
    folders = {
        name: save(changed(model, number), tmp_path / name, tokenizer)
        for number, name in enumerate(("base", "sft", "dpo"))
    }
    run = stagelens.assemble(folders, tmp_path / "run")
    assert {tensor.dtype for tensor in run.last.end().model.values()} == {torch.bfloat16}
    assert next(run.task.build_model().parameters()).dtype == torch.bfloat16
    recorder = stagelens.Recorder(run.path, run.task, resume=True)
    recorder.add_set("test", texts=list(TEXTS))
    assert attribute(run, "test", "task-vector").table["final"].notna().any()


def test_precision_that_changed_is_said(tmp_path: Path) -> None:
    tokenizer = gpt_tokenizer()
    base = save(gpt(tokenizer), tmp_path / "base")
    tuned = save(changed(gpt(tokenizer), 1).bfloat16(), tmp_path / "sft", tokenizer)
    run = stagelens.assemble({"base": base, "sft": tuned}, tmp_path / "run")
    assert "(base float32, sft bfloat16)" in run.problems[0]


def test_a_base_without_head_begins_the_stage_in_which_the_head_appears(tmp_path: Path) -> None:
    tokenizer = bert_tokenizer()
    classifier = bert(tokenizer)
    base = save(classifier.bert, tmp_path / "base")  # names without "bert."
    sft = save(changed(classifier, 1), tmp_path / "sft")
    dpo = save(changed(classifier, 2), tmp_path / "dpo", tokenizer)
    run = stagelens.assemble(
        {"base": base, "sft": sft, "dpo": dpo},
        tmp_path / "run",
        evaluation=labelled_texts(tmp_path / "few.jsonl"),
    )
    head = ["classifier.bias", "classifier.weight"]
    assert sorted(run.stages[0].facts.boundary.new) == head
    assert run.stages[1].facts.boundary.new == []
    assert not set(head) & run.stages[0].start().model.keys()
    assert len(run.problems) == 1
    assert "classifier.bias, classifier.weight are new there" in run.problems[0]

    # Left out, the stage takes back what it did to the body; its head stays.
    trust = attribute(run, "few", "task-vector").trust
    assert trust["sft"].trust == "estimated"
    assert "(classifier.bias and 1 more) keeps its final value" in trust["sft"].reason
    # Of the base, which has no head, no behaviour can be observed.
    assert set(boundaries(run, "few").table["boundary"]) == {"sft", "dpo"}


def test_a_head_that_appears_in_the_last_stage_is_no_exact_counterfactual(tmp_path: Path) -> None:
    tokenizer = bert_tokenizer()
    classifier = bert(tokenizer)
    base = save(classifier.bert, tmp_path / "base")
    sft = save(changed(classifier, 1), tmp_path / "sft", tokenizer)
    run = stagelens.assemble(
        {"base": base, "sft": sft},
        tmp_path / "run",
        evaluation=labelled_texts(tmp_path / "few.jsonl"),
    )
    trust = attribute(run, "few", "task-vector").trust["sft"]
    assert trust.trust == "estimated"
    assert "keeps its final value" in trust.reason


def test_a_head_of_other_classes_is_another_head(tmp_path: Path) -> None:
    tokenizer = bert_tokenizer()
    first = bert(tokenizer, id2label={0: "yes", 1: "no"})
    second = bert(tokenizer, seed=1)
    second.bert.load_state_dict(first.bert.state_dict())
    folders = {
        "base": save(first, tmp_path / "base"),
        "sft": save(changed(first, 1), tmp_path / "sft"),
        "three": save(changed(second, 2), tmp_path / "three"),
        "last": save(changed(second, 3), tmp_path / "last", tokenizer),
    }
    run = stagelens.assemble(folders, tmp_path / "run")
    assert run.task.config["classes"] == list(CLASSES)
    new = {stage.name: sorted(stage.facts.boundary.new) for stage in run.stages}
    assert new == {"sft": [], "three": ["classifier.bias", "classifier.weight"], "last": []}


def test_rows_that_a_vocabulary_gains_are_new_and_old_rows_stay_what_they_are(
    tmp_path: Path,
) -> None:
    tokenizer = gpt_tokenizer()
    model = gpt(tokenizer)
    rows = model.transformer.wte.weight.shape[0]
    base = save(model, tmp_path / "base", tokenizer)
    tokenizer.add_tokens(["<one>", "<two>"])
    model.resize_token_embeddings(rows + 2)
    sft = save(changed(model, 1), tmp_path / "sft")
    dpo = save(changed(model, 2), tmp_path / "dpo", tokenizer)
    run = stagelens.assemble({"base": base, "sft": sft, "dpo": dpo}, tmp_path / "run")
    assert run.stages[0].facts.boundary.grown == {"transformer.wte.weight": rows}
    assert run.stages[1].facts.boundary.grown == {}
    assert "transformer.wte.weight longer there" in run.problems[0].replace(" is", "")


def test_a_column_that_cannot_be_kept_is_left_out_and_said(tmp_path: Path) -> None:
    folders = classifiers(tmp_path / "c")
    table = pa.table({"text": ["a dog"], "label": ["loud"], "raw": [b"x"], "n": [1]})
    pq.write_table(table, tmp_path / "few.parquet")
    run = stagelens.assemble(folders, tmp_path / "run", evaluation=tmp_path / "few.parquet")
    assert run.evaluation_set("few").columns == ("n",)
    assert "set few: left out: column 'raw' holds binary" in run.problems


def test_weights_that_the_final_model_has_not_are_left_out_and_said(tmp_path: Path) -> None:
    tokenizer = bert_tokenizer()
    classifier = bert(tokenizer)
    masked = transformers.BertForMaskedLM(classifier.config)
    masked.bert.load_state_dict(classifier.bert.state_dict(), strict=False)
    base = save(masked, tmp_path / "base")
    sft = save(changed(classifier, 1), tmp_path / "sft", tokenizer)
    run = stagelens.assemble({"base": base, "sft": sft}, tmp_path / "run")
    assert any("base: cls." in note and "left out" in note for note in run.problems)
    assert sorted(run.stages[0].facts.boundary.new) == [
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "classifier.bias",
        "classifier.weight",
    ]


def test_old_names_of_bert_are_known(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folders["base"] / "model.safetensors"
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): t
        for n, t in load_file(path).items()
    }
    usual = stagelens.assemble(folders, tmp_path / "usual")
    save_file(old, path)
    run = stagelens.assemble(folders, tmp_path / "run")
    assert run.problems == []
    assert differing(run.stages[0].start().model, usual.stages[0].start().model) == []


def test_a_stage_that_changed_nothing_is_said(tmp_path: Path) -> None:
    folders = classifiers(tmp_path, ["base", "sft"])
    shutil.copytree(folders["sft"], tmp_path / "copy")
    run = stagelens.assemble({**folders, "again": tmp_path / "copy"}, tmp_path / "run")
    assert run.problems == ["again changed nothing: its weights are exactly those of sft"]


def test_a_context_that_grew_is_said(tmp_path: Path) -> None:
    tokenizer = gpt_tokenizer()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    model = transformers.LlamaForCausalLM(config)
    base = save(model, tmp_path / "base")
    model.config.max_position_embeddings = 64
    sft = save(changed(model, 1), tmp_path / "sft", tokenizer)
    run = stagelens.assemble({"base": base, "sft": sft}, tmp_path / "run")
    assert "max_position_embeddings 32 and 64" in run.problems[0]
    state = run.last.end().model
    assert state["model.rotary_emb.inv_freq"].dtype == torch.float32
    assert "model.rotary_emb.inv_freq" not in run.last.facts.end.model.path  # type: ignore[union-attr]


def test_the_task_can_be_named(folders: dict[str, Path], tmp_path: Path) -> None:
    edit_json(folders["dpo"] / "config.json", lambda config: config.pop("architectures"))
    run = stagelens.assemble(folders, tmp_path / "run", task="text-classification")
    assert isinstance(run.task, TextClassification)


def test_a_recorded_stage_can_follow_assembled_ones(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    run = stagelens.assemble(folders, tmp_path / "run")
    recorder = stagelens.Recorder(run.path, run.task, resume=True)
    model = run.task.build_model()
    recorder.restore(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()
    with recorder.stage("own", model=model, optimizer=optimizer) as stage:
        batch = run.task.batch(list(TEXTS), [CLASSES[0]] * len(TEXTS))  # type: ignore[attr-defined]
        loss = run.task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        stage.step(batch, loss)
    recorder.add_set("test", texts=list(TEXTS), labels=[CLASSES[0]] * len(TEXTS))
    whole = recorder.run()
    trust = attribute(whole, "test", "replay").trust
    assert {name: each.trust for name, each in trust.items()} == {
        "sft": "refused",
        "dpo": "exact",
        "own": "exact",
    }
