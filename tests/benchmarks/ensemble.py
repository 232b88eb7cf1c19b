"""All counterfactuals of small networks, one by one and as one ensemble, on the device at hand.

``python tests/benchmarks/ensemble.py [NETWORK ...] [--device cuda] [--stages N] [--steps N]``

For every network it prints what replaying the models without each stage takes one by one, without
the check that replay repeats the recording, and what it takes as an ensemble, in which the recorded
network is one more. Then how far the ensemble's recorded network is from its recorded end, and how
far its other networks are from those of replay one by one, each over what the stage changed.

Both take turns, so that other load falls on both alike; the ratio is a median over the turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stagelens.replaying.ensemble import replay_together, stackable
from stagelens.replaying.replay import replay_without
from stagelens.replaying.reproduction import distance
from stagelens.runs.batches import to_device
from stagelens.runs.states import Weights, difference_of
from tests.benchmarks.replay_speed import NETWORKS, Measured, in_turn


def apart(a: Weights, b: Weights) -> float:
    """Norm of the difference of two models."""
    names = [name for name, tensor in a.items() if tensor.is_floating_point()]
    return float(sum(difference_of(a[name], b[name]).square().sum() for name in names)) ** 0.5


def compare(name: str, device: torch.device, stages: int, steps: int, times: int) -> str:
    """One line about a network."""
    torch.manual_seed(0)
    work = NETWORKS[name]()
    batch = work.batch
    work = dataclasses.replace(
        work, model=work.model.to(device), batch=lambda rows: to_device(batch(rows), device)
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Measured(work, stages, steps, Path(folder) / "run").run
        left_out, later = run.stages[:-1], run.stages[1:]
        if unfit := [stage.name for stage in later if not stackable(run.task, stage)]:
            return f"cannot be stacked in {', '.join(unfit)}"
        alone, together = in_turn(
            times,
            lambda: [replay_without(run, stage) for stage in left_out],
            lambda: replay_together(run, left_out),
        )
        found = replay_together(run, left_out)
        last = run.last
        change = apart(last.end().model, last.start().model)
        largest = max(
            apart(found.without[stage.name], replay_without(run, stage).state.model)
            for stage in left_out
        )
        seconds = [statistics.median(wall for wall, _ in one) for one in (alone, together)]
        ratio = statistics.median(t[0] / a[0] for a, t in zip(alone, together, strict=True))
        return (
            f"one by one {seconds[0]:.2f} s, as one of {stages} networks {seconds[1]:.2f} s, "
            f"{ratio:.2f} of it; deviation {distance(found.factual, last)[1]:.1e}, from one by one "
            f"{largest / change:.1e}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--stages", type=int, default=5, help="of every run")
    parser.add_argument("--steps", type=int, default=200, help="of every stage")
    parser.add_argument("--times", type=int, default=3, help="turns")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    for name in options.networks:
        said = compare(name, device, options.stages, options.steps, options.times)
        print(f"{name} on {device}: {said}", flush=True)


if __name__ == "__main__":
    main()
