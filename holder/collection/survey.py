"""What a prune goes by: every lock that it can have, taken first, and the records as they are then.

A cluster whose holder lives keeps its lock, and nothing of it is touched. Where there is no live holder, the lock keeps
the next one out until the prune has ended, so nothing that was decided by the records is overtaken by them. A record
that cannot be read protects everything that might be its cluster's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fleetbox import names, paths
from fleetbox.errors import RecordError, UsageError
from fleetbox.holder.eventlog import EventLog
from fleetbox.holder.lock import DYING_S, HolderLock
from fleetbox.holder.store import ClusterStore
from fleetbox.records import live_holder


@dataclass
class Owned:
    """A cluster whose lock is ours, and its record."""

    name: str
    lock: HolderLock
    made: bool
    """Whether its state folder was made for the lock alone."""
    events: EventLog
    store: ClusterStore
    error: RecordError | None = None


@dataclass
class Survey:
    """The clusters that may be looked at, by name; `busy` are those of others, `failed` is why one cannot be locked."""

    clusters: dict[str, Owned] = field(default_factory=dict)
    busy: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def survey() -> Iterator[Survey]:
    """Take every cluster's lock that no live process has, and read the records. Blocks."""
    found = Survey()
    deadline = time.monotonic() + DYING_S
    with contextlib.ExitStack() as stack:
        for name in _names():
            made = not paths.cluster_state_dir(name).exists()
            patience_s = 0.0 if live_holder(name) else max(0.0, deadline - time.monotonic())
            try:
                lock = HolderLock.take(paths.holder_lock(name), patience_s)
            except OSError as e:  # a read-only or full folder
                found.failed[name] = e.strerror or str(e)
                lock = None
            if lock is None:
                found.busy.add(name)
                continue
            stack.callback(lock.release)
            events = EventLog(name)
            owned = Owned(name, lock, made, events, ClusterStore(paths.cluster_record(name), events))
            try:
                owned.store.load()
            except RecordError as e:
                owned.error = e
            found.clusters[name] = owned
            stack.callback(_leave, owned)
        yield found


def _leave(owned: Owned) -> None:
    owned.events.close()
    if owned.made and owned.store.record is None:
        owned.lock.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            owned.lock.path.parent.rmdir()


def _names() -> list[str]:
    """Every name under which something of a cluster stands."""
    found = set()
    for folder in (paths.clusters_dir(), paths.data_dir() / "clusters"):
        found |= {path.name for path in _folders(folder) if _is_cluster(path.name)}
    return sorted(found)


def _folders(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.is_dir() and not p.is_symlink()] if folder.is_dir() else []


def _is_cluster(name: str) -> bool:
    with contextlib.suppress(UsageError):
        return names.check_label(name, "cluster name") == name
    return False
