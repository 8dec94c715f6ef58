"""The helper's files by content: `blobs/DIGEST`, and `parts/DIGEST` while one is coming.

A file is believed once its sha256 is its name. Machines stand on files here or read them; what nobody has needed for a
week goes, as the other side can always send it again. They stay writable for their owner: a hypervisor without
capabilities opens the memory that it maps privately for writing, and the base of a base disk is put in its place here.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import time
from collections.abc import AsyncIterable, Collection
from pathlib import Path

from fleetbox.backends.host.disk import disk_errors, free_space_preflight
from fleetbox.backends.host.extents import Landing
from fleetbox.backends.remote.wire import File
from fleetbox.errors import UsageError
from fleetbox.holder.remote.beneath import Beneath
from fleetbox.sizes import MIB

KEPT_S = 7 * 24 * 3600.0
_DIGEST = re.compile(r"[0-9a-f]{64}")
_READ_BYTES = 1 * MIB


def check_digest(digest: str) -> str:
    """`digest`, when it is one. Raises UsageError."""
    if not _DIGEST.fullmatch(digest):
        raise UsageError(f"{digest!r} is no sha256")
    return digest


class Blobs:
    """The files beneath a folder. `claims` are those that a launch is about to name, by machine."""

    def __init__(self, root: Path) -> None:
        self.root = root / "blobs"
        self._parts = root / "parts"
        for folder in (self.root, self._parts):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._beneath = Beneath(root)
        self._turns: dict[str, asyncio.Lock] = {}
        self.claims: dict[str, frozenset[str]] = {}

    def path(self, digest: str) -> Path:
        """Where the file of that digest is. Raises UsageError when it is not here."""
        path = self.root / check_digest(digest)
        if not path.is_file():
            raise UsageError(f"the file {digest} is not here", hint="offer it, and send it when it is lacking")
        return path

    def lacking(self, machine: str, files: Collection[File]) -> dict[str, int]:
        """Which of them are not here, and how much of each is. They stay until the machine's next launch or offer."""
        self.claims[machine] = frozenset(check_digest(file.digest) for file in files)
        missing = [file for file in files if not self._is_here(file.digest)]
        have = {file.digest: self._begun(file.digest) for file in missing}
        free_space_preflight(self._parts, sum(file.size_bytes - have[file.digest] for file in missing if _dense(file)))
        return have

    def _is_here(self, digest: str) -> bool:
        try:
            os.utime(self.root / digest)
        except FileNotFoundError:
            return False
        return True

    def _begun(self, digest: str) -> int:
        with contextlib.suppress(FileNotFoundError):
            return (self._parts / digest).stat().st_size
        return 0

    async def receive(self, digest: str, start: int, stream: AsyncIterable[bytes]) -> None:
        """Take a file in from offset `start` on. What has come of an interrupted one stays, to be gone on with.

        Raises UsageError when it is not what its digest says or does not go on where it was, DiskError.
        """
        name = f"parts/{check_digest(digest)}"
        async with self._turns.setdefault(digest, asyncio.Lock()):
            if self._is_here(digest):
                async for _ in stream:
                    pass
                return
            with disk_errors(f"the file {digest} cannot be stored"):
                fd = self._beneath.open(name, os.O_RDWR | os.O_CREAT)
                try:
                    if os.fstat(fd).st_size != start:
                        raise UsageError(f"{digest} does not go on at {start}", hint="offer it again")
                    await self._land(fd, start, stream)
                    if await asyncio.to_thread(_digest, fd) != digest:
                        (self._parts / digest).unlink()
                        raise UsageError(f"the file that was sent is not {digest}", hint="send it again from its start")
                    await asyncio.to_thread(os.fsync, fd)
                finally:
                    os.close(fd)
                (self._parts / digest).rename(self.root / digest)

    async def _land(self, fd: int, start: int, stream: AsyncIterable[bytes]) -> None:
        landing = Landing(fd, start=start)
        pending = bytearray()
        async for data in stream:
            pending += data
            if len(pending) >= MIB:
                await asyncio.to_thread(landing.write, bytes(pending))
                pending.clear()
        await asyncio.to_thread(landing.write, bytes(pending))
        if not landing.whole:
            raise UsageError("the file's stream ended too early", hint="go on where it ended")

    def adopt(self, path: Path, digest: str) -> None:
        """Make a file of this folder's file system, which nobody writes to any more, the one of its digest."""
        with disk_errors(f"{path} cannot be stored"):
            path.rename(self.root / digest)

    def sweep(self, needed: Collection[str], *, kept_s: float = KEPT_S) -> None:
        """Remove what is not `needed`, not claimed, and was not asked for in the last `kept_s`. Blocks."""
        limit = time.time() - kept_s
        spared = {*needed, *(digest for claim in self.claims.values() for digest in claim)}
        for path in (*self.root.iterdir(), *self._parts.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                if path.name not in spared and path.stat().st_mtime <= limit:
                    path.unlink()

    def drop(self, digest: str, needed: Collection[str]) -> None:
        """Remove a file that one launch alone had need of, unless another has."""
        if digest not in needed and not any(digest in claim for claim in self.claims.values()):
            (self.root / digest).unlink(missing_ok=True)


def digest_of(path: Path) -> str:
    """The sha256 of a file. Blocks; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return _digest(fd)
    finally:
        os.close(fd)


def _digest(fd: int) -> str:
    digest, offset = hashlib.sha256(), 0
    while data := os.pread(fd, _READ_BYTES, offset):
        digest.update(data)
        offset += len(data)
    return digest.hexdigest()


def _dense(file: File) -> bool:
    """Whether a file is likely to have few holes: how much a sparse one takes is known once it has come."""
    return file.size_bytes < 256 * MIB
