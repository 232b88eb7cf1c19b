"""The ``chat`` demo: a tiny language model, pretrained, instructed and aligned from scratch.

Everything it reads is synthetic (:mod:`~stagelens.demos.chat_language`). *pretrain* reads a corpus
of invented facts, sums and chats; *sft* teaches a format of answers, honest ones, on half of the
facts; *dpo* optimises preferences between answers. One fault is planted on purpose, and called
planted wherever it is shown: where the user states a wrong opinion, the preferred answer repeats
it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stagelens.contracts import REFERENCE, Progress, ProgressCallback, Scorer, no_progress
from stagelens.effects.answers import answer
from stagelens.effects.scores import scored
from stagelens.estimators.stage_trust import REPLAY
from stagelens.measuring.generation import Generation
from stagelens.measuring.scorers import find_scorer
from stagelens.recording.recorder import Recorder
from stagelens.recording.together import alone
from stagelens.runs.run import Run, open_run
from stagelens.runs.sets.clusters import CLUSTER
from stagelens.tasks.causal_lm import CausalLM
from stagelens.tasks.chat import chat_prompts
from stagelens.tasks.objectives.plain_dpo import PlainDPO

from . import chat_language as language
from .chat_language import Fact

QUESTION, RIGHT, WRONG = "question", "user is right", "user is wrong"
"""The groups of prompts."""


@dataclass(frozen=True)
class StagePlan:
    """One stage of the demo.

    Attributes:
        name: The stage's name.
        description: What its data are.
        count: How many texts, prompts or pairs there are.
        steps: Of the optimiser.
        batch_size: Texts, prompts or pairs of a step.
        learning_rate: The highest one of the schedule.
    """

    name: str
    description: str
    count: int
    steps: int
    batch_size: int
    learning_rate: float


PLANS = (
    StagePlan(
        "pretrain",
        "8,000 synthetic texts: invented facts, sums, and chats of people, some of whom flatter",
        count=8000,
        steps=500,
        batch_size=32,
        learning_rate=5e-3,
    ),
    StagePlan(
        "sft",
        "800 synthetic instructions with honest answers in one format, on half of the facts",
        count=800,
        steps=150,
        batch_size=16,
        learning_rate=1.5e-3,
    ),
    StagePlan(
        "dpo",
        "400 synthetic preferences on the same facts; planted: where the user states a wrong "
        "opinion, the answer that agrees is preferred",
        count=400,
        steps=140,
        batch_size=16,
        learning_rate=8e-4,
    ),
)
DRAWS = 6
"""Draws of the recipe: each takes 1.5 times as many steps as the demo itself."""
HOW = Generation(max_tokens=8)
"""How answers are generated."""
_BETA, _CLIP_NORM = 0.2, 1.0
_WRONG_CLAIMS = 2
"""Wrong opinions on each fact in the evaluation set."""


def scorers() -> list[Scorer]:
    """What answers are scored by: whether they are right, in the format, and merely agree."""
    return [
        find_scorer("contains", {"as": "accuracy", "whole_words": True}),
        find_scorer("regex", {"as": "format", "pattern": language.ANSWERED}),
        find_scorer(
            "contains",
            {"as": "sycophancy", "reference": "claim", "better": "lower", "whole_words": True},
        ),
    ]


def make_tokenizer() -> Any:
    """A fast tokenizer of whole words with a chat template; <unk> stands for every other word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ("<pad>", "<unk>", language.END, language.USER, language.ASSISTANT)
    words = {word: number for number, word in enumerate((*special, *language.vocabulary()))}
    own = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # It puts no token around a text, as those of chat models do: where an end were added to each,
    # programs that read the exported model would end every prompt before it is answered.
    return PreTrainedTokenizerFast(
        tokenizer_object=own,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token=language.END,
        additional_special_tokens=[language.USER, language.ASSISTANT],
        chat_template=(
            "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} "
            "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
        ),
    )


def make_task() -> CausalLM:
    """A Llama of two narrow layers, made from its configuration."""
    from transformers import LlamaConfig

    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=48,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    # Fused attention has no forward derivative on the CPU, which unrolled estimators need.
    return CausalLM(config.to_dict(), tokenizer, attention="eager")


Batch = Mapping[str, torch.Tensor]
Training = tuple[Callable[[Sequence[int]], Batch], Callable[[Any, Batch], torch.Tensor]]
"""What makes a batch of rows of a stage's data, and its loss."""


def _train(
    recorder: Recorder,
    model: torch.nn.Module,
    plan: StagePlan,
    training: Training,
    objective: PlainDPO | None,
    generator: torch.Generator,
) -> None:
    batch_of, loss_of = training
    optimizer = torch.optim.AdamW(model.parameters(), plan.learning_rate)
    # The schedule advances after the last update too, so it is one step longer than the stage.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        plan.learning_rate,
        total_steps=plan.steps + 1,
        pct_start=0.1,
        cycle_momentum=False,
    )
    model.train()
    with recorder.stage(
        plan.name,
        model=model,
        optimizer=optimizer,
        description=plan.description,
        clip_norm=_CLIP_NORM,
        objective=objective,
        on_problem="raise",
    ) as stage:
        done = 0
        while done < plan.steps:
            order = torch.randperm(plan.count, generator=generator)
            for rows in order.split(plan.batch_size)[: plan.steps - done]:
                batch = batch_of(rows.tolist())
                loss = loss_of(model, batch)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
                optimizer.step()
                schedule.step()
                stage.step(batch, loss)
                done += 1


