"""Writing a cluster's event log (`fleetbox.events`), by whoever has the cluster's lock.

A line is one write(2) to a file that is opened for appending: it survives this process, though not a power failure (the
records do). Losing the log must never cost a machine, so an event that cannot be written waits for the next one that
can; when too many wait, the oldest are given up, and readers see a gap.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator

import msgspec

from fleetbox import paths
from fleetbox._version import __version__
from fleetbox.errors import FleetboxError, OperationInterrupted
from fleetbox.events import REMOVED, EventReader, LoggedEvent
from fleetbox.holder.operations import KEEPALIVE_S, Operation
from fleetbox.records import ClusterRecord
from fleetbox.wire import Error, Event, Notice, Progress, Result, Started

log = logging.getLogger(__name__)

FILE_BYTES_MAX = 2 << 20
WAITING_MAX = 1000
MESSAGE_MAX = 2000


class EventLog:
    """The event log of one cluster. `open` it once the cluster's lock is held, and `close` it."""

    def __init__(self, cluster: str) -> None:
        self.cluster = cluster
        self._path = paths.events_log(cluster)
        self._fd = -1
        self._bytes = 0
        self._waiting: deque[bytes] = deque(maxlen=WAITING_MAX)
        self._news = asyncio.Event()
        self._closed = False
        self._states: dict[str, str] = {}
        self._seq = 0

    def open(self) -> None:
        """Go on after the last event of an earlier holder."""
        try:
            if self._path.exists():
                self._open_file()
            with EventReader(self.cluster) as reader:
                for event in reader.read():
                    self._seq = event.seq
                    if event.event == "member":
                        self._states[event.member] = event.state
        except (OSError, FleetboxError) as e:
            log.warning("the event log begins anew: %s", e)

    def append(
        self,
        event: str,
        *,
        member: str = "",
        step: str = "",
        state: str = "",
        operation: str = "",
        message: str = "",
        at: float | None = None,
    ) -> None:
        """Add one event; never raises for a disk that is full or gone."""
        self._seq += 1
        logged = LoggedEvent(
            seq=self._seq,
            at=time.time() if at is None else at,
            event=event,
            member=member,
            step=step,
            state=state,
            operation=operation,
            message=message[:MESSAGE_MAX],
        )
        self._waiting.append(msgspec.json.encode(logged) + b"\n")
        try:
            self._write()
        except OSError as e:
            log.warning("the event log %s cannot be written: %s", self._path, e)
        self._news.set()
        self._news = asyncio.Event()

    def _write(self) -> None:
        if self._fd < 0 or self._bytes >= FILE_BYTES_MAX:
            self._open_file()
        while self._waiting:
            line = self._waiting[0]
            written = os.write(self._fd, line)
            self._bytes += written
            if written < len(line):  # a full disk took the beginning: end that line, it is skipped by readers
                self._shut()
                raise OSError(28, "No space left on device")
            self._waiting.popleft()

    def _open_file(self) -> None:
        """Open the log, a new one when it is full; a line that a crash has cut is ended first."""
        self._shut()
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_size >= FILE_BYTES_MAX:
                self._path.replace(paths.events_log_before(self.cluster))
        self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._bytes = os.fstat(self._fd).st_size
        if self._bytes and os.pread(self._fd, 1, self._bytes - 1) != b"\n":
            self._bytes += os.write(self._fd, b"\n")

    def _shut(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def catch_up(self, record: ClusterRecord | None) -> None:
        """Add the changes of members that were recorded, but not logged any more before a holder died."""
        members = record.members if record else {}
        for name, member in members.items():
            if self._states.get(name) != member.state:
                self.append("member", member=name, state=member.state, message=member.error)
        for name, state in self._states.items():
            if name not in members and state != REMOVED:
                self.append("member", member=name, state=REMOVED)

    def holder(self, state: str) -> None:
        """A holder `started`, is `restarting` or `ended`."""
        self.append("holder", state=state, message=__version__)

    def follow(self, operation: Operation) -> None:
        """Log an operation's beginning, steps, notices and end."""

        def on_event(event: Event) -> None:
            match event:
                case Started():
                    self.append("operation", step=operation.name, state="begin", operation=operation.id)
                case Progress(state="update"):
                    pass  # how far a download has come is of no use afterwards
                case Progress():
                    self.append(
                        "progress",
                        member=event.member,
                        step=event.step,
                        state=event.state,
                        message=event.message,
                        operation=operation.id,
                        at=event.at or None,
                    )
                case Notice():
                    self.append("notice", member=event.member, message=event.message, operation=operation.id)
                case Result():
                    self.append("operation", step=operation.name, state="done", operation=operation.id)
                case Error():
                    error = event.exception()
                    state = "interrupted" if isinstance(error, OperationInterrupted) else "failed"
                    self.append(
                        "operation", step=operation.name, state=state, operation=operation.id, message=str(error)
                    )

        operation.listener = on_event

    async def lines(self, since: int, *, follow: bool) -> AsyncIterator[bytes]:
        """The events after number `since` as JSON lines; with `follow` those to come, with a blank line in a lull.

        As much is read as is taken: a slow reader waits in the file.
        """
        with EventReader(self.cluster, since) as reader:
            while True:
                news, closed = self._news, self._closed  # before reading, so that nothing added meanwhile is missed
                for event in reader.read():
                    yield msgspec.json.encode(event) + b"\n"
                if closed or not follow:
                    return
                try:
                    async with asyncio.timeout(KEEPALIVE_S):
                        await news.wait()
                except TimeoutError:
                    yield b"\n"

    def close(self) -> None:
        """No more is written; followers end when they have read all."""
        self._closed = True
        self._shut()
        self._news.set()
