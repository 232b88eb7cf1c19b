"""The hidden command of helper processes; see :mod:`stagelens.compute.helpers`."""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from typing import Any, TextIO

import typer

from stagelens.contracts import ProgressCallback

from .options import RunFolder, TaskOption, opened_with
from .terminal import EVERY, one_line

commands = typer.Typer()


@commands.command(hidden=True)
def help_out(run: RunFolder, task: TaskOption = None) -> None:
    """Do what another process asks for, line by line, until it ends or closes standard input."""
    # Ctrl-C reaches every process of a terminal; the one that asks ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    # What the task of a run prints must not be taken for an answer.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    asked: queue.Queue[dict[str, Any] | None] = queue.Queue()
    idle = threading.Event()
    threading.Thread(target=_listen, args=(asked, idle), daemon=True).start()
    from stagelens.effects.answers import do as have_answered  # loads torch
    from stagelens.effects.coalition_measuring import do
    from stagelens.trust.drawing_coalitions import do as draw_whole
    from stagelens.trust.one_draw import do as draw

    opened = opened_with(run, task)
    idle.set()
    _say(answers, {"ready": True})
    while (message := asked.get()) is not None:
        told: dict[str, Any] = {"over": True}
        try:
            drawn = draw_whole if "whole" in message else draw
            other = have_answered if "answers" in message else do
            (drawn if "draw" in message else other)(opened, message, _report(answers))
        except Exception as error:  # the other process does it again, and tells what is wrong
            told["error"] = one_line(error)
        idle.set()
        _say(answers, told)


def _listen(asked: queue.Queue[dict[str, Any] | None], idle: threading.Event) -> None:
    for line in sys.stdin:
        idle.clear()
        asked.put(json.loads(line))
    asked.put(None)
    if not idle.is_set():
        # Whoever asked is gone: unfinished files are removed as when the user ends a command.
        os.kill(os.getpid(), signal.SIGTERM)


def _report(answers: TextIO) -> ProgressCallback:
    last = 0.0

    def tell(done: float, text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            _say(answers, {"done": done, "text": text})

    return tell


def _say(answers: TextIO, told: dict[str, Any]) -> None:
    answers.write(json.dumps(told) + "\n")
