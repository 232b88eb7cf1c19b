"""What each word of a text pushes: the models are asked once more with each word left out.

With y(f, x) a behaviour of the final model f on the text x, and x_i the text without word i,

    push_i(final)  = y(f, x) - y(f, x_i)
    push_i(stage)  = e(x) - e(x_i),    e(x) = y(f, x) - y(g, x)

where g is the model without the stage. Signs are those of the behaviour and of a stage effect. That
is leave-one-out, so pushes of words that say the same do not add up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import inference_mode

from stagelens.contracts import Example, Task
from stagelens.effects.results import ResultFacts
from stagelens.measuring.loaded_weights import LoadedWeights
from stagelens.runs.run import Run

from .own_example import Bench

MOST_WORDS = 64
"""Words that are left out one by one; of longer texts none are."""

_WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
_OPERATIONS = 4e9
"""Most additions and multiplications for all words and models: a fraction of a second on a core."""


@dataclass(frozen=True)
class Word:
    """A word, or a mark between words, of a text.

    Attributes:
        start: Its first character.
        end: The one behind its last.
        unknown: Whether the task's tokenizer has no token for it, or for a part of it.
    """

    start: int
    end: int
    unknown: bool = False


@dataclass(frozen=True)
class Pushes:
    """What each of W words pushes, by behaviour.

    Attributes:
        final: Behaviour to (W,): on the final model's value.
        stages: Stage to behaviour to (W,): on the stage's effect. Refused stages have none.
    """

    final: Mapping[str, np.ndarray]
    stages: Mapping[str, Mapping[str, np.ndarray]]


def words_of(task: Task, text: str) -> list[Word]:
    """The words of a text, and which of them the task's tokenizer does not know.

    Raises:
        ValueError: The tokenizer fails on it; the message continues "this text ...".
    """
    tokenizer = getattr(task, "tokenizer", None) if task.assets else None
    unknown = [] if tokenizer is None else tokenizer.unknown_spans(text)
    return [
        Word(
            *found.span(),
            any(start < found.end() and found.start() < end for start, end in unknown),
        )
        for found in _WORD.finditer(text)
    ]


def why_unshaded(run: Run, words: Sequence[Word]) -> str:
    """Why words are not left out one by one while somebody types; empty where they are."""
    end = run.last.facts.end
    if end is None or not words:
        return "There are no words yet."
    if run.task.has_token_values:
        return "What each token gets is shown below."
    if len(words) > MOST_WORDS:
        return (
            f"No word is shaded: each would be left out in turn, and {len(words):,} are too many "
            f"(at most {MOST_WORDS})."
        )
    # Two operations per parameter and token, and parameters of four bytes.
    parameters = sum(file.bytes for file in end.shards) / 4
    tokens = (len(words) + 2) * (len(words) + 1)
    if 2 * parameters * tokens * (len(run.stages) + 1) > _OPERATIONS:
        return (
            "No word is shaded: each would be left out in turn, and models of "
            f"{parameters / 1e6:,.0f} million parameters would take too long for that."
        )
    return ""


def pushes(
    run: Run,
    example: Example,
    words: Sequence[Word],
    known: ResultFacts | None,
    loaded: LoadedWeights,
    others: Mapping[str, ResultFacts] | None = None,
) -> Pushes:
    """What each word pushes, see the module: all texts in one batch for each model.

    Args:
        run: The run.
        example: With ``text``, and with the label that behaviours are about.
        words: Of its text.
        known: As :func:`~stagelens.analyses.own_example.answer` takes it, like the two that follow.
        loaded: Keeps weights in memory.
        others: Tables of stages that ``known`` lacks.

    Raises:
        StageLensError: As :func:`~stagelens.analyses.own_example.answer` raises.
    """
    text = str(example.input["text"])
    texts = [text, *(without(text, word) for word in words)]
    examples = [replace(example, input={**example.input, "text": each}) for each in texts]
    with loaded.lock, inference_mode():
        bench = Bench.of(run, loaded, known, others)
        batch = run.task.collate(examples)
        final = bench.final(batch)
        found = {stage.name: bench.without(stage, batch, final) for stage in run.stages}
    return Pushes(
        {name: _pushed(values) for name, values in final.measured.values.items()},
        {
            stage: {name: _pushed(values) for name, values in one.without.effects.items()}
            for stage, one in found.items()
            if one.without is not None
        },
    )


def _pushed(values: np.ndarray) -> np.ndarray:
    """(W,) from the values of the whole text and of those without each word."""
    return np.asarray(values[0] - values[1:], dtype=float)


def without(text: str, word: Word) -> str:
    """A text without a word and one of the spaces around it."""
    before, after = text[: word.start], text[word.end :]
    if before[-1:].isspace() and (not after or after[0].isspace()):
        return before[:-1] + after
    return before + (after[1:] if not before and after[:1].isspace() else after)
