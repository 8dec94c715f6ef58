"""The lock that a holder keeps for its life: one holder per cluster.

flock(2) on a file of the state folder. The kernel gives it up when its process ends, however it ends, so the lock of a
dead holder never blocks; only that the last threads of a killed process may take a moment to end, which `patience_s` is
for. The file goes when its cluster does; a lock is therefore good only while its file is still the one at the path.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

import msgspec

from fleetbox.records import HolderRecord

DYING_S = 2.0
"""How long a killed process may go on holding a lock."""

_POLL_S = 0.02


def lock_descriptor(fd: int, patience_s: float = 0.0) -> bool:
    """Lock an open file or folder exclusively; False when another process has it for `patience_s`. Blocks so long."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        else:
            return True


class HolderLock:
    """An exclusive lock on `path`; make it with `take`."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def take(cls, path: Path, patience_s: float = 0.0) -> HolderLock | None:
        """The lock, or None when another process has it for `patience_s`. Raises OSError when the file cannot be
        made.
        """
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if not lock_descriptor(fd, patience_s):
                os.close(fd)
                return None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), path.stat()):
                    os.ftruncate(fd, 0)
                    return cls(path, fd)
            os.close(fd)  # its file was removed between open and lock: lock the new one

    def announce(self, holder: HolderRecord) -> None:
        """Write who holds the lock and where it listens, for clients."""
        os.pwrite(self._fd, msgspec.json.encode(holder), 0)

    def release(self, *, remove: bool = False) -> None:
        """Give the lock up, and its file with it when the cluster is gone."""
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._fd)
