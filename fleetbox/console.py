"""A member's serial console, two-way: what the guest prints from now on, and what is typed to it.

One user at a time: whoever has it open holds its lock file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import stat
import struct
import termios
import time
import tty
from pathlib import Path
from types import TracebackType
from typing import Self

from fleetbox.errors import ConflictError, MachineError
from fleetbox.wire import ConsoleFile

_BLOCK_BYTES = 1 << 16


class ConsoleConnection:
    """An open console; a context manager. Everything that blocks raises MachineError when the machine has ended."""

    def __init__(self, name: str, where: ConsoleFile) -> None:
        """Open it. Raises ConflictError when somebody else has it open, MachineError when it is gone."""
        self.name = name
        self.guest_device = where.guest_device
        self._open = contextlib.ExitStack()
        try:
            lock = self._take(os.open(where.lock, os.O_RDWR | os.O_CLOEXEC))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._terminal = stat.S_ISCHR(os.stat(where.path).st_mode)  # noqa: PTH116 - one call beside the opening
            self._fd = self._take(_open(Path(where.path), terminal=self._terminal))
        except BlockingIOError:
            self._open.close()
            raise ConflictError(
                f"the console of {name} is in use",
                why="somebody else has it open",
                hint=f"`fleetbox logs -f {name}` shows it meanwhile",
            ) from None
        except OSError as e:
            self._open.close()
            raise self._gone(e) from e

    def _take(self, fd: int) -> int:
        self._open.callback(os.close, fd)
        return fd

    def _gone(self, error: OSError | None = None) -> MachineError:
        return MachineError(f"the console of {self.name} is gone", why=(error and error.strerror) or "it has ended")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """Its descriptor, for select(2)."""
        return self._fd

    def read(self) -> bytes:
        """What the guest has printed since; waits for at least a byte. Empty when the machine has ended."""
        try:
            return os.read(self._fd, _BLOCK_BYTES)
        except OSError:
            return b""  # a socket is reset and a terminal hangs up (EIO) with the machine

    def read_until(self, text: bytes, timeout_s: float) -> bytes:
        """What the guest prints, up to and with `text`.

        Raises MachineError after `timeout_s` seconds, or when the machine ends; its details are what was read.
        """
        deadline, seen = time.monotonic() + timeout_s, b""
        while text not in seen:
            left_s = deadline - time.monotonic()
            ready, _, _ = select.select([self._fd], [], [], max(0.0, left_s))
            data = self.read() if ready else b""
            if not data:
                why = "it has ended" if ready else f"not in {timeout_s:g} s"
                details = seen.decode(errors="replace").splitlines()[-20:]
                raise MachineError(
                    f"{self.name} did not print {text.decode(errors='replace')!r}", why=why, details=details
                )
            seen += data
        return seen

    def write(self, data: bytes) -> None:
        """Type something; a line ends with a carriage return, as on a keyboard."""
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as e:
            raise self._gone(e) from e

    def resize(self, rows: int, columns: int) -> None:
        """Say how large the user's window is, where the line itself can carry that (a terminal)."""
        if self._terminal:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def close(self) -> None:
        """Leave the console to the next user."""
        self._open.close()


def _open(path: Path, *, terminal: bool) -> int:
    if terminal:
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            tty.setraw(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(path))
        return line.detach()
