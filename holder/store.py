"""Writing a cluster's record: whole, durable, and one writer.

The record is written to a temporary file, fsynced and renamed, and the folder is fsynced, so that a reader or a crash
sees the old record or the new one. Changes that come while a write is under way share the next one (group commit),
which keeps the cost linear in the number of changes. Only the process that has the cluster's lock may write.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from fleetbox.errors import NotFoundError, RecordError
from fleetbox.events import REMOVED
from fleetbox.faultpoint import reach
from fleetbox.holder.eventlog import EventLog
from fleetbox.records import ClusterRecord, MemberRecord, MemberState, read_cluster_record


def write_atomically(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace `path` by a file with `data`, durably. Raises OSError; the old file is whole then."""
    reach("record.write")
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            os.fsync(fd)
        reach("record.written")
        os.replace(temporary, path)  # noqa: PTH105 - the pair of mkstemp
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108
        raise
    reach("record.replaced")
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class ClusterStore:
    """The record of one cluster in memory and on disk. `record` is None until the cluster is made.

    Every change of a member's state goes to `events`, in order, once it is on disk.
    """

    def __init__(self, path: Path, events: EventLog | None = None) -> None:
        self.path = path
        self.record: ClusterRecord | None = None
        self._events = events
        self._untold: list[dict[str, Any]] = []
        self._changes = 0
        self._written = 0
        self._writing = asyncio.Lock()

    def load(self) -> None:
        """Read the record if there is one.

        Raises RecordError for one that cannot be understood; it stays where it is, with a copy aside that survives a
        hand edit of the original.
        """
        try:
            self.record = read_cluster_record(self.path)
        except NotFoundError:
            self.record = None
        except RecordError:
            aside = self.path.with_suffix(".json.unreadable")
            with contextlib.suppress(OSError):
                if not aside.exists():
                    shutil.copy2(self.path, aside)
            raise

    @property
    def current(self) -> ClusterRecord:
        """The record of a cluster that exists."""
        if self.record is None:
            raise NotFoundError("the cluster does not exist any more")
        return self.record

    def change(self, **changes: object) -> None:
        """Replace fields of the cluster's record in memory; `commit` makes it durable."""
        self.record = msgspec.structs.replace(self.current, **changes)
        self._changes += 1

    def create(self, record: ClusterRecord) -> None:
        """Take a new cluster's record into memory."""
        self.record = record
        self._changes += 1
        self._tell(event="cluster", state="created")

    def _tell(self, **event: Any) -> None:
        self._untold.append({**event, "at": time.time()})

    def put_member(self, member: MemberRecord) -> MemberRecord:
        """Add or replace a member's record in memory. Only a placeholder has a maker."""
        if member.maker is not None and member.state is not MemberState.CREATING:
            member = msgspec.structs.replace(member, maker=None)
        before = self.current.members.get(member.name)
        if before is None or (before.state, before.error) != (member.state, member.error):
            self._tell(event="member", member=member.name, state=member.state, message=member.error)
        self.change(members=self.current.members | {member.name: member})
        return member

    def change_member(self, name: str, **changes: object) -> MemberRecord:
        """Replace fields of a member's record in memory and return it."""
        return self.put_member(msgspec.structs.replace(self.current.members[name], **changes))

    def drop_member(self, name: str) -> None:
        """Remove a member's record from memory; unknown names are fine."""
        if self.record is not None and name in self.record.members:
            self.change(members={n: m for n, m in self.record.members.items() if n != name})
            self._tell(event="member", member=name, state=REMOVED)

    async def doom(self, *names: str) -> None:
        """Make members placeholders again: a holder that dies while it destroys them leaves what is rolled back."""
        for name in names:
            self.change_member(name, state=MemberState.CREATING)
        with contextlib.suppress(RecordError):  # a full disk must not keep anybody from making room
            await self.commit()

    async def commit(self) -> None:
        """Return when everything changed so far is on disk.

        Raises RecordError when it cannot be written (a full or read-only disk); memory then is ahead of the disk, and
        the next commit tries again. A cancelled caller's change is still written.
        """
        wanted = self._changes
        await asyncio.shield(self._write(wanted))

    async def _write(self, wanted: int) -> None:
        async with self._writing:
            if self._written >= wanted or self.record is None:
                return
            changes, record, told = self._changes, self.record, len(self._untold)
            data = msgspec.json.format(msgspec.json.encode(record), indent=1)
            try:
                await asyncio.to_thread(write_atomically, self.path, data)
            except OSError as e:
                raise RecordError(
                    f"the record {self.path} cannot be written",
                    why=e.strerror or str(e),
                    hint="free some space or correct its folder's owner; the old record is whole",
                ) from e
            self._written = changes
            self._log(told)

    def _log(self, count: int) -> None:
        told, self._untold = self._untold[:count], self._untold[count:]
        for event in told if self._events else ():
            assert self._events is not None
            self._events.append(**event)

    async def remove(self) -> None:
        """Delete the record: the cluster is gone."""
        async with self._writing:
            reach("record.remove")
            self.record = None
            self.path.unlink(missing_ok=True)
            self._tell(event="cluster", state=REMOVED)
            self._log(len(self._untold))
