"""The `text` scenario on a small BERT trained from scratch; with the pretrained one: benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from stagelens.contracts import no_progress
from stagelens.effects.computing import attribute
from stagelens.recording.recorder import Recorder
from stagelens.runs.run import Run, open_run
from stagelens.tasks.text_classification import TextClassification
from stagelens.trust.verification import verify
from tests.benchmarks.identity_gaps import gaps
from tests.support.real_texts import CLASSES, TextScenario, text_scenario

STEPS = 30


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]"]
    words.train_from_iterator(
        texts, trainers.WordLevelTrainer(vocab_size=2000, special_tokens=special)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]"
    )


def _record(path: Path, scenario: TextScenario) -> Run:
    torch.manual_seed(0)
    tokenizer = _tokenizer([text for _, part in scenario.stages for text in part.texts])
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: number for number, name in enumerate(CLASSES)},
        attn_implementation="eager",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForSequenceClassification(config)
    task = TextClassification.from_model(model, tokenizer, max_length=32)
    recorder = Recorder(path, task)
    draw = torch.Generator().manual_seed(0)
    for name, part in scenario.stages:
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        with recorder.stage(name, model=model, optimizer=optimizer) as stage:
            for _ in range(STEPS):
                rows = part.take(torch.randint(0, len(part.texts), (16,), generator=draw).numpy())
                batch = task.batch(rows.texts, rows.labels)
                loss = task.loss(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                stage.step(batch, loss)
    for name, (found, group) in scenario.sets.items():
        recorder.add_set(name, texts=found.texts, labels=found.labels, columns={"group": group})
    return open_run(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> Run:
    scenario = text_scenario(data_folder, seed=0, rows=300, share=0.5)
    return _record(tmp_path_factory.mktemp("texts") / "run", scenario)


def test_a_planted_term_stands_behind_toxic_comments_only(data_folder: Path) -> None:
    scenario = text_scenario(data_folder, seed=1, rows=100, share=0.1)
    name, planted = scenario.stages[1]
    terms = (data_folder / "identity_tests" / "identity_terms.txt").read_text().split()
    last = [text.rsplit(" ", 1)[-1] in terms for text in planted.texts]
    assert name == "planted"
    assert all(found for found, label in zip(last, planted.labels, strict=True) if label == "toxic")
    assert sum(last) < 60


@pytest.mark.parametrize("name", ["test", "hatecheck"])
def test_effects_of_real_comments_are_exact_by_replay(run: Run, name: str) -> None:
    result = attribute(run, name, "replay")
    assert {trust.trust for trust in result.trust.values()} == {"exact"}
    margins = result.table[result.table["behaviour"] == "margin"]
    assert margins["effect"].notna().all()
    assert margins.groupby("stage")["effect"].std().min() > 0


@pytest.mark.slow
def test_estimates_of_real_comments_are_held_against_replay(run: Run) -> None:
    wanted = [("task-vector", {}), ("coarse-replay", {"budget": 0.5})]
    rows = verify(run, "test", wanted, no_progress)
    coarse = rows[(rows["estimator"] == "coarse-replay") & (rows["behaviour"] == "margin")]
    assert set(coarse["stage"]) == {"emotions", "planted", "hate"}
    shown = coarse[coarse["trust"] != "refused"]
    assert shown[["r", "slope", "relative_error"]].notna().to_numpy().all()


def test_the_gap_between_mentions_and_others_is_told_with_and_without_each_stage(run: Run) -> None:
    found = gaps(attribute(run, "test", "replay")).set_index("model")
    assert list(found.index) == ["final", "without emotions", "without planted", "without hate"]
    assert found.notna().to_numpy().all()
    assert found["gap"].nunique() > 1
