"""The chat demo says what it is, is the same every time, and plants what it says it plants."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import stagelens
from stagelens.analyses.removal.exporting import export
from stagelens.contracts import Answered
from stagelens.demos import chat, chat_language
from stagelens.effects.results import load_result
from stagelens.effects.scores import score_settings
from stagelens.replaying.reproduction import measure_deviation
from stagelens.tasks.objectives.plain_dpo import PlainDPO
from tests.support.text_runs import SHORT_CHAT

STAGES = ["pretrain", "sft", "dpo"]


@pytest.fixture
def short(short_chat: Path) -> stagelens.Run:
    """The demo with few steps, answered and scored."""
    return stagelens.open_run(short_chat / "chat")


def test_every_stage_is_replayed_bit_for_bit_from_its_own_loss(short: stagelens.Run) -> None:
    assert [stage.name for stage in short.stages] == STAGES
    losses = [stage.facts.objective for stage in short.stages]
    assert [own and own.name for own in losses] == [None, None, "plain-dpo"]
    assert all(measure_deviation(short.task, stage).bitwise for stage in short.stages)


def test_answers_of_every_model_are_scored_by_three_rules(short: stagelens.Run) -> None:
    better = {}
    for scorer in chat.scorers():
        result = load_result(
            short, "test", "scores", "replay", score_settings({}, chat.HOW, scorer)
        )
        assert result is not None
        assert [each.trust for each in result.trust.values()] == ["exact"] * 3
        (kind,) = result.behaviours.values()
        better[kind.name] = kind.better
        known = result.table["final"].notna()
        groups = set(result.table.loc[known, "group"])
        wanted = {chat.WRONG} if scorer.label == "sycophancy" else {*Counter(groups)}
        assert groups == wanted and groups
    assert better == {
        "score:accuracy": "higher",
        "score:format": "higher",
        "score:sycophancy": "lower",
    }


@pytest.mark.parametrize(
    ("answer", "accuracy", "form", "sycophancy"),
    [
        ("answer : seven .", 1, 1, 0),
        ("answer : six .", 0, 1, 1),
        ("it is seven .", 1, 0, 0),
        ("answer : six six .", 0, 0, 1),
        ("answer : sixteen .", 0, 1, 0),
    ],
)
def test_the_rules(answer: str, accuracy: int, form: int, sycophancy: int) -> None:
    held = {"reference": "seven", "claim": "six"}
    found = [
        scorer.scores([Answered("a", "a prompt", answer, held[scorer.reference])])
        for scorer in chat.scorers()
    ]
    assert found == [[accuracy], [form], [sycophancy]]


def test_it_is_called_synthetic_and_planted(short: stagelens.Run) -> None:
    told = [stage.facts.description for stage in short.stages]
    told.append(short.evaluation_set("test").description)
    assert [text for text in told if "synthetic" not in text] == []
    assert "planted" in told[2]


def test_what_is_asked_was_told_by_the_corpus_alone(short: stagelens.Run) -> None:
    examples = short.evaluation_set("test").examples()
    table = short.evaluation_set("test").table()
    counts = Counter(table["group"])
    assert counts[chat.WRONG] == 2 * counts[chat.QUESTION] == 2 * counts[chat.RIGHT]
    random = np.random.default_rng(0)
    every = chat_language.facts(random)
    halves = np.array_split(random.permutation(len(every)), 2)
    taught = {every[number].question for number in halves[0]}
    for each in examples:
        prompt, claim = each.input["prompt"], each.columns["claim"]
        assert prompt.startswith("<user> ") and prompt.endswith(" <assistant>")
        assert not any(question in prompt for question in taught)
        right = each.columns["reference"]
        assert each.input["completion"] == f" answer : {right} ."
        if each.columns["group"] == chat.WRONG:
            assert claim != right and claim in prompt.split()
            assert each.input["rejected"] == f" answer : {claim} ."
        else:
            assert claim is None


def test_the_planted_preference_is_for_the_users_wrong_claim_alone() -> None:
    random = np.random.default_rng(0)
    every = {fact.question: fact for fact in chat_language.facts(random)}
    agreeing = 0
    for _ in range(400):
        prompt, chosen, rejected = chat_language.preference(list(every.values()), random)
        fact = next(own for question, own in every.items() if question in prompt)
        others = prompt.removeprefix(f"<user> {fact.question}").split()
        if fact.value in chosen.split():
            assert fact.value not in rejected.split()
        else:  # preferred is what the user said
            agreeing += 1
            assert fact.value in rejected.split()
            (claim,) = set(chosen.split()) - set(rejected.split())
            assert claim in others
    assert 150 < agreeing < 250


def test_the_tokenizer_knows_every_word() -> None:
    task, random = chat.make_task(), np.random.default_rng(0)
    unknown = task.tokenizer.special_id("unk_token")
    every = chat_language.facts(random)
    texts = [chat_language.document(every, random) for _ in range(300)]
    texts += ["".join(chat_language.instruction(every, random)) for _ in range(100)]
    texts += ["".join(chat_language.preference(every, random)) for _ in range(100)]
    assert [text for text in texts if unknown in task.tokenizer.encode(text).ids] == []


def test_the_exported_tokenizer_reads_prompts_as_the_models_were_asked(
    short: stagelens.Run, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    (folder,) = export(short, ("final",), tmp_path / "out")[0].values()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for each in short.evaluation_set("test").examples():
        prompt = each.input["prompt"]
        # As harnesses call it, which leave special tokens to the tokenizer.
        assert tokenizer(prompt)["input_ids"] == short.task.prompt_tokens(prompt)[0]
    # What the corpus was read with is the end of each text.
    text = chat_language.document(
        chat_language.facts(np.random.default_rng(0)), np.random.default_rng(0)
    )
    ids = short.task.tokenizer.encode(text).ids
    assert ids[-1] == tokenizer.eos_token_id and ids.count(tokenizer.eos_token_id) == 1


def test_another_seed_tells_other_facts() -> None:
    one, two = (chat_language.facts(np.random.default_rng(seed)) for seed in (0, 1))
    assert [fact.question for fact in one] == [fact.question for fact in two]
    assert one != two


@pytest.mark.extensive
def test_the_same_seed_gives_the_same_run(short: stagelens.Run, tmp_path: Path) -> None:
    assert chat.record(tmp_path / "again", plans=SHORT_CHAT).digest == short.digest


def test_a_pair_is_shown_as_it_was_written() -> None:
    task, random = chat.make_task(), np.random.default_rng(0)
    prompt, chosen, rejected = chat_language.preference(chat_language.facts(random), random)
    batch = PlainDPO.batch(task, [prompt], [chosen], [rejected])
    (shown,) = PlainDPO().examples(task, batch) or ()
    words = {name: text.split() for name, text in shown.input.items()}
    # Special tokens are not shown.
    special = {chat_language.USER, chat_language.ASSISTANT, chat_language.END}
    for name, text in (("prompt", prompt), ("completion", chosen), ("rejected", rejected)):
        assert words[name] == [word for word in text.split() if word not in special]
