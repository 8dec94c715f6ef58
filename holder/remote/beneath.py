"""Opening files of one folder and no other.

Whatever a name says, the kernel resolves it beneath the folder (openat2(2)): `..`, absolute names and symbolic links
are refused, also when somebody puts them there between a check and its use.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from fleetbox.errors import UsageError

_OPENAT2 = 437  # on every architecture
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_REFUSED = (errno.EXDEV, errno.ELOOP)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_libc = ctypes.CDLL(None, use_errno=True)


class Beneath:
    """A folder, held open."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def open(self, name: str, flags: int, mode: int = 0o600) -> int:
        """A descriptor of the file `name` in the folder.

        Raises UsageError for a name that leads out of it or through a symbolic link, OSError.
        """
        how = _OpenHow(
            flags | os.O_CLOEXEC,
            mode if flags & os.O_CREAT else 0,
            _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS,
        )
        fd = _libc.syscall(_OPENAT2, self._fd, os.fsencode(name), ctypes.byref(how), ctypes.sizeof(how))
        if fd >= 0:
            return int(fd)
        code = ctypes.get_errno()
        if code == errno.ENOSYS:  # before Linux 5.6, and where a sandbox knows no openat2
            return self._walk(name, flags, mode)
        if code in _REFUSED:
            raise _outside(name)
        raise OSError(code, os.strerror(code), name)

    def _walk(self, name: str, flags: int, mode: int) -> int:
        """The same, folder by folder."""
        *folders, last = name.split("/")
        if any(part in ("", ".", "..") for part in (*folders, last)):
            raise _outside(name)
        at = os.dup(self._fd)
        try:
            for part in folders:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
                os.close(at)
                at = inner
            return os.open(last, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=at)
        except OSError as e:
            if e.errno in (errno.ELOOP, errno.ENOTDIR):
                raise _outside(name) from e
            raise
        finally:
            os.close(at)

    def close(self) -> None:
        os.close(self._fd)


def _outside(name: str) -> UsageError:
    return UsageError(
        f"the file {name!r} is refused", why="it is not beneath the folder that the helper was started with"
    )
