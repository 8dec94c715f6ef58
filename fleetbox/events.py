"""What happened to a cluster, in order: the log that its holder keeps, and reading and following it.

`state/clusters/CLUSTER/events.jsonl` has a line for every change of the cluster's records, every step of an operation
and every notice, numbered without a gap (`seq`). Only who has the cluster's lock writes it
(`fleetbox.holder.eventlog`); anybody may read it, with or without a holder. A record's change stands in the log once
the record is on disk, so whoever reads the record after its event sees at least that change.

The file is the buffer: it is written whatever its readers do, and a slow one costs nobody memory. When it is full it
becomes `events.1.jsonl`, which replaces the one before; a reader that is two files behind is told so by a `gap`. A line
that a crash has cut is skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

from fleetbox import paths
from fleetbox.errors import HostError, NotFoundError, RecordError
from fleetbox.shapes import UNDECODABLE

if TYPE_CHECKING:
    from fleetbox.inotify import FolderWatch

BLOCK_BYTES = 1 << 16
LINE_BYTES_MAX = 1 << 16
"""A longer line is none of ours: it is skipped, so no broken file fills its reader's memory."""

REMOVED = "removed"
"""The `state` of a member or a cluster that is no more."""


class LoggedEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event. `seq` counts from 1 in the life of a cluster, `at` is Unix seconds by the host's clock.

    By `event`:

    * `cluster`: the cluster was made, or is gone; `state` is `created` or `removed`.
    * `member`: the state of `member` changed; `state` as in its record, or `removed`; `message` is its record's error.
    * `operation`: `step` is its name and `operation` its id; `state` is `begin`, `done`, `failed` or `interrupted`.
    * `progress`: a `step` of `member` (empty: of the whole) in `operation`; `state` is `begin`, `done` or `failed`.
    * `notice`: `message` is something that the user should know.
    * `holder`: a holder `started`, is `restarting` (its machines run on) or `ended`; `message` is its version.
    * `gap`: made by the reader; `count` events before the next one are not to be had any more.
    """

    seq: int
    at: float
    event: str
    member: str = ""
    step: str = ""
    state: str = ""
    operation: str = ""
    message: str = ""
    count: int = 0


_decoder = msgspec.json.Decoder(LoggedEvent)


def decode(line: bytes) -> LoggedEvent | None:
    """The event of a line of the log, None for a line that was cut."""
    try:
        return _decoder.decode(line)
    except UNDECODABLE:
        return None


class _File:
    """A file of the log that is being read; open, so that nothing is missed when it is put aside or removed."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        info = os.fstat(fd)
        self.identity = info.st_dev, info.st_ino
        self._rest = b""
        self._skipping = False

    @classmethod
    def open(cls, path: Path) -> _File | None:
        try:
            return cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except FileNotFoundError:
            return None
        except OSError as e:
            raise RecordError(f"the event log {path} cannot be read", why=e.strerror or str(e)) from e

    def first(self) -> LoggedEvent | None:
        """Its first event, when it has one."""
        return decode(os.pread(self.fd, LINE_BYTES_MAX, 0).partition(b"\n")[0])

    def read(self) -> Iterator[LoggedEvent]:
        """Its events from where the last reading ended; a last line that is not whole yet is left for the next."""
        while block := os.read(self.fd, BLOCK_BYTES):
            *lines, self._rest = (self._rest + block).split(b"\n")
            if self._skipping and lines:
                del lines[0]
                self._skipping = False
            for line in lines:
                event = decode(line)
                if event is not None:
                    yield event
            if len(self._rest) > LINE_BYTES_MAX:
                self._rest, self._skipping = b"", True

    def close(self) -> None:
        os.close(self.fd)


class EventReader:
    """Reads a cluster's log, and later what was added: `read` gives what there is, `wait` returns when there is more.

    A context manager. `last` is the number of the last event that was read.
    """

    def __init__(self, cluster: str, since: int = 0) -> None:
        self.last = since
        self._current = paths.events_log(cluster)
        self._before = paths.events_log_before(cluster)
        self._file: _File | None = None
        self._watch: FolderWatch | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def gone(self) -> bool:
        """Whether the log has been removed with its cluster."""
        return not self._current.exists()

    def read(self) -> Iterator[LoggedEvent]:
        """The events after the last one that was read, in order, to the end of the log as it is now."""
        while True:
            if self._file is not None:
                yield from self._news(self._file)
            following = self._next()
            if following is None:
                return
            if self._file is not None:
                yield from self._news(self._file)  # it was put aside: nothing is added to it after this
                self._file.close()
            self._file = following

    def _news(self, file: _File) -> Iterator[LoggedEvent]:
        for event in file.read():
            if event.seq <= self.last:
                continue
            if event.seq > self.last + 1:
                yield LoggedEvent(seq=event.seq - 1, at=event.at, event="gap", count=event.seq - 1 - self.last)
            self.last = event.seq
            yield event

    def _next(self) -> _File | None:
        """The file after the one that is being read; None when that is the newest."""
        reading = self._file.identity if self._file else None
        # In this order: a file that becomes the one before between the two is then opened twice, and never missed.
        current = _File.open(self._current)
        if current is None or current.identity == reading:
            _close(current)
            return None
        before = _File.open(self._before)
        if before is None or before.identity == reading or self._follows_on(current):
            _close(before)
            return current
        current.close()
        return before

    def _follows_on(self, file: _File) -> bool:
        first = file.first()
        return first is not None and first.seq <= self.last + 1

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until something of the cluster may have changed; False when nothing did in `timeout_s`.

        Its first call returns at once, as what was added before it is not noticed. Raises HostError when this user
        watches too many folders already.
        """
        if self._watch is not None:
            return self._watch.wait(timeout_s)
        from fleetbox.inotify import FolderWatch

        try:
            self._watch = FolderWatch(self._current.parent)
        except FileNotFoundError:
            return True  # gone with its cluster, as the caller sees now
        except OSError as e:
            raise HostError(
                "the cluster cannot be watched",
                why=e.strerror or str(e),
                hint="see fs.inotify in sysctl, or end other programs that watch files",
            ) from e
        return True

    def close(self) -> None:
        _close(self._file)
        self._file = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None


def _close(file: _File | None) -> None:
    if file is not None:
        file.close()


def events(cluster: str, *, follow: bool = False, since: int = 0) -> Iterator[LoggedEvent]:
    """The cluster's events after number `since`, in order; with `follow`, also all to come, until it is removed.

    Holders may come and go meanwhile. Raises NotFoundError when there is no such cluster.
    """
    if not paths.events_log(cluster).exists() and not paths.cluster_record(cluster).exists():
        raise NotFoundError(
            f"there is no cluster {cluster!r}", hint="`fleetbox ls` lists the clusters, `fleetbox up` makes one"
        )
    return _events(cluster, follow, since)


def _events(cluster: str, follow: bool, since: int) -> Iterator[LoggedEvent]:
    with EventReader(cluster, since) as reader:
        while True:
            for event in reader.read():
                yield event
                if event.event == "cluster" and event.state == REMOVED:
                    return
            if not follow or (reader.gone and not paths.cluster_record(cluster).exists()):
                return
            reader.wait()
