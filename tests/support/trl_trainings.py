"""Small trainings by the trainers of TRL, as users write them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Before TRL is imported: it looks for models, and reports its use, on the network.
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", HF_DATASETS_OFFLINE="1")

import datasets
import torch
import transformers

from tests.support.small_texts import TEXTS, gpt, gpt_tokenizer

warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl")
datasets.disable_progress_bars()

PROMPTS = ("the cat sat on", "two and two", "a dog", "the rain in the night")
GOOD = (" the mat", " make four", " barked", " was long and cold")
BAD = (" the dog", " make two", " sang and sang", " sing")

Rows = list[dict[str, Any]]

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|endoftext|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
)
"""A chat template that marks what an assistant says."""


def texts() -> Rows:
    """Whole texts."""
    return [{"text": text} for text in TEXTS] * 4


def completions() -> Rows:
    """Prompts and their completions."""
    return [{"prompt": p, "completion": c} for p, c in zip(PROMPTS, GOOD, strict=True)] * 4


def conversations() -> Rows:
    """Messages of a user and of an assistant."""
    return [
        {"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": c}]}
        for p, c in zip(PROMPTS, GOOD, strict=True)
    ] * 4


def pairs() -> Rows:
    """Prompts with a chosen and a rejected completion."""
    rows = zip(PROMPTS, GOOD, BAD, strict=True)
    return [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in rows] * 4


def judged() -> Rows:
    """Prompts with a completion that is good or bad."""
    good, bad = (
        [{"prompt": p, "completion": c, "label": label} for p, c in zip(PROMPTS, own, strict=True)]
        for own, label in ((GOOD, True), (BAD, False))
    )
    return [row for both in zip(good, bad, strict=True) for row in both] * 2


def prompts() -> Rows:
    """Prompts alone."""
    return [{"prompt": prompt} for prompt in PROMPTS] * 4


def length_reward(completions: Sequence[str], **_: Any) -> list[float]:
    """A reward that differs between most completions."""
    return [float(len(text) % 5) for text in completions]


@dataclass(frozen=True)
class Training:
    """A training by a trainer of TRL.

    Attributes:
        kind: ``sft``, ``dpo``, ``kto``, ``orpo``, ``reward`` or ``grpo``.
        rows: Makes the examples; None for those that are usual for the kind.
        settings: Of the trainer's arguments.
        options: Of the trainer; functions are called to make them.
        classifies: Whether the model is a reward model.
    """

    kind: str
    rows: Callable[[], Rows] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Callable[[], Any]] = field(default_factory=dict)

    @property
    def classifies(self) -> bool:
        return self.kind == "reward"

    def trainer(self, model: Any, tokenizer: Any, folder: Path, callbacks: Sequence[Any]) -> Any:
        """A trainer of a model, which it changes."""
        trainer, config = _classes(self.kind)
        own = {"max_completion_length": 6, "num_generations": 2} if self.kind == "grpo" else {}
        options = {"reward_funcs": length_reward} if self.kind == "grpo" else {}
        settings = {
            "per_device_train_batch_size": 4,
            "max_steps": 4,
            "learning_rate": 5e-3,
            "bf16": False,
            "gradient_checkpointing": False,
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_strategy": "no",
            **own,
            **self.settings,
        }
        return trainer(
            model=model,
            args=config(output_dir=str(folder), **settings),
            train_dataset=datasets.Dataset.from_list((self.rows or _USUAL[self.kind])()),
            processing_class=tokenizer,
            callbacks=list(callbacks),
            **options,
            **{name: make() for name, make in self.options.items()},
        )


_USUAL = {
    "sft": texts,
    "dpo": pairs,
    "kto": judged,
    "orpo": pairs,
    "reward": pairs,
    "grpo": prompts,
}


def _classes(kind: str) -> tuple[Any, Any]:
    import trl

    if kind == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOTrainer, ORPOConfig
    name = {"reward": "Reward"}.get(kind, kind.upper())
    return getattr(trl, f"{name}Trainer"), getattr(trl, f"{name}Config")


def save_base(folder: Path, classifies: bool = False, seed: int = 0) -> Path:
    """A small language model, or reward model, and its tokenizer, as checkpoint folder."""
    tokenizer = gpt_tokenizer(begin="<s>", pad_token="<|endoftext|>")
    model = gpt(tokenizer, seed, pad_token_id=tokenizer.pad_token_id)
    if classifies:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            head = transformers.GPT2ForSequenceClassification
            model.config.num_labels = 1
            classifier = head(model.config)
        classifier.transformer.load_state_dict(model.transformer.state_dict())
        model = classifier
    model.save_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path, classifies: bool = False) -> tuple[Any, Any]:
    """A model as a training begins with it, and its tokenizer."""
    kind = "SequenceClassification" if classifies else "CausalLM"
    auto = getattr(transformers, f"AutoModelFor{kind}")
    model = auto.from_pretrained(folder)
    return model, transformers.AutoTokenizer.from_pretrained(folder)
