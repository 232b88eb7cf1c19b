"""Many people at once: sessions that browse, filter and drag, each checking its own numbers.

    python -m tests.benchmarks.load HOME [--sessions 10 25] [--minutes 0.5] [--set test]

HOME is a STAGELENS_HOME that holds the digits demo. Every session is a websocket client of its own
(see ``wire.py``) on a server of its own; what a page says is compared with the stored effect table,
read and filtered here. A wrong count, a wrong row, or the selection of somebody else ends the run
with status 1. Printed are the time until an answer and the server's memory.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from stagelens.effects.results import load_result
from stagelens.runs.run import open_run
from tests.benchmarks.ui import RUN, memory, serving
from tests.benchmarks.wire import Client

ESTIMATOR = "replay"
PAGE_SIZE = 12
_REMEMBERED = 6
"""Moves that are printed where something is wrong."""


@dataclass(frozen=True)
class Truth:
    """The loss of every example without every stage, as it is stored.

    Attributes:
        labels: By id.
        effects: (examples, stages); the index holds the ids.
    """

    labels: pd.Series
    effects: pd.DataFrame

    @classmethod
    def of(cls, path: Path, set_name: str) -> Truth:
        """Read a run folder."""
        found = load_result(open_run(path), set_name, "effects", ESTIMATOR)
        assert found is not None, f"set {set_name} has no effects by {ESTIMATOR}"
        rows = found.table[found.table["behaviour"] == "loss"]
        effects = rows.pivot(index="example_id", columns="stage", values="effect")
        return cls(rows.groupby("example_id")["label"].first(), effects)

    def ids(self, asked: Asked) -> list[str]:
        """The examples that are asked for, by id."""
        effects = self.effects if asked.stage is None else self.effects[[asked.stage]]
        if asked.side is not None:  # less loss is better
            effects = effects.where(effects < 0 if asked.side == "credit" else effects > 0)
        keep = pd.Series(True, effects.index)
        if asked.side is not None or asked.strength > 0:
            keep = (effects.abs() >= asked.strength).any(axis=1)
        if asked.label is not None:
            keep &= self.labels == asked.label
        return sorted(keep.index[keep])


@dataclass
class Asked:
    """What one session asks for at the moment."""

    label: str | None = None
    stage: str | None = None
    side: str | None = None
    strength: float = 0.0


@dataclass
class Session:
    """One person, whose moves come from a seed.

    Attributes:
        client: The page.
        truth: What it should say.
        seconds: Of every answer, by what was done.
        wrong: What the page said that is not so.
        moves: The last ones.
    """

    client: Client
    truth: Truth
    random: random.Random
    asked: Asked = field(default_factory=Asked)
    page: int = 1
    example: str | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    moves: list[str] = field(default_factory=list)

    def move(self) -> None:
        """Do something, and compare what the page says now."""
        name, act = self.random.choice(self._moves())
        took = act()
        found = self._differences()
        while found and name == "drag" and (later := self.client.late()):
            took, found = later, self._differences()  # the last of several values was still to come
        self.seconds.setdefault(name, []).append(took)
        self.moves.append(f"{name}: {self.asked}, page {self.page}")
        del self.moves[:-_REMEMBERED]
        for each in found:
            self.wrong.append(f"after {name}, {self.asked}: {each}")
            if len(self.wrong) == 1:  # what follows may come of it
                lines = "\n  ".join([time.strftime("%H:%M:%S"), *self.moves, each])
                print(f"WRONG {lines}", flush=True)

    def _moves(self) -> list[tuple[str, Callable[[], float]]]:
        if self.example is not None:  # it stands in the place of the table
            return [("next example", self._next)] * 3 + [("back", self._back)]
        moves = [("filter", self._filter)] * 3 + [("drag", self._drag)] * 2
        count = len(self.truth.ids(self.asked))
        if count > PAGE_SIZE:
            moves += [("page", self._turn)] * 2
        if count:
            moves += [("next example", self._next)] * 3
        return moves

    def _filter(self) -> float:
        name = self.random.choice(("label", "stage", "side"))
        options = {
            "label": ("Label", [None, *sorted(set(self.truth.labels))]),
            "stage": ("Stage", [None, *self.truth.effects.columns]),
            "side": ("Credit or blame", [None, "credit", "blame"]),
        }
        label, values = options[name]
        value = self.random.choice([v for v in values if v != getattr(self.asked, name)])
        setattr(self.asked, name, value)
        self.page = 1
        return self.client.put("selectbox", label, value)

    def _drag(self) -> float:
        slider, _ = next(self.client.elements("slider"))
        steps = round((slider.max - slider.min) / slider.step)
        path = [slider.step * self.random.randint(0, steps // 4) for _ in range(4)]
        if path[-1] == self.asked.strength:  # nothing would be asked
            path[-1] += slider.step
        self.asked.strength = path[-1]
        self.page = 1
        return self.client.put("slider", slider.label, *path)

    def _turn(self) -> float:
        pages = -(-len(self.truth.ids(self.asked)) // PAGE_SIZE)
        self.page = self.random.choice([n for n in range(1, pages + 1) if n != self.page])
        return self.client.put("pagination", "", self.page)

    def _next(self) -> float:
        ids = self.truth.ids(self.asked)
        if self.example is None:
            self.example = ids[0]
            return self.client.press("Open the first")
        place = ids.index(self.example) + 1
        if place == len(ids):
            return self._back()
        self.example = ids[place]
        return self.client.press("Next")

    def _back(self) -> float:
        assert self.example is not None
        self.page = self.truth.ids(self.asked).index(self.example) // PAGE_SIZE + 1
        self.example = None
        return self.client.press("Back to the table")

    def _differences(self) -> list[str]:
        ids, words = self.truth.ids(self.asked), self.client.words
        found = [f"the page shows {problem}" for problem in self.client.problems]
        if self.example is not None:
            if self.example not in words.splitlines():
                found.append(f"example {self.example} is not the one that is open")
            place = f"{ids.index(self.example) + 1:,} of {len(ids):,} image"
            return found if place in words else [*found, f"it does not say {place}s"]
        said = re.search(r"^([\d,]+)(?: of [\d,]+)? images$", words, re.MULTILINE)
        if said is None or int(said[1].replace(",", "")) != len(ids):
            found.append(f"it counts {said and said[1]}, there are {len(ids)}")
        if ids:
            shown = self.client.table["id"].tolist()
            start = (self.page - 1) * PAGE_SIZE
            if shown != ids[start : start + PAGE_SIZE]:
                found.append(f"page {self.page} shows {shown[:2]}..., not {ids[start : start + 2]}")
        return found


def used(url: str, truth: Truth, set_name: str, seed: int, until: float, fewest: int) -> Session:
    """One session from its first visit until its time is over, and at least so many moves."""
    query = f"run={RUN}&set={set_name}&estimator={ESTIMATOR}&measure=loss&sort=id"
    with closing(Client(url, "Examples", query)) as client:
        session = Session(client, truth, random.Random(seed))
        moves = 0
        while moves < fewest or time.monotonic() < until:
            session.move()
            moves += 1
    return session


def together(
    url: str, truth: Truth, set_name: str, count: int, seconds: float, fewest: int = 3
) -> list[Session]:
    """So many sessions at once, each with moves of its own."""
    until = time.monotonic() + seconds
    with ThreadPoolExecutor(count) as people:
        futures = [
            people.submit(used, url, truth, set_name, seed, until, fewest) for seed in range(count)
        ]
        return [future.result() for future in futures]


def main() -> int:
    """Print what the sessions saw, for each number of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--sessions", type=int, nargs="+", default=[10, 25])
    parser.add_argument("--minutes", type=float, default=0.5)
    parser.add_argument("--set", dest="set_name", default="test")
    options = parser.parse_args()
    truth = Truth.of(options.home / RUN, options.set_name)
    wrong: list[str] = []
    for count in options.sessions:
        print(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores", flush=True)
        with serving(options.home) as server:
            together(server.url, truth, options.set_name, 1, 0.0, 1)
            base = memory(server)
            found = together(server.url, truth, options.set_name, count, 60 * options.minutes)
            after, most = memory(server), memory(server, "VmHWM")
        seconds: dict[str, list[float]] = {}
        for session in found:
            wrong += session.wrong
            for name, each in session.seconds.items():
                seconds.setdefault(name, []).extend(each)
        for name, each in sorted(seconds.items()):
            middle, late = 1000 * np.median(each), 1000 * np.percentile(each, 95)
            said = f"median {middle:5.0f} ms, 95 % {late:5.0f} ms (n={len(each)})"
            print(f"{count} sessions, {name:12} {said}")
        answers, errors = sum(map(len, seconds.values())), sum(len(s.wrong) for s in found)
        print(f"{count} sessions: {answers:,} answers, {errors} wrong")
        print(f"server {after:.0f} MB, at most {most:.0f} MB; {base:.0f} MB with one", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
