"""Real child processes of ``python -m stagelens`` that begin where everything is imported already.

Importing takes ten times as long as most of what a command does on a small run. One process
imports once and forks a child for each command, with the arguments, the environment, the folder,
the pipes and the session that subprocess.Popen was asked for. No child reaches another machine.
``python -m tests.support.halted``, the same with a halt, is forked likewise.

Linux only; STAGELENS_COLD=1 starts every command from nothing, as users do.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import runpy
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

PRELOADED = (
    "torch._dynamo",  # by the first optimiser that is made
    "accelerate",
    "transformers.models.auto.modeling_auto",
    "stagelens.cli",
    "stagelens.trust.verification",
    "stagelens.recording.recorder",
)

_CHILD_SUBREAPER = 36  # of prctl(2)
_MESSAGE = 1 << 20


_MODULES = ("stagelens", "tests.support.halted")


class WarmPopen(subprocess.Popen[Any]):
    """``subprocess.Popen``, which forks ``python -m stagelens`` from the warm process."""

    def _execute_child(self, args: Any, *rest: Any) -> None:
        # In the order of subprocess.Popen._execute_child of Python 3.11.
        preexec, cwd, env, session = rest[1], rest[4], rest[5], rest[-2]
        pipes = rest[9:15]
        first = list(args)[:3] if args else []
        ours = first[:2] == [sys.executable, "-m"] and first[2:] and first[2] in _MODULES
        if sys.platform != "linux" or not ours or preexec is not None:
            super()._execute_child(args, *rest)  # type: ignore[misc]
            return
        reading, _, _, writing, _, complaining = pipes
        asked = (reading, writing, complaining)
        ends = [end if end != -1 else own for own, end in enumerate(asked)]
        wanted = {
            "module": first[2],
            "words": [str(word) for word in args[3:]],
            "cwd": os.fspath(cwd or os.getcwd()),
            "env": dict(os.environ if env is None else env),
            "session": bool(session),
        }
        self.pid = _warm().fork(wanted, ends)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


class _Warm:
    """The process that imports, seen from the one that asks it to fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        barred = ROOT / "tests" / "support" / "offline"
        paths = [str(barred), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.warm", str(theirs.fileno())],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MESSAGE)

    @property
    def usable(self) -> bool:
        return self._owner == os.getpid() and self._process.poll() is None

    def fork(self, wanted: dict[str, Any], ends: list[int]) -> int:
        """Start a command; gives its process id. It is a child of this process."""
        with self._lock:
            # The fork's own parent ends at once, and this process takes the orphan: so waiting for
            # it, its exit status and its processor time are what they are for any child. Only
            # meanwhile, for other orphans are not to gather here as zombies.
            _take_orphans(True)
            try:
                socket.send_fds(self._socket, [json.dumps(wanted).encode()], ends)
                answer = self._socket.recv(64)
            finally:
                _take_orphans(False)
        if not answer:
            raise OSError("the process that forks ended")
        return int(answer)


def _take_orphans(really: bool) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_CHILD_SUBREAPER, int(really), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


_made: list[_Warm] = []
_making = threading.Lock()


def _warm() -> _Warm:
    with _making:
        if not _made or not _made[-1].usable:
            _made.append(_Warm())
        return _made[-1]


def _serve(connection: socket.socket) -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what was imported is not looked through again, in any child
    while True:
        message, ends, _, _ = socket.recv_fds(connection, _MESSAGE, 3)
        if not message:
            return
        reading, writing = os.pipe()
        inner = os.fork()
        if inner:  # the warm process; it answers when the child is an orphan, not before
            os.waitpid(inner, 0)
            connection.send(os.read(reading, 64))
            for end in (reading, writing, *ends):
                os.close(end)
            continue
        pid = os.fork()
        if pid:  # its child, which only leaves the next one behind
            os.write(writing, str(pid).encode())
            os._exit(0)
        for end in (reading, writing, connection.detach()):
            os.close(end)
        _become(json.loads(message), ends)


def _become(wanted: dict[str, Any], ends: list[int]) -> None:
    """Be ``python -m stagelens WORDS``, and end as it does."""
    code = 1
    try:
        if wanted["session"]:
            os.setsid()
        for number, end in enumerate(ends):
            os.dup2(end, number)
        for end in ends:
            os.close(end)
        os.chdir(wanted["cwd"])
        os.environ.clear()
        os.environ.update(wanted["env"])
        sys.stdout = open(1, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))  # read at import
        random.seed()
        sys.argv = ["stagelens", *wanted["words"]]
        try:
            runpy.run_module(wanted["module"], run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def install() -> None:
    """Let every ``python -m stagelens`` of this process be forked from a warm one."""
    if sys.platform == "linux" and os.environ.get("STAGELENS_COLD") != "1":
        subprocess.Popen = WarmPopen  # type: ignore[misc]


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
