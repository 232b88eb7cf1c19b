"""The command that asks every model of a run one prompt."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from stagelens.contracts import StageLensError
from stagelens.runs.files import atomic_path
from stagelens.wording.trust_words import trust_word

from .estimator_options import ModelsWithoutOption, OnlyStagesOption, StopOption
from .given_data import DatasetOption
from .options import (
    BudgetOption,
    DeviceOption,
    ExactStagesOption,
    LeafOption,
    ObjectiveOption,
    OptimizerOption,
    ProgressFile,
    RunFolder,
    TaskOption,
    chosen_settings,
    opened_with,
    own_file,
)
from .terminal import Reporter, say

commands = typer.Typer()

_EVERY = 0.1
"""Seconds between two writings of what is being said."""


@dataclass
class Replies:
    """What models have said, kept as JSON in a file that others read while it grows.

    The file: ``{"models": [{"model": "final", "answer": "...", "done": true, "trust": "exact",
    "reason": "..."}, ...]}``; ``answer`` is null where a stage is refused.
    """

    path: Path | None
    models: list[dict[str, Any]] = field(default_factory=list)
    _written: float = float("-inf")

    def so_far(self, model: str, text: str) -> None:
        """What a model is saying."""
        if self.path is not None and time.monotonic() - self._written > _EVERY:
            self._write([*self.models, {"model": model, "answer": text, "done": False}])

    def add(self, said: dict[str, Any]) -> None:
        """What a model has said."""
        self.models.append({**said, "done": True})
        if self.path is not None:
            self._write(self.models)

    def _write(self, models: list[dict[str, Any]]) -> None:
        assert self.path is not None
        with atomic_path(self.path, sync_folder=False) as temporary:
            temporary.write_text(json.dumps({"models": models}), encoding="utf-8")
        self._written = time.monotonic()


@commands.command(
    epilog="Examples: stagelens ask runs/chat 'What is 2 + 2?'   "
    "stagelens ask runs/chat --prompt-file prompt.txt --max-tokens 200"
)
def ask(
    run: RunFolder,
    prompt: Annotated[str | None, typer.Argument(help="What the models go on from.")] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="A file with the prompt, as it is, in its place.")
    ] = None,
    max_tokens: Annotated[
        int,
        typer.Option(help="Most tokens of an answer; half of what a model takes is the limit."),
    ] = 64,
    temperature: Annotated[
        float, typer.Option(help="0 for the best token each time; else answers are sampled.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the samples; the same for all models.")] = 0,
    stop: StopOption = None,
    estimator: ModelsWithoutOption = None,
    budget: BudgetOption = None,
    exact_stages: ExactStagesOption = None,
    stage: OnlyStagesOption = None,
    leaf: LeafOption = None,
    task: TaskOption = None,
    objective: ObjectiveOption = None,
    dataset: DatasetOption = None,
    optimizer: OptimizerOption = None,
    device: DeviceOption = None,
    replies: Annotated[Path | None, typer.Option(hidden=True)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    progress: ProgressFile = None,
) -> None:
    """Ask the final model, and those without each stage, one prompt; nothing of it is kept."""
    text = _prompt(prompt, prompt_file)
    said = Replies(replies)
    with Reporter(own_file(progress)).running() as report:
        opened = opened_with(run, task)
        _ = opened.last
        from stagelens.effects import asking
        from stagelens.estimators.registry import replay_if_possible
        from stagelens.measuring.generation import Generation

        stops = tuple(each.replace("\\n", "\n") for each in stop or [])
        how = Generation(max_tokens, int(temperature > 0), seed, temperature or 1.0, stops)
        for reply in asking.ask(
            opened,
            text,
            how,
            estimator or replay_if_possible(opened),
            chosen_settings(budget, exact_stages),
            stage or None,
            said.so_far,
            report,
        ):
            word = "" if reply.trust is None else trust_word(reply.trust)
            own = {
                "model": reply.model,
                "answer": None if reply.answer is None else reply.answer.text,
                "ended": None if reply.answer is None else reply.answer.ended,
                "cut": None if reply.answer is None else reply.answer.cut,
                "trust": word,
                "reason": "" if reply.trust is None else reply.trust.reason,
            }
            said.add(own)
            if not as_json and replies is None:
                _print(own)
    if as_json:
        say(json.dumps(said.models, indent=1))


def _prompt(prompt: str | None, file: Path | None) -> str:
    if (prompt is None) == (file is None):
        raise StageLensError("give one prompt, in quotes, or --prompt-file with a file that has it")
    if file is None:
        return str(prompt)
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StageLensError(f"{file} cannot be read as UTF-8 text ({error})") from None


def _print(said: dict[str, Any]) -> None:
    trust = f" ({said['trust']})" if said["trust"] else ""
    text = f"no model: {said['reason']}" if said["answer"] is None else said["answer"]
    say(f"{said['model'].replace(':', ' ')}{trust}: {text}")
