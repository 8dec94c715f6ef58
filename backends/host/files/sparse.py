"""Copies and digests of disk files that leave holes alone."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fleetbox.backends.host.files.worker import Meter, Stop

_FICLONE = 0x40049409  # ioctl_ficlone(2)
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_libc = ctypes.CDLL(None, use_errno=True)
_BLOCK = 1 << 18
_ZEROS = bytes(_BLOCK)


def _blocks(file: BinaryIO, size: int) -> Iterator[tuple[int, memoryview | None, int]]:
    """The file as (offset, data, length); data is None for a hole, at most one block long."""
    buffer = bytearray(_BLOCK)
    fd = file.fileno()
    offset = 0
    while offset < size:
        data = _seek(fd, offset, os.SEEK_DATA, size)
        while offset < data:
            length = min(_BLOCK, data - offset)
            yield offset, None, length
            offset += length
        hole = _seek(fd, offset, os.SEEK_HOLE, size) if offset < size else size
        os.lseek(fd, offset, os.SEEK_SET)
        while offset < hole:
            length = file.readinto(memoryview(buffer)[: min(_BLOCK, hole - offset)])  # type: ignore[attr-defined]
            if not length:
                raise OSError(errno.EIO, "the file became shorter while it was read")
            yield offset, memoryview(buffer)[:length], length
            offset += length


def _seek(fd: int, offset: int, whence: int, size: int) -> int:
    try:
        return min(os.lseek(fd, offset, whence), size)
    except OSError as e:
        if e.errno == errno.ENXIO:  # no data after this offset
            return size
        if e.errno == errno.EINVAL:  # the file system knows no holes
            return offset if whence == os.SEEK_DATA else size
        raise


def digest_file(path: Path, stop: Stop, meter: Meter | None = None) -> str:
    """The sha256 of a file, in hexadecimal. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        for offset, data, length in _blocks(file, size):
            stop.check()
            digest.update(_ZEROS[:length] if data is None else data)
            if meter:
                meter.update(offset, size)
    return digest.hexdigest()


def copy_file(source: Path, target: Path, stop: Stop, meter: Meter | None = None) -> str:
    """Copy `source` to `target` (shared blocks where the file system can, holes kept and found) and return its sha256.

    Raises OSError; `target` is the caller's to remove then.
    """
    digest = hashlib.sha256()
    with source.open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
        size = os.fstat(reader.fileno()).st_size
        cloned = _clone(reader.fileno(), writer.fileno())
        for offset, data, length in _blocks(reader, size):
            stop.check()
            digest.update(_ZEROS[:length] if data is None else data)
            if not cloned and data is not None and bytes(data) != _ZEROS[:length]:
                _write(writer.fileno(), data, offset)
            if meter:
                meter.update(offset, size)
        if not cloned:
            os.ftruncate(writer.fileno(), size)
    return digest.hexdigest()


def dig_holes(path: Path, stop: Stop) -> None:
    """Make holes of a file's blocks of zeros; what is read from it stays the same. Raises OSError.

    Nothing happens where the file system has no holes.
    """
    with path.open("r+b", buffering=0) as file:
        for offset, data, length in _blocks(file, os.fstat(file.fileno()).st_size):
            stop.check()
            if data is not None and bytes(data) == _ZEROS[:length] and not _punch(file.fileno(), offset, length):
                return


def _punch(fd: int, offset: int, length: int) -> bool:
    """Whether the file system could (fallocate(2))."""
    how = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    if _libc.fallocate(fd, how, ctypes.c_int64(offset), ctypes.c_int64(length)) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EOPNOTSUPP, errno.ENOSYS):
        return False
    raise OSError(number, os.strerror(number))


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _clone(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False  # another file system, or one that cannot share blocks
    return True
