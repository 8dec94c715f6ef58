"""Watching a member until something holds: one deadline, the machine's end as an event, and what was seen last.

A strategy of `fleetbox.wait` is given a Watch. Whatever it blocks on, it blocks on through that: the end of the machine
(a pidfd) and of the time come in between at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fleetbox.errors import HostError, MachineError, TimedOut
from fleetbox.identity import open_pidfd

if TYPE_CHECKING:
    from fleetbox.member import Member

PAUSE_S = 0.1
LONGEST_PAUSE_S = 1.0
LINE_LIMIT_BYTES = 1 << 16
TAIL_LINES = 15
SSH_FAILED = 255
"""The exit code of OpenSSH itself, when it did not get through."""


class MachineEnded(MachineError):
    """The machine ended while it was watched."""


class Cancelled(Exception):
    """Another branch of the same wait has come to its end."""


class Watch:
    """One member under watch for at most `limit_s` seconds (as they are: nothing is scaled here).

    `what` says what is waited for, `seen` what was seen last; strategies set `seen` as they look. A context manager.
    """

    def __init__(self, member: Member, limit_s: float, what: str) -> None:
        self.member = member
        self.what = what
        self.seen = ""
        self._limit_s = limit_s
        self._deadline = time.monotonic() + limit_s
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        handle = self.member.require_running().handle
        machine = open_pidfd(handle.process) if handle else None
        if machine is None:
            raise self._ended()
        self._machine = machine
        self._open.callback(os.close, machine)
        self._cancelled = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._open.callback(os.close, self._cancelled)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @property
    def remaining_s(self) -> float:
        """What is left of the time, in seconds."""
        return max(0.0, self._deadline - time.monotonic())

    def cancel(self) -> None:
        """Make whatever waits on this watch, in whatever thread, raise Cancelled."""
        os.eventfd_write(self._cancelled, 1)

    def branch(self, what: str) -> Watch:
        """A watch of its own on the same member with the same deadline, to be used in another thread."""
        other = Watch(self.member, self._limit_s, what)
        other._deadline = self._deadline
        return other

    @contextlib.contextmanager
    def narrowed(self, limit_s: float, what: str) -> Iterator[None]:
        """For a part of the wait: another thing, and a limit of `limit_s` seconds where that is the earlier one."""
        before = (self.what, self._limit_s, self._deadline)
        self.what = what
        if time.monotonic() + limit_s < self._deadline:
            self._limit_s, self._deadline = limit_s, time.monotonic() + limit_s
        try:
            yield
        finally:
            self.what, self._limit_s, self._deadline = before

    def pauses(self) -> Iterator[None]:
        """For polling: yields at once, then after ever longer pauses. Raises as `until_readable` does."""
        pause_s = PAUSE_S
        while True:
            yield
            self.until_readable(None, pause_s)
            pause_s = min(LONGEST_PAUSE_S, pause_s * 1.5)

    def until_readable(self, descriptor: int | None, limit_s: float | None = None) -> bool:
        """Wait until the descriptor can be read (True), or for `limit_s` seconds (False).

        Raises TimedOut when the watch's time is over, MachineEnded when the machine is gone, Cancelled.
        """
        poll = select.poll()
        for one in (descriptor, self._machine, self._cancelled):
            if one is not None:
                poll.register(one, select.POLLIN)
        wait_s = self.remaining_s if limit_s is None else min(limit_s, self.remaining_s)
        ready = {fd for fd, _ in poll.poll(wait_s * 1000)}
        if self._cancelled in ready:
            raise Cancelled
        if descriptor in ready:
            return True
        if self._machine in ready:
            raise self._ended()
        if self.remaining_s <= 0:
            raise self.timed_out()
        return False

    def lines(self, command: str) -> Generator[str | int]:
        """Run a shell command on the member: its lines as they come (both streams), then its exit code.

        The command is ended when the caller goes no further. Raises as `until_readable` does, HostError without ssh.
        """
        argv = self.member.ssh_argv([command], tty=False)
        try:
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
            )
        except FileNotFoundError:
            raise HostError("there is no ssh on this host", hint="`fleetbox doctor --fix` installs it") from None
        assert child.stdout is not None
        rest = b""
        try:
            while self.until_readable(child.stdout.fileno()) and (data := os.read(child.stdout.fileno(), 1 << 16)):
                *whole, rest = (rest + data).split(b"\n")
                if len(rest) > LINE_LIMIT_BYTES:  # a guest may never end its line
                    whole, rest = [*whole, rest], b""
                yield from (line.decode(errors="replace") for line in whole)
            if rest:
                yield rest.decode(errors="replace")
            yield child.wait(timeout=self.remaining_s)
        except subprocess.TimeoutExpired:  # it has closed its output, and stays
            raise self.timed_out() from None
        finally:
            child.stdout.close()
            _end(child)

    def run(self, command: str) -> tuple[int, list[str]]:
        """Run a shell command on the member to its end: exit code and the last lines that it printed."""
        code, tail = SSH_FAILED, list[str]()
        for line in self.lines(command):
            if isinstance(line, int):
                code = line
            else:
                tail = [*tail[1 - TAIL_LINES :], line]
        return code, tail

    def timed_out(self) -> TimedOut:
        """The error that says so, with what was seen last."""
        return TimedOut(
            f"{self.member.ref}: waited {self._limit_s:g} s for {self.what}",
            why=f"seen last: {self.seen}" if self.seen else "nothing was seen",
            hint=f"give it more time, or see `fleetbox logs {self.member.ref}`",
            details=self._console(),
        )

    def failed(self, why: str, details: list[str] | None = None) -> MachineError:
        """The error for what can never come true any more."""
        return MachineError(f"{self.member.ref}: waited for {self.what} in vain", why=why, details=details or ())

    def _ended(self) -> MachineEnded:
        return MachineEnded(
            f"{self.member.ref} ended while it was waited for",
            why=f"for {self.what}" + (f"; seen last: {self.seen}" if self.seen else ""),
            hint="its serial log may say why",
            details=self._console(),
        )

    def _console(self) -> list[str]:
        """The end of the serial log."""
        try:
            with self.member.serial_log.open("rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - 4096))
                return log.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
        except OSError:
            return []


def _end(child: subprocess.Popen[bytes]) -> None:
    """End an ssh that may still run: gently, as it may be the master of others."""
    child.terminate()
    try:
        child.wait(timeout=2.0)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
