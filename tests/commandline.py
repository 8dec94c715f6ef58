"""Command lines without their start-up: one process imports `fleetbox` once and forks for each.

What runs is the real command line in a process of its own, with its own signals, exit code and output; only importing
is shared. `CommandLines` is the tests' side; the module run as a program is the other.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from fleetbox.backends.base import timeout_scale

LIMIT_S = 90.0
_MESSAGE_BYTES = 1 << 20


class Command:
    """A command line under way."""

    def __init__(self, lines: CommandLines, pid: int, output: Path) -> None:
        self._lines = lines
        self.pid = pid
        self._output = output

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; one that has ended gets none."""
        if not self.ended:
            self._lines.signal(self.pid, number)

    @property
    def ended(self) -> bool:
        return self._lines.ended(self.pid)

    def wait(self) -> int:
        """Its exit code, negative for the signal that ended it. Fails when it does not end."""
        deadline = time.monotonic() + LIMIT_S * timeout_scale()
        while not self.ended:
            if time.monotonic() > deadline:
                self._lines.signal(self.pid, signal.SIGKILL)
                raise AssertionError(f"the command does not end; so far it says:\n{self.output}")
            self._lines.listen(0.2)
        return self._lines.codes[self.pid]

    @property
    def output(self) -> str:
        """What it has written to standard output and standard error, in order."""
        return self._output.read_text(errors="replace")


class CommandLines:
    """Starts command lines in the network namespace where it was made. Close it at the end."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.commandline", str(theirs.fileno())],
                cwd=Path(__file__).parents[1],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
            )
        self._socket = ours
        self._folder = tempfile.TemporaryDirectory(prefix="fb-cli-")
        self._number = 0
        self.codes: dict[int, int] = {}
        self._pids: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._server.wait()
        self._folder.cleanup()

    def start(self, *words: str, env: Mapping[str, str] = {}) -> Command:
        """Start `fleetbox WORDS` in the present environment, changed by `env`."""
        self._number += 1
        number, output = self._number, Path(self._folder.name) / f"{self._number}"
        request = {"number": number, "words": words, "env": {**os.environ, **env}, "output": str(output)}
        self._socket.send(json.dumps(request).encode())
        while number not in self._pids:
            self.listen(LIMIT_S * timeout_scale())
        pid = self._pids[number]
        return Command(self, pid, output)

    def run(self, *words: str, env: Mapping[str, str] = {}) -> Command:
        """Run a command line to its end; it must succeed."""
        command = self.start(*words, env=env)
        code = command.wait()
        assert code == 0, f"{' '.join(words)}: {code}\n{command.output}"
        return command

    def signal(self, pid: int, number: signal.Signals) -> None:
        os.kill(pid, number)

    def ended(self, pid: int) -> bool:
        self.listen(0)
        return pid in self.codes

    def listen(self, limit_s: float) -> None:
        """Take in what the server says, for at most so long until it says something."""
        while select.select([self._socket], [], [], limit_s)[0]:
            data = self._socket.recv(_MESSAGE_BYTES)
            assert data, "the server of command lines has ended"
            said = json.loads(data)
            if "number" in said:
                self._pids[said["number"]] = said["pid"]
                self.codes.pop(said["pid"], None)  # a pid that is used again
            else:
                self.codes[said["pid"]] = said["code"]
            limit_s = 0


def _serve(control: socket.socket) -> None:
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(awake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([control, awake], [], [])
        if awake in ready:
            os.read(awake, 4096)
            _reap(control)
        if control in ready:
            try:
                data = control.recv(_MESSAGE_BYTES)
            except ConnectionResetError:  # the tests have ended with something unread
                return
            if not data:
                return
            request = json.loads(data)
            pid = os.fork()
            if pid == 0:
                control.close()
                _become(request)
            control.send(json.dumps({"number": request["number"], "pid": pid}).encode())


def _reap(control: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        control.send(json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}).encode())


def _become(request: dict[str, object]) -> None:
    """In the child: be `fleetbox` with these words."""
    from fleetbox import faultpoint
    from fleetbox_cli.__main__ import main

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    output = os.open(str(request["output"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(request["env"])  # type: ignore[arg-type]
    folder = os.environ.get(faultpoint.VARIABLE)
    faultpoint._folder = Path(folder) if folder else None
    sys.argv = ["fleetbox", *request["words"]]  # type: ignore[misc]
    code = 1
    try:
        main()
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    except KeyboardInterrupt:
        code = 130
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _load() -> None:
    """Import whatever command lines import."""
    import asyncio

    import rich.live
    import typer.main

    import fleetbox.control
    import fleetbox.job
    import fleetbox.launch
    from fleetbox_cli.app import app
    from fleetbox_cli.verb import LazyGroup

    assert asyncio
    assert rich.live
    assert typer.main
    assert fleetbox.control
    assert fleetbox.job
    assert fleetbox.launch
    for entry in app.entries.values():
        loaded = entry.load()
        if isinstance(loaded, LazyGroup):
            for inner in loaded.entries.values():
                inner.load()


if __name__ == "__main__":
    _load()
    _serve(socket.socket(fileno=int(sys.argv[1])))
