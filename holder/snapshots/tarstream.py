"""The tar under an archive: regular files only, front to back, and nothing but those that are expected."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import tarfile
from collections.abc import Iterator
from pathlib import Path

from fleetbox.backends.host.disk import disk_errors
from fleetbox.backends.host.files.worker import Meter, Stop
from fleetbox.errors import SnapshotError
from fleetbox.holder.snapshots.header import Entry, refused
from fleetbox.holder.snapshots.store import RECORD

_CHUNK = 1 << 18
_POLL_MS = 200


def read_extents(fd: int, where: tuple[tuple[int, int], ...]) -> Iterator[bytes]:
    for offset, length in where:
        end = offset + length
        while offset < end:
            data = os.pread(fd, min(_CHUNK, end - offset), offset)
            if not data:
                raise OSError(5, "the file became shorter while it was read")
            yield data
            offset += len(data)


class Writer:
    """A tar stream of regular files."""

    def __init__(self, fd: int, stop: Stop, meter: Meter | None) -> None:
        self._fd, self._stop, self._meter = fd, stop, meter
        self._written = 0
        self._moved = 0
        self.total = 0

    def moved(self, count: int) -> None:
        self._stop.check()
        self._moved += count
        if self._meter:
            self._meter.update(min(self._moved, self.total), self.total)

    def member(self, name: str, data: bytes) -> None:
        self._begin(name, len(data))
        self._write(data)
        self._pad(tarfile.BLOCKSIZE)

    def file(self, entry: Entry, path: Path) -> None:
        self._begin(entry.path, entry.stored_bytes)
        with path.open("rb", buffering=0) as file:
            for data in read_extents(file.fileno(), entry.extents):
                self._write(data)
                self.moved(len(data))
        self._pad(tarfile.BLOCKSIZE)

    def end(self) -> None:
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._pad(tarfile.RECORDSIZE)

    def _begin(self, name: str, size: int) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o600
        self._write(info.tobuf(tarfile.GNU_FORMAT))

    def _pad(self, unit: int) -> None:
        self._write(bytes(-self._written % unit))

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        self._written += len(data)
        while view:
            view = view[os.write(self._fd, view) :]


class Reader:
    """A tar stream of exactly the regular files that are expected; anything else is refused."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._read = 0
        self._moved = 0
        self.stop = Stop()
        self.meter: tuple[Meter, int] | None = None

    def small(self, name: str, limit: int) -> bytes:
        size = self._begin(name)
        if size > limit:
            raise refused(f"{name} is too long")
        data = b"".join(self._chunks(size))
        self._pad(tarfile.BLOCKSIZE)
        return data

    def file(self, entry: Entry, target: Path | None) -> None:
        """Read the file into `target`, which must not exist, or nowhere."""
        size = self._begin(entry.path)
        if size != entry.stored_bytes:
            raise refused(f"{entry.path} has {size} bytes, its header says {entry.stored_bytes}")
        digest = hashlib.sha256()
        with disk_errors("the snapshot cannot be written"), contextlib.ExitStack() as stack:
            fd = -1
            if target is not None:
                fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
                stack.callback(os.close, fd)
                os.ftruncate(fd, entry.size_bytes)
            for offset, length in entry.extents:
                for data in self._chunks(length):
                    digest.update(data)
                    offset = _write_at(fd, data, offset) if fd >= 0 else offset
        self._pad(tarfile.BLOCKSIZE)
        if digest.hexdigest() != entry.sha256:
            raise refused(f"{entry.path} is damaged")

    def end(self) -> None:
        """The end of the archive, and of the stream."""
        if any(self._exactly(2 * tarfile.BLOCKSIZE)):
            raise refused("it holds more than its header lists")
        self._pad(tarfile.RECORDSIZE)
        if self._some(1):
            raise refused("something follows after its end")

    def _begin(self, name: str) -> int:
        """Read a member's header; it must be that of the regular file `name`. Returns the member's size."""
        block = self._exactly(tarfile.BLOCKSIZE)
        if not any(block):
            raise refused(f"it ends before {name}")
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.TarError, ValueError, OverflowError) as e:
            what = (
                "it is no tar file" if name == RECORD and self._read == len(block) else f"it is damaged before {name}"
            )
            raise refused(f"{what} ({e})" if str(e) else what) from e
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            kinds = {tarfile.SYMTYPE: "a link", tarfile.LNKTYPE: "a link", tarfile.DIRTYPE: "a folder"}
            kinds |= dict.fromkeys((tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE), "a device node")
            raise refused(f"{info.name[:200]!r} is {kinds.get(info.type, 'no regular file')}")
        if info.name != name:
            raise refused(f"it has {info.name[:200]!r} where {name} belongs")
        if info.size < 0:
            raise refused(f"{name} has no size")
        return info.size

    def _chunks(self, size: int) -> Iterator[bytes]:
        while size:
            data = self._exactly(min(size, _CHUNK))
            size -= len(data)
            self._moved += len(data)
            if self.meter:
                self.meter[0].update(self._moved, self.meter[1])
            yield data

    def _pad(self, unit: int) -> None:
        if any(self._exactly(-self._read % unit)):
            raise refused("it is damaged between its files")

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            some = self._some(count - len(data))
            if not some:
                raise refused("it ends in the middle", "fetch or export it again")
            data += some
        return bytes(data)

    def _some(self, count: int) -> bytes:
        """Up to `count` bytes, none at the end; a stream that is silent is waited for, but can be stopped."""
        waiting = select.poll()
        waiting.register(self._fd, select.POLLIN)
        self.stop.check()
        while not waiting.poll(_POLL_MS):
            self.stop.check()
        try:
            data = os.read(self._fd, count)
        except OSError as e:
            raise SnapshotError("the archive cannot be read", why=e.strerror or str(e)) from e
        self._read += len(data)
        return data


def _write_at(fd: int, data: bytes, offset: int) -> int:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
    return offset
