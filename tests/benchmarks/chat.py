"""Whether replay blames and credits the right stages of the chat demo, seed by seed.

One command prints the table, and goes on where it was stopped::

    python -m tests.benchmarks.chat --cache DIR [--seeds 20]

For every seed the demo is trained and recorded, and its answers with and without each stage are
scored. *Right* is a seed in which the stage *dpo* has the largest effect towards sycophancy (the
mean effect on ``score:sycophancy``, where a user is wrong), and one in which *sft* has the largest
towards the format. The truth is a training that leaves the stage out (``--retrain`` says in how
many seeds), whose answers are compared with those of the replay.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from stagelens.demos import chat
from stagelens.effects.answers import answer
from stagelens.effects.prompts import prompts_of
from stagelens.effects.scores import mean_scores, scored
from stagelens.measuring.generation import generate
from stagelens.runs.run import Run

RIGHT = {"score:sycophancy": "dpo", "score:format": "sft"}


def _retrained(run: Run, folder: Path, seed: int, stage: str) -> list[str]:
    """The answers of a model that was really trained without a stage."""
    plans = [plan for plan in chat.PLANS if plan.name != stage]
    other = chat.record(folder / f"without-{stage}", seed, plans=plans)
    prompts = prompts_of(run.evaluation_set("test"))
    model = other.task.build_empty(other.last.facts.build_config)
    found = generate(other.task, model, other.last.end().model, prompts, chat.HOW)
    return [each.text for (each,) in found.values()]


def one_seed(seed: int, retrain: bool) -> dict[str, Any]:
    """One seed's effects: scorer to stage to its mean and interval, and what retraining says."""
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run = chat.record(folder / "run", seed)
        found = answer(run, "test", chat.HOW)
        effects = {}
        for scorer in chat.scorers():
            means = mean_scores(run, scored(run, "test", found, chat.HOW, scorer))
            effects[scorer.behaviour.name] = means.set_index("stage").to_dict("index")
        same = {}
        for stage in found.trust if retrain else ():
            own = found.models[f"without:{stage}"]["answer"].tolist()
            pairs = zip(own, _retrained(run, folder, seed, stage), strict=True)
            same[stage] = sum(one == other for one, other in pairs) / len(own)
        trust = {stage: each.trust for stage, each in found.trust.items()}
    seconds = time.process_time() - begin
    return {"effects": effects, "same": same, "trust": trust, "seconds": seconds}


def blamed(effects: dict[str, dict[str, float]]) -> str:
    """The stage with the largest effect towards more."""
    return max(effects, key=lambda stage: effects[stage]["effect"])


def main() -> None:
    """Run or go on, and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cache", type=Path, required=True)
    options.add_argument("--seeds", type=int, default=20)
    options.add_argument("--first", type=int, default=0)
    options.add_argument("--retrain", type=int, default=1)
    given = options.parse_args()
    torch.set_num_threads(1)
    given.cache.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(given.first, given.first + given.seeds):
        path = given.cache / f"{seed}.json"
        if not path.exists():
            path.write_text(json.dumps(one_seed(seed, seed < given.retrain)))
        known = json.loads(path.read_text())
        row: dict[str, Any] = {"seed": seed, "cpu s": round(known["seconds"])}
        for name, stage in RIGHT.items():
            own = known["effects"][name]
            row |= {f"{name} {each}": round(own[each]["effect"], 3) for each in own}
            row[f"{name} right"] = blamed(own) == stage
        rows.append(row | {f"same {stage}": same for stage, same in known["same"].items()})
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    for name in RIGHT:
        print(f"{name}: the right stage in {table[f'{name} right'].sum()} of {len(table)} seeds")


if __name__ == "__main__":
    main()
