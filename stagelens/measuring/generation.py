"""What a language model answers: prompts continued by transformers' ``generate``, in batches."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stagelens.compute import devices
from stagelens.contracts import ProgressCallback, Task, TaskError, no_progress
from stagelens.runs.states import Weights
from stagelens.tasks.causal_lm import CausalLM
from stagelens.tasks.cutting import PIECE_TOKENS, spans_of_similar_length
from stagelens.tasks.seq2seq import Seq2Seq
from stagelens.tasks.transformer_task import filled

from .placed import Placed

NEAR_TIE = 1e-4
"""Difference of the two best logits below which rounding may decide between their tokens: rows of
other batches differ by about 1e-5 in float32."""


@dataclass(frozen=True)
class Generation:
    """How answers are generated; all of it is part of their digest.

    Attributes:
        max_tokens: Most tokens of an answer.
        samples: Answers per prompt that are sampled; 0 for one answer by the best token each time.
        seed: Of the samples.
        temperature: What logits are divided by before sampling.
        stop: Texts at which an answer ends; it does not include them.
    """

    max_tokens: int = 64
    samples: int = 0
    seed: int = 0
    temperature: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.samples < 0 or not self.temperature > 0:
            raise TaskError(
                f"max_tokens={self.max_tokens}, samples={self.samples}, "
                f"temperature={self.temperature:g}; give at least one token, no negative number of "
                "samples, and a temperature above 0"
            )
        if any(not text for text in self.stop):
            raise TaskError("an empty text to stop at would end every answer; leave it out")

    @property
    def facts(self) -> dict[str, Any]:
        """Plain JSON for digests; what plays no part is left out."""
        own = asdict(self) | {"stop": list(self.stop)}
        return own if self.samples else {n: own[n] for n in ("max_tokens", "samples", "stop")}

    @property
    def each(self) -> int:
        """Answers per prompt."""
        return max(self.samples, 1)


@dataclass(frozen=True)
class Answer:
    """What a model went on with after a prompt.

    Attributes:
        text: Without special tokens, and without what it stopped at.
        tokens: How many it generated, the last one included that ended it.
        ended: Whether it ended by itself or at a stop, not by ``max_tokens``.
        gap: The smallest difference of the two best logits on the way, noise of sampling included:
            below :data:`NEAR_TIE` another batch or machine may go on otherwise.
        cut: Whether the prompt was too long, and lost its beginning (an encoder's its end).
    """

    text: str
    tokens: int
    ended: bool
    gap: float
    cut: bool


def generate(
    task: Task,
    model: nn.Module,
    weights: Weights,
    prompts: Mapping[str, str],
    how: Generation,
    tokens: int = PIECE_TOKENS,
    progress: ProgressCallback = no_progress,
    told: Callable[[str], None] | None = None,
) -> dict[str, list[Answer]]:
    """One model's answers to prompts.

    A sample is the best of logits / temperature + Gumbel noise (Maddison et al., "A* Sampling",
    2014). The noise is drawn for each prompt and sample by itself, from the seed, the prompt's id
    and the sample's number: it does not depend on the batch, and is common to all models.

    Args:
        task: A language model's.
        model: A module of the architecture; its weights are overwritten.
        weights: The model's.
        prompts: By id.
        how: The settings.
        tokens: Most in a batch, with those to be generated.
        progress: Called after every batch.
        told: Called with the first answer of a batch so far, after every token.

    Returns:
        By id, ``how.each`` answers.

    Raises:
        TaskError: The task's models do not generate, the tokenizer fails on a prompt, or answers
            leave no room for one.
    """
    task = generating(task, model)
    placed = Placed(model)
    placed.load(weights)
    rows = []
    for name, prompt in prompts.items():
        try:
            ids, cut = task.prompt_tokens(prompt, how.max_tokens)
        except ValueError as error:
            raise TaskError(f"example {name!r} {error}") from None
        rows += [_Row(name, number, ids, cut) for number in range(how.each)]
    found: dict[tuple[str, int], Answer] = {}
    with torch.inference_mode(), devices.full_precision(placed.device):
        for batch in _batches(task, model, rows, how, tokens):
            answers = _generated(task, model, batch, how, placed.device, told)
            found |= {(row.name, row.sample): a for row, a in zip(batch, answers, strict=True)}
            progress(len(found) / len(rows), f"{len(found)} of {len(rows)} answers")
    return {name: [found[name, number] for number in range(how.each)] for name in prompts}


def generating(task: Task, model: nn.Module) -> CausalLM:
    """The task, if its models generate.

    Raises:
        TaskError: They do not.
    """
    if not isinstance(task, CausalLM) or not hasattr(model, "generate"):
        raise TaskError(
            f"models of the task {task.name} do not generate answers; causal-lm and seq2seq do, "
            "with models of transformers"
        )
    return task


@dataclass(frozen=True)
class _Row:
    name: str
    sample: int
    ids: list[int]
    cut: bool

    def noise(self, seed: int) -> torch.Generator:
        """Where this row's noise comes from."""
        key = f"{seed}\0{self.sample}\0{self.name}".encode()
        number = int.from_bytes(hashlib.sha256(key).digest()[:8], "little")
        return torch.Generator().manual_seed(number % (1 << 63))


def _batches(
    task: CausalLM, model: nn.Module, rows: Sequence[_Row], how: Generation, tokens: int
) -> Iterator[list[_Row]]:
    """Rows of similar length together; of one length where padding before a text shifts it."""
    lengths = [len(row.ids) for row in rows]

    def most(longest: int) -> int:
        return max(tokens // (longest + how.max_tokens), 1)

    if isinstance(task, Seq2Seq) or "position_ids" in inspect.signature(model.forward).parameters:
        for chosen in spans_of_similar_length(lengths, most):
            yield [rows[number] for number in chosen]
        return
    for length in sorted(set(lengths), reverse=True):
        alike = [row for row in rows if len(row.ids) == length]
        for start in range(0, len(alike), most(length)):
            yield alike[start : start + most(length)]


def _generated(
    task: CausalLM,
    model: Any,
    rows: Sequence[_Row],
    how: Generation,
    device: torch.device,
    told: Callable[[str], None] | None,
) -> list[Answer]:
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    pad = task.filler("padding")
    width = max(len(row.ids) for row in rows)
    ids = filled([[pad] * (width - len(row.ids)) + row.ids for row in rows], pad).to(device)
    mask = filled([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows], 0)
    ends = _ends(task)
    best = _Best(rows, how)
    stopped = _Stopped(task, how, 1 if isinstance(task, Seq2Seq) else width, told)
    given: dict[str, Any] = {"eos_token_id": ends} if ends else {}
    if isinstance(task, Seq2Seq):
        start = task.model.get("decoder_start_token_id")
        given["decoder_start_token_id"] = pad if start is None else start
        forced = ("forced_bos_token_id", "forced_eos_token_id")
        given |= {name: task.model[name] for name in forced if task.model.get(name) is not None}
    # A configuration of its own: a model's may say to sample, or to punish repetition.
    config = GenerationConfig(
        max_new_tokens=how.max_tokens, do_sample=False, num_beams=1, pad_token_id=pad, **given
    )
    out = model.generate(
        input_ids=ids,
        attention_mask=mask.to(device),
        generation_config=config,
        logits_processor=LogitsProcessorList([best]),
        stopping_criteria=StoppingCriteriaList([stopped]),
    )
    answers = []
    for number, own in enumerate(out[:, stopped.begin :].tolist()):
        end = next((at for at, token in enumerate(own) if token in ends), None)
        text = task.tokenizer.decode(own[:end], special=False)
        stops = [place for each in how.stop if (place := text.find(each)) >= 0]
        # What stops at a text goes on with padding until the whole batch has ended.
        count = len(own) if end is None else end + 1
        if stops:
            count = min(count, stopped.lengths[number])
            text = task.tokenizer.decode(own[:count], special=False)
            text = text[: min(stops)]
        ended = end is not None or bool(stops)
        gap = min(best.gaps[number][:count])
        answers.append(Answer(text, count, ended, gap, rows[number].cut))
    return answers


def _ends(task: CausalLM) -> list[int]:
    """Tokens that end an answer: the model's own, and the tokenizer's."""
    known = task.model.get("eos_token_id")
    own = list(known) if isinstance(known, list | tuple) else [known]
    own.append(task.tokenizer.special_id("eos_token"))
    return sorted({token for token in own if isinstance(token, int) and token >= 0})


class _Best:
    """A logits processor: adds each row's noise, and keeps how clear the best token is."""

    def __init__(self, rows: Sequence[_Row], how: Generation) -> None:
        self._how = how
        self._noise = [row.noise(how.seed) for row in rows] if how.samples else []
        self.gaps: list[list[float]] = [[] for _ in rows]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # On the CPU in float64, so that every device draws the same noise.
        if self._noise:
            drawn = torch.stack(
                [
                    torch.rand(scores.shape[1], generator=each, dtype=torch.float64)
                    for each in self._noise
                ]
            )
            gumbel = -(-drawn.clamp(min=1e-300).log()).log()
            scores = scores.double() / self._how.temperature + gumbel.to(scores.device)
        top = scores.double().topk(2, dim=1).values
        for own, gap in zip(self.gaps, (top[:, 0] - top[:, 1]).tolist(), strict=True):
            own.append(gap)
        return scores


class _Stopped:
    """A stopping criterion: ends a row where its text has one of the stops, and tells the first.

    Attributes:
        begin: How many tokens stand before what is generated.
        lengths: By row, tokens until its stop.
    """

    def __init__(
        self, task: CausalLM, how: Generation, begin: int, told: Callable[[str], None] | None
    ) -> None:
        self._task, self._stops, self.begin, self._told = task, how.stop, begin, told
        self.lengths: dict[int, int] = {}

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        if self._stops:
            for number, own in enumerate(input_ids[:, self.begin :].tolist()):
                if number not in self.lengths:
                    text = self._task.tokenizer.decode(own, special=False)
                    if any(stop in text for stop in self._stops):
                        self.lengths[number] = len(own)
        if self._told is not None:
            self._told(
                self._task.tokenizer.decode(input_ids[0, self.begin :].tolist(), special=False)
            )
        done = [number in self.lengths for number in range(len(input_ids))]
        return torch.tensor(done, device=input_ids.device)
