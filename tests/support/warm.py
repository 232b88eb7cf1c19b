"""Real child processes of ``python -m stagelens`` that begin where everything is imported already.

Importing takes ten times as long as most of what a command does on a small run. One process
imports once and forks a child for each command, with the arguments, the environment, the folder,
the pipes and the session that subprocess.Popen was asked for. No child reaches another machine.
``python -m tests.support.halted`` and ``spoiled``, the same with a difference, are forked likewise;
so are the processes of ``tests.support.launched`` and the workers of pytest-xdist. A worker has a
warm process of its own for its commands, forked before it began, and so has a server of the browser
tests for its jobs; the server itself, ``python -m tests.support.serving``, starts from nothing.

Linux only; STAGELENS_COLD=1 starts every process from nothing, as users do.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import runpy
import select
import socket
import subprocess
import sys
import threading
import traceback
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

PRELOADED = (
    "torch._dynamo",  # by the first optimiser that is made
    "accelerate",
    "torch.distributed.fsdp",
    "transformers.models.auto.modeling_auto",
    "stagelens.cli",
    "stagelens.trust.verification",
    "stagelens.recording.recorder",
)
PRELOADED_FOR_WORKERS = (
    "peft",
    "captum.attr",
    "datasets",
    "sklearn.cluster",
    "streamlit.testing.v1",
    "playwright.sync_api",
)
"""What collecting the tests imports besides; left out where a package is not installed."""

INHERITED = "STAGELENS_TESTS_WARM"
"""The environment variable that tells a server the connection to its warm process."""
FEW_DRAWS = "STAGELENS_TESTS_DRAWS"
"""How many draws the digits demo is made with unless told; more are only more of the same."""

_CHILD_SUBREAPER = 36  # of prctl(2)
_MESSAGE = 1 << 20

_SERVING = "tests.support.serving"
_OURS = ("halted", "spoiled", "launched", "serving")
_MODULES = ("stagelens", *(f"tests.support.{name}" for name in _OURS))
_WORKER = "import sys;exec(eval(sys.stdin.readline()))"
"""The program with which execnet begins a worker of pytest-xdist."""


class WarmPopen(subprocess.Popen[Any]):
    """``subprocess.Popen``, which forks ``python -m stagelens`` from the warm process."""

    def _execute_child(self, args: Any, *rest: Any) -> None:
        # In the order of subprocess.Popen._execute_child of Python 3.11.
        preexec, cwd, env, session = rest[1], rest[4], rest[5], rest[-2]
        pipes = rest[9:15]
        words = [str(word) for word in args] if isinstance(args, list | tuple) else []
        module = words[2] if words[:2] == [sys.executable, "-m"] and words[2:] else None
        worker = words == [sys.executable, "-u", "-c", _WORKER]
        ours = worker or module in _MODULES
        if sys.platform != "linux" or not ours or preexec is not None:
            super()._execute_child(args, *rest)  # type: ignore[misc]
            return
        reading, _, _, writing, _, complaining = pipes
        asked = (reading, writing, complaining)
        ends = [end if end != -1 else own for own, end in enumerate(asked)]
        wanted = {
            "module": module,
            "words": words[3:],
            "cwd": os.fspath(cwd or os.getcwd()),
            "env": dict(os.environ if env is None else env),
            "session": bool(session),
        }
        self.pid = _warm(for_workers=worker).fork(wanted, ends)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


class _Warm:
    """The process that imports, seen from the one that asks it to fork."""

    def __init__(
        self, connection: socket.socket, process: subprocess.Popen[Any] | None = None
    ) -> None:
        self._process = (
            process  # where it was started by this one; kept, so as not to be waited for
        )
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._socket = connection
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MESSAGE)

    @property
    def usable(self) -> bool:
        if self._owner != os.getpid():
            return False
        with self._lock:  # without a question there is nothing to read, except its end
            return not select.select([self._socket], [], [], 0)[0]

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


def _warm(for_workers: bool) -> _Warm:
    with _making:
        if not _made or not _made[-1].usable:
            _made.append(_started(for_workers))
        return _made[-1]


def _started(for_workers: bool) -> _Warm:
    """A new one, which imports."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    barred = ROOT / "tests" / "support" / "offline"
    paths = [str(barred), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    more = ["for-workers"] if for_workers else []
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.warm", str(theirs.fileno()), *more],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
    return _Warm(ours, process)


def serve(connection: socket.socket, for_workers: bool) -> None:
    """Import, and fork for whoever holds the other end, until that is closed."""
    forgo_fsync()
    for name in PRELOADED:
        importlib.import_module(name)
    for name in PRELOADED_FOR_WORKERS if for_workers else ():
        with contextlib.suppress(Exception):  # the tests that need it will say why
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what was imported is not looked through again, in any child
    _fork_on_demand(connection)


def _fork_on_demand(connection: socket.socket) -> None:
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


def _warm_of_its_own(ends: list[int]) -> socket.socket:
    """The connection to a child of this process, which forks for it; it lets go of ``ends``."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        theirs.close()
        return ours
    ours.close()
    nothing = os.open(os.devnull, os.O_RDWR)
    for end in range(3):
        os.dup2(nothing, end)
    for end in ends:
        os.close(end)
    _fork_on_demand(theirs)
    os._exit(0)


def _become(wanted: dict[str, Any], ends: list[int]) -> None:
    """Be ``python -m MODULE WORDS``, or a worker where there is no module, and end as it does."""
    code = 1
    try:
        if wanted["session"]:
            os.setsid()
        server, worker = wanted["module"] == _SERVING, wanted["module"] is None
        own = _warm_of_its_own(ends) if server or worker else None
        for number, end in enumerate(ends):
            os.dup2(end, number)
        for end in ends:
            os.close(end)
        os.chdir(wanted["cwd"])
        if server and own is not None:  # with nothing imported, as users start it
            own.set_inheritable(True)
            env = {**wanted["env"], INHERITED: str(own.fileno())}
            os.execve(sys.executable, [sys.executable, "-m", _SERVING, *wanted["words"]], env)
        os.environ.clear()
        os.environ.update(wanted["env"])
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))  # read at import
        random.seed()
        if own is not None:
            adopt(own)
            _work()
        else:
            if few := os.environ.get(FEW_DRAWS):
                importlib.import_module("stagelens.demos.digits").DRAWS = int(few)
            sys.argv = ["stagelens", *wanted["words"]]
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


def _work() -> None:
    """Be a worker of pytest-xdist."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"], sys.argv = main, ["-c"]
    try:
        exec(_WORKER, vars(main))
    finally:
        atexit._run_exitfuncs()


def adopt(connection: socket.socket) -> None:
    """Let this process ask its own warm process, which was forked before it began."""
    _made[:] = [_Warm(connection)]


def forgo_fsync() -> None:
    """Waiting for the disk, 35 times in a test, guards against a loss of power, which is no test's.

    What a killed process has written is there all the same.
    """
    os.fsync = lambda _descriptor: None


def install() -> None:
    """Let every ``python -m stagelens`` of this process be forked from a warm one."""
    if sys.platform == "linux" and os.environ.get("STAGELENS_COLD") != "1":
        subprocess.Popen = WarmPopen  # type: ignore[misc]


if __name__ == "__main__":
    from tests.support import warm  # whose state workers find there

    warm.serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:] == ["for-workers"])
