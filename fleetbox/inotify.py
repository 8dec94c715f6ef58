"""Waiting for a change in a folder or file, without looking again and again: inotify(7) by way of the C library."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
from pathlib import Path

# inotify.h
_CLOEXEC = os.O_CLOEXEC
_NONBLOCK = os.O_NONBLOCK
_MODIFY, _MOVED_TO, _CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x2, 0x80, 0x100, 0x200, 0x400, 0x800
_ONLYDIR = 0x01000000
_WANTED = _MODIFY | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF | _ONLYDIR


class FolderWatch:
    """Knows whether a file of a folder was changed, made or removed, or the folder itself. Close it.

    Raises OSError when there is no such folder, or the user watches too many already.
    """

    wanted = _WANTED

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = libc.inotify_init1(_CLOEXEC | _NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
        if libc.inotify_add_watch(self._fd, os.fsencode(folder), self.wanted) < 0:
            number = ctypes.get_errno()
            self.close()
            raise OSError(number, os.strerror(number), str(folder))

    def fileno(self) -> int:
        """Readable while there is a change that `wait` has not reported."""
        return self._fd

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for a change; False when there was none in `timeout_s`."""
        readable, _, _ = select.select([self._fd], [], [], timeout_s)
        with contextlib.suppress(BlockingIOError):
            while os.read(self._fd, 1 << 16):  # what changed is seen by looking
                pass
        return bool(readable)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class FileWatch(FolderWatch):
    """Knows whether one file was written to, whatever else happens in its folder. Close it. Raises OSError."""

    wanted = _MODIFY
