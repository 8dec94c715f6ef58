"""The user's terminal while it is a member's console: raw, its window's size followed, restored on any end."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import subprocess
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from fleetbox.console import ConsoleConnection
from fleetbox_cli.escape import Action, EscapeFilter, help_text

_BLOCK_BYTES = 1 << 16
_ENDS = (signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT)

SizeCommand = Callable[[int, int], Sequence[str] | None]
"""The program that tells the guest a size (rows, columns); None when that cannot be done now."""


class Session:
    """Standard input and output connected to a console."""

    def __init__(self, console: ConsoleConnection, escape: bytes, size_command: SizeCommand) -> None:
        self._console = console
        self._escape = escape
        self._filter = EscapeFilter(escape)
        self._size = WindowSize(console, size_command)
        self._saved: list[object] | None = termios.tcgetattr(0) if sys.stdin.isatty() else None

    def run(self) -> bool:
        """Go on until the user leaves (False) or the machine ends (True).

        Without a terminal all that comes in is typed as it is, and its end is the user's leaving.
        """
        with self._raw(), self._size.followed():
            while True:
                console = self._console.fileno()
                ready, _, _ = select.select([0, console], [], [])
                if console in ready and not self._show(self._console.read()):
                    return True
                if 0 in ready and not self._type(os.read(0, _BLOCK_BYTES)):
                    return False

    def _show(self, data: bytes) -> bool:
        written = 0
        while written < len(data):
            written += os.write(1, data[written:])
        return bool(data)

    def _type(self, data: bytes) -> bool:
        if not data:
            return False
        if self._saved is None or not self._escape:
            self._console.write(data)
            return True
        for part in self._filter.feed(data):
            match part:
                case bytes():
                    self._console.write(part)
                case Action.LEAVE:
                    return False
                case Action.HELP:
                    self._show(f"\n{help_text(self._escape)}".replace("\n", "\r\n").encode())
                case Action.SUSPEND:
                    self._suspend()
        return True

    @contextlib.contextmanager
    def _raw(self) -> Iterator[None]:
        if self._saved is None:
            yield
            return
        before = {number: signal.signal(number, _interrupt) for number in _ENDS}
        try:
            tty.setraw(0)
            yield
        finally:
            self._restore()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _restore(self) -> None:
        with contextlib.suppress(termios.error):  # the terminal itself may be gone
            termios.tcsetattr(0, termios.TCSADRAIN, self._saved)  # type: ignore[arg-type]

    def _suspend(self) -> None:
        self._restore()
        os.kill(os.getpid(), signal.SIGTSTP)
        tty.setraw(0)  # somebody has brought us back
        self._size.tell()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class WindowSize:
    """Tells console and guest the window's size, at the beginning and whenever it changes.

    A serial line carries no size: the guest is told by a program that runs there, one at a time and the latest size
    last. Where it cannot be told (it boots, its SSH does not answer) the console is used all the same.
    """

    def __init__(self, console: ConsoleConnection, command: SizeCommand) -> None:
        self._console = console
        self._command = command
        self._sizes: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()  # a signal handler may put into it
        self._running: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        """Follow the window on standard output; without a terminal there is nothing to follow."""
        if not sys.stdout.isatty():
            yield
            return
        telling = threading.Thread(target=self._tell_guest, name="window size", daemon=True)
        telling.start()
        before = signal.signal(signal.SIGWINCH, lambda number, frame: self.tell())
        try:
            self.tell()
            yield
        finally:
            signal.signal(signal.SIGWINCH, before)
            self._ended.set()
            if self._running is not None:
                self._running.terminate()
            self._sizes.put((0, 0))
            telling.join()

    def tell(self) -> None:
        """Say how large the window is now."""
        with contextlib.suppress(OSError):
            columns, rows = os.get_terminal_size(1)
            self._console.resize(rows, columns)
            if rows and columns:
                self._sizes.put((rows, columns))

    def _tell_guest(self) -> None:
        while True:
            size = self._sizes.get()
            while not self._sizes.empty():
                size = self._sizes.get()
            if self._ended.is_set():
                return
            argv = self._command(*size)
            if argv is None:
                continue
            nothing = subprocess.DEVNULL
            with contextlib.suppress(OSError):
                self._running = subprocess.Popen(
                    argv, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True
                )
                if self._ended.is_set():
                    self._running.terminate()
                self._running.wait()
