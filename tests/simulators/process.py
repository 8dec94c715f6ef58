"""The two processes of a simulated hypervisor.

The first is what the real program would be: the one that was launched becomes QEMU (exec), so that its pid, its end and
its exit code are the machine's. Beside it, its API is served by a second one, which has no file, lock or interface of
the machine, and whose environment and arguments name no test, so that the moment which it lives on is nobody's.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tests.simulators.faults import VARIABLE

ROOT = Path(__file__).parents[2]
_PR_SET_PDEATHSIG = 1
_SERVE = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.simulators.process import api_process
api_process(sys.argv[2], sys.argv[3], [int(fd) for fd in sys.argv[4:]])
"""


class Machine:
    """The first process, as the second sees it."""

    def __init__(self, link: socket.socket, qmp_fd: int, console_fd: int) -> None:
        self.pid = os.getppid()
        self.qmp = qmp_fd
        self.console = console_fd
        self._link = link

    def become(self, argv: list[str]) -> None:
        """Let it become this program."""
        self._link.sendall(json.dumps({"argv": argv}).encode() + b"\n")

    def end(self, code: int, words: str = "") -> NoReturn:
        """End it before it has become QEMU, or after."""
        try:
            self._link.sendall(json.dumps({"code": code, "words": words}).encode() + b"\n")
            self._link.recv(1)  # it ends, and we with it
        except OSError:
            pass
        os.kill(self.pid, signal.SIGABRT)
        time.sleep(3600)  # its end is ours: no client sees the API's end before
        os._exit(1)


def launch(module: str, settings: dict[str, Any], program: Callable[[], str]) -> NoReturn:
    """Run the API of `module` (its `serve(settings, faults, machine, qmp, console)`) beside us; become what it says."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    ours, theirs = socket.socketpair()
    qmp_ours, qmp_theirs = socket.socketpair()
    console_ours, console_theirs = socket.socketpair()
    fds = [s.fileno() for s in (theirs, qmp_theirs, console_theirs)]
    remote = [str(qmp_ours.fileno()), str(console_ours.fileno())]
    parent = os.getpid()

    def with_us() -> None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(ROOT), module, ":".join(remote), *map(str, fds)],
        stdin=subprocess.DEVNULL,
        pass_fds=fds,
        env={"PATH": os.environ.get("PATH", os.defpath)},
        preexec_fn=with_us,
    )
    for s in (theirs, qmp_theirs, console_theirs):
        s.close()
    ours.sendall(json.dumps([settings, os.environ.get(VARIABLE, "")]).encode() + b"\n")
    line = ours.makefile("rb").readline()
    order = json.loads(line) if line else {"code": 1, "words": "the simulator's API has failed"}
    if "argv" in order:
        for s in (qmp_ours, console_ours):
            s.set_inheritable(True)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.execv(program(), order["argv"])
    if order["words"]:
        print(order["words"], file=sys.stderr, flush=True)
    os._exit(order["code"])


def api_process(module: str, remote: str, fds: list[int]) -> None:
    """The second process."""
    import importlib

    link, qmp, console = (socket.socket(fileno=fd) for fd in fds)
    settings, faults = json.loads(link.makefile("rb").readline())
    qmp_fd, console_fd = (int(fd) for fd in remote.split(":"))
    machine = Machine(link, qmp_fd, console_fd)
    importlib.import_module(module).serve(settings, faults, machine, qmp, console)
