"""The checkpoint folder that `stagelens remove` writes, with the task vector."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import stagelens
from stagelens.analyses.removal import saving
from stagelens.analyses.removal.spec import Edit
from stagelens.contracts import RunError
from stagelens.estimators.subtraction import subtract_stage
from stagelens.runs.streaming import read_header
from tests.support.checkpoints import changed, classifiers, labelled_texts, language_models, save
from tests.support.loops import BATCH_NORM, Plan, differing, make_task, record_plans
from tests.support.small_texts import TEXTS, bert, bert_tokenizer, gpt, gpt_tokenizer

CARDS = {saving.CARD, saving.SPEC}
CLASSIFIER, LANGUAGE = "AutoModelForSequenceClassification", "AutoModelForCausalLM"


def without_stage(run: stagelens.Run, stage: str, out: Path, strength: float = 1.0) -> Path:
    edit = Edit(estimator="task-vector", strengths={stage: strength})
    return saving.save(run, edit, out, None)


def parameters(folder: Path, kind: str = CLASSIFIER) -> dict[str, torch.Tensor]:
    model = getattr(transformers, kind).from_pretrained(folder)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module", params=[{}, {"max_shard_size": "8KB"}], ids=["one file", "shards"])
def folders(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return classifiers(root, ["base", "sft", "dpo", "last"], **request.param)


@pytest.fixture(scope="module")
def assembled(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stagelens.assemble(folders, tmp_path_factory.mktemp("assembled") / "run").path


@pytest.fixture
def run(assembled: Path, tmp_path: Path) -> stagelens.Run:
    """A copy of ``assembled`` to change."""
    return stagelens.open_run(shutil.copytree(assembled, tmp_path / "run"))


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_the_stages_change_is_subtracted(
    strength: float, folders: dict[str, Path], run: stagelens.Run, tmp_path: Path
) -> None:
    out = without_stage(run, "dpo", tmp_path / "out", strength)
    without = parameters(out)
    start, end, final = (parameters(folders[name]) for name in ("sft", "dpo", "last"))
    for name, tensor in without.items():
        left_out = (final[name].double() - (end[name].double() - start[name].double())).float()
        expected = final[name].double() - strength * (final[name].double() - left_out.double())
        assert torch.equal(tensor, expected.float()), name
    assert not torch.equal(without["classifier.weight"], final["classifier.weight"])


def test_it_is_sharded_as_the_final_model_is(
    folders: dict[str, Path], run: stagelens.Run, tmp_path: Path
) -> None:
    out = without_stage(run, "sft", tmp_path / "out")
    expected = {path.name for path in folders["last"].iterdir()}
    assert {path.name for path in out.iterdir()} == expected | CARDS
    for path in out.glob("*.safetensors"):
        mine, final = read_header(path), read_header(folders["last"] / path.name)
        assert (mine.tensors, mine.metadata) == (final.tensors, final.metadata)
    for name in ("config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (folders["last"] / name).read_bytes()
    index = "model.safetensors.index.json"
    if (out / index).exists():
        maps = [json.loads((f / index).read_text())["weight_map"] for f in (out, folders["last"])]
        assert maps[0] == maps[1]


def test_without_the_last_stage_it_is_bit_for_bit_the_one_before(
    folders: dict[str, Path], run: stagelens.Run, tmp_path: Path
) -> None:
    out = without_stage(run, "last", tmp_path / "out")
    assert differing(parameters(out), parameters(folders["dpo"])) == []


def test_what_is_measured_is_what_is_written(tmp_path: Path) -> None:
    from stagelens.effects.computing import attribute

    run = stagelens.assemble(
        classifiers(tmp_path), tmp_path / "run", evaluation=labelled_texts(tmp_path / "few.jsonl")
    )
    table = attribute(run, "few", "task-vector").table
    out = without_stage(run, "sft", tmp_path / "out")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(out).eval()
    examples = run.evaluation_set("few").examples()
    batch = run.task.collate(examples)
    with torch.inference_mode():
        expected = run.task.behaviours(run.task.outputs(model, batch), batch)["margin"]
    rows = table[(table["stage"] == "sft") & (table["behaviour"] == "margin")]
    torch.testing.assert_close(torch.tensor(rows["without"].to_numpy()), expected)


def test_half_precision_is_subtracted_in_float32_and_rounded_once(tmp_path: Path) -> None:
    tokenizer = gpt_tokenizer()
    model = gpt(tokenizer).bfloat16()
    folders = {
        name: save(changed(model, number), tmp_path / name, tokenizer)
        for number, name in enumerate(("base", "sft", "dpo"))
    }
    run = stagelens.assemble(folders, tmp_path / "run")
    out = without_stage(run, "sft", tmp_path / "out")
    start, end, final = (load_file(folders[n] / "model.safetensors") for n in folders)
    for name, tensor in load_file(out / "model.safetensors").items():
        expected = final[name].float() - (end[name].float() - start[name].float())
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, expected.bfloat16()), name


def test_double_precision_is_the_same_each_time_that_it_is_asked_for(tmp_path: Path) -> None:
    tokenizer = gpt_tokenizer()
    model = gpt(tokenizer).double()
    folders = {
        name: save(changed(model, number), tmp_path / name, tokenizer)
        for number, name in enumerate(("base", "sft", "dpo"))
    }
    run = stagelens.assemble(folders, tmp_path / "run")
    without = subtract_stage(run.last.end().model, run.stage("sft"), run.stages[1:])
    name = "transformer.wte.weight"
    assert torch.equal(without[name].clone(), without[name])


def test_shared_weights_stay_shared(tmp_path: Path) -> None:
    folders = language_models(tmp_path)
    run = stagelens.assemble(folders, tmp_path / "run")
    out = without_stage(run, "sft", tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert (out / "generation_config.json").is_file()


def test_new_rows_of_a_vocabulary_keep_their_final_values(tmp_path: Path) -> None:
    tokenizer = gpt_tokenizer()
    model = gpt(tokenizer)
    name, rows = "transformer.wte.weight", model.transformer.wte.weight.shape[0]
    folders = {"base": save(model, tmp_path / "base")}
    tokenizer.add_tokens(["<one>", "<two>"])
    model.resize_token_embeddings(rows + 2)
    folders["sft"] = save(changed(model, 1), tmp_path / "sft")
    folders["dpo"] = save(changed(model, 2), tmp_path / "dpo", tokenizer)
    run = stagelens.assemble(folders, tmp_path / "run")
    start, end, final = (parameters(folder, LANGUAGE)[name] for folder in folders.values())

    without = parameters(without_stage(run, "sft", tmp_path / "sft-out"), LANGUAGE)[name]
    change = end[:rows].double() - start.double()
    assert torch.equal(without[:rows], (final[:rows].double() - change).float())
    assert torch.equal(without[rows:], final[rows:])

    without = parameters(without_stage(run, "dpo", tmp_path / "dpo-out"), LANGUAGE)[name]
    assert torch.equal(without, end)


def test_a_head_that_appears_in_the_stage_keeps_its_final_value(tmp_path: Path) -> None:
    tokenizer = bert_tokenizer()
    classifier = bert(tokenizer)
    folders = {
        "base": save(classifier.bert, tmp_path / "base"),
        "sft": save(changed(classifier, 1), tmp_path / "sft"),
        "dpo": save(changed(classifier, 2), tmp_path / "dpo", tokenizer),
    }
    run = stagelens.assemble(folders, tmp_path / "run")
    without = parameters(without_stage(run, "sft", tmp_path / "out"))
    final = parameters(folders["dpo"])
    for name in without:
        kept = name.startswith("classifier.")
        assert torch.equal(without[name], final[name]) == kept, name


def test_of_a_recorded_run_it_is_a_checkpoint_too(tmp_path: Path) -> None:
    tokenizer = bert_tokenizer()
    model: Any = bert(tokenizer)
    task = stagelens.tasks.TextClassification.from_model(model, tokenizer)
    recorder = stagelens.Recorder(tmp_path / "run", task)
    model.train()
    for name in ("one", "two"):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        with recorder.stage(name, model=model, optimizer=optimizer) as stage:
            batch = task.batch(list(TEXTS), ["calm"] * len(TEXTS))
            loss = task.loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            stage.step(batch, loss)
    run = recorder.run()
    out = without_stage(run, "one", tmp_path / "out")
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        *CARDS,
    }
    assert json.loads((out / "config.json").read_text())["architectures"] == [
        "BertForSequenceClassification"
    ]
    start, end = run.stage("one").start().model, run.stage("one").end().model
    final, without = run.last.end().model, parameters(out)
    name = "bert.pooler.dense.weight"
    change = end[name].double() - start[name].double()
    assert torch.equal(without[name], (final[name].double() - change).float())
    tokens = transformers.AutoTokenizer.from_pretrained(out)(TEXTS[0])["input_ids"]
    assert tokens == tokenizer(TEXTS[0])["input_ids"]


def test_the_variances_of_another_task_are_scaled_and_its_integers_kept(tmp_path: Path) -> None:
    plans = [
        Plan(name, lambda model, _: torch.optim.AdamW(model.parameters(), lr=0.02))
        for name in ("first", "second")
    ]
    run = record_plans(tmp_path / "run", make_task(BATCH_NORM), plans)
    out = without_stage(run, "first", tmp_path / "out", 0.5)
    written, model = load_file(out / "model.safetensors"), run.task.build_model()
    model.load_state_dict(written)
    final = run.last.end().model
    start, end = run.stage("first").start().model, run.stage("first").end().model
    for name, tensor in written.items():
        if name.endswith("running_var"):
            expected = final[name].double() * (start[name].double() / end[name].double()) ** 0.5
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=0)
        elif name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, final[name])


def test_a_damaged_state_leaves_nothing_behind(run: stagelens.Run, tmp_path: Path) -> None:
    reference = run.stage("sft").facts.start.model
    path = run.path / reference.path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    out = tmp_path / "out"
    with pytest.raises(RunError, match=r"was changed after it was recorded"):
        without_stage(stagelens.open_run(run.path), "sft", out)
    assert [path.name for path in tmp_path.glob("*out*")] == []


def test_progress_rises_to_one(run: stagelens.Run, tmp_path: Path) -> None:
    told: list[float] = []
    edit = Edit(estimator="task-vector", strengths={"sft": 0.5})
    saving.save(run, edit, tmp_path / "out", None, progress=lambda share, _: told.append(share))
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)