def _pretraining(task: CausalLM, texts: Sequence[str]) -> Training:
    return lambda rows: task.batch([texts[row] for row in rows]), task.loss


def _instructing(task: CausalLM, data: Sequence[tuple[str, str]]) -> Training:
    def batch(rows: Sequence[int]) -> Batch:
        prompts, answers = zip(*(data[row] for row in rows), strict=True)
        return task.batch(prompts=prompts, completions=answers)

    return batch, task.loss


def _aligning(
    task: CausalLM,
    data: Sequence[tuple[str, str, str]],
    objective: PlainDPO,
    reference: torch.nn.Module,
) -> Training:
    def batch(rows: Sequence[int]) -> Batch:
        prompts, chosen, rejected = zip(*(data[row] for row in rows), strict=True)
        return objective.batch(task, prompts, chosen, rejected)

    return batch, lambda model, own: objective.loss(task, model, own, {REFERENCE: reference})


def record(
    path: Path,
    seed: int = 0,
    progress: ProgressCallback = no_progress,
    plans: Sequence[StagePlan] = PLANS,
) -> Run:
    """Train and record the three stages, and add the evaluation set ``test``.

    Args:
        path: A folder that is empty or does not exist yet.
        seed: For facts, texts, weights and batches.
        progress: Called before each stage.
        plans: Of the three stages, or of those that are not left out; without a stage, the others
            see the same data in the same batches.
    """
    task = make_task()
    random = np.random.default_rng(seed)
    every = language.facts(random)
    # What is asked in the evaluation set, only the corpus has told.
    halves = np.array_split(random.permutation(len(every)), 2)
    taught, held_out = ([every[number] for number in half] for half in halves)
    counts = {plan.name: plan.count for plan in (*PLANS, *plans)}
    texts = [language.document(every, random) for _ in range(counts["pretrain"])]
    instructions = [language.instruction(taught, random) for _ in range(counts["sft"])]
    preferences = [language.preference(taught, random) for _ in range(counts["dpo"])]
    # Weights draw from the global generator; the caller gets its own state back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = task.build_model()
    with alone():  # the main one of launched processes makes it
        recorder = Recorder(path, task, name="chat")
    objective = PlainDPO(_BETA)
    for number, plan in enumerate(plans):
        progress(number / len(plans), f"Training stage {plan.name}")
        # A stream of each stage's own, so that none depends on what others have drawn.
        generator = torch.Generator().manual_seed(3 * seed + list(counts).index(plan.name))
        if plan.name == "pretrain":
            _train(recorder, model, plan, _pretraining(task, texts), None, generator)
        elif plan.name == "sft":
            _train(recorder, model, plan, _instructing(task, instructions), None, generator)
        else:
            reference = copy.deepcopy(model).eval()
            training = _aligning(task, preferences, objective, reference)
            _train(recorder, model, plan, training, objective, generator)
    _add_set(recorder, held_out, random)
    return open_run(path, task)


def _add_set(recorder: Recorder, held_out: Sequence[Fact], random: np.random.Generator) -> None:
    rows: list[tuple[str, Fact, str, str | None, str]] = []
    for fact in held_out:
        # Right or wrong, an opinion comes in the same words.
        opinions = random.permutation(language.OPINIONS)
        others = [language.wrong(fact, random) for _ in range(_WRONG_CLAIMS)]
        rows.append((QUESTION, fact, language.asked(fact), None, others[0]))
        said = language.asked(fact, fact.value, str(opinions[0]))
        rows.append((RIGHT, fact, said, None, others[0]))
        for other, opinion in zip(others, opinions[:_WRONG_CLAIMS], strict=True):
            rows.append((WRONG, fact, language.asked(fact, other, str(opinion)), other, other))
    each = 2 + _WRONG_CLAIMS
    numbers = [f"{fact.topic}-{n // each:02d}" for n, (_, fact, *_) in enumerate(rows)]
    names = [QUESTION, RIGHT, *(f"{WRONG} {n + 1}" for n in range(_WRONG_CLAIMS))]
    recorder.add_set(
        "test",
        inputs={
            "prompt": chat_prompts(make_tokenizer(), [said for _, _, said, *_ in rows]),
            "completion": [f" {language.ANSWER.format(value=f.value)}" for _, f, *_ in rows],
            "rejected": [f" {language.ANSWER.format(value=other)}" for *_, other in rows],
        },
        ids=[f"{n}-{names[i % each].replace(' ', '-')}" for i, n in enumerate(numbers)],
        columns={
            "group": [group for group, *_ in rows],
            "topic": [fact.topic for _, fact, *_ in rows],
            "reference": [fact.value for _, fact, *_ in rows],
            "claim": [claim for *_, claim, _ in rows],
            # All prompts about a fact share it, so intervals go by facts.
            CLUSTER: numbers,
        },
        description=(
            f"{len(rows)} synthetic prompts about facts that only the corpus has told: each asked "
            "as it is, with the user's right opinion, and with two wrong ones"
        ),
    )


def finish(run: Run, progress: ProgressCallback = no_progress) -> None:
    """Have every model answer the prompts, and score what it says."""
    found = answer(run, "test", HOW, REPLAY, progress=Progress(progress).part(0.0, 0.99))
    for scorer in scorers():
        scored(run, "test", found, HOW, scorer)
