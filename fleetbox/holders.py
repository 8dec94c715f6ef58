"""Clusters' holders, for Python: which there are, and putting another in the place of one.

>>> import fleetbox
>>> fleetbox.holders.restart("mycluster")                      # doctest: +SKIP

A restart is how a holder of another version of fleetbox is replaced: its machines run on, and the new holder takes them
over.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path

import msgspec

from fleetbox import paths
from fleetbox.errors import ConflictError, HolderError, NotFoundError, RecordError
from fleetbox.identity import is_alive, open_pidfd
from fleetbox.launch import ensure_holder
from fleetbox.records import ClusterRecord, HolderRecord, cluster_names, live_holder, read_cluster
from fleetbox.stream import OnEvent
from fleetbox.wire import Notice

RESTART = signal.SIGHUP
"""Tells a holder to leave its machines to the next one. One that does not know it just ends, which does no harm."""

_PATIENCE_S = 2.0


class Holder(msgspec.Struct, frozen=True):
    """A cluster and its holder. `pid` 0: none runs; `machines` counts those that run, with or without a holder.

    The holder of a `bound` cluster cannot be restarted.
    """

    cluster: str
    pid: int
    version: str
    protocol: int
    machines: int
    bound: bool = False


def list_holders() -> list[Holder]:
    """Every cluster that has a live holder, or machines that wait for one, by name. Starts none."""
    return [found for found in map(_described, cluster_names()) if found.pid or found.machines]


def restart(cluster: str, *, on_event: OnEvent | None = None) -> Holder:
    """Put a new holder in the place of the cluster's; machines and connections to them stay. Returns the new one.

    An operation under way is finished first. A cluster of which nothing runs needs no holder and gets none (`pid` 0).
    Raises NotFoundError, ConflictError for a bound cluster, and HolderError when the old one does not end or the new
    one does not start.
    """
    if cluster not in cluster_names():
        raise NotFoundError(
            f"there is no cluster {cluster!r}", hint="`fleetbox ls` lists the clusters, `fleetbox up` makes one"
        )
    _refuse_bound(cluster)
    old = live_holder(cluster)
    if old is not None:
        _end(cluster, old, on_event)
    if _machines(_record(cluster)):
        ensure_holder(cluster)
    return _described(cluster)


def _refuse_bound(cluster: str) -> None:
    record = _record(cluster)
    if record is not None and record.bound:
        raise ConflictError(
            f"the holder of {cluster!r} cannot be restarted",
            why="the cluster is bound: its machines end with their holder",
            hint="end the process that it is bound to instead",
        )


def _end(cluster: str, holder: HolderRecord, on_event: OnEvent | None) -> None:
    """Tell the holder to hand over, and wait until it has ended."""
    pidfd = open_pidfd(holder.process)
    if pidfd is None:
        return
    try:
        if not _is_holder(cluster, holder):
            raise HolderError(
                f"the holder of {cluster!r} cannot be restarted",
                why=f"process {holder.process.pid} has its place, and is none",
                hint=f"see {paths.holder_lock(cluster)}",
            )
        try:
            signal.pidfd_send_signal(pidfd, RESTART)
        except ProcessLookupError:
            return
        except PermissionError as e:
            raise HolderError(
                f"the holder of {cluster!r} cannot be restarted",
                why=f"process {holder.process.pid} belongs to another user",
                hint="restart it as that user",
            ) from e
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(_PATIENCE_S * 1000):
            if on_event is not None:
                on_event(Notice(f"waiting for the operation on {cluster!r} to end"))
            poll.poll()
    finally:
        os.close(pidfd)


def _is_holder(cluster: str, holder: HolderRecord) -> bool:
    """Whether the process says of itself what the lock file says of it."""
    with contextlib.suppress(OSError):
        argv = Path(f"/proc/{holder.process.pid}/cmdline").read_bytes().split(b"\0")
        return b"fleetbox.holder" in argv and cluster.encode() in argv
    return False


def _machines(record: ClusterRecord | None) -> int:
    """How many machines of the cluster run."""
    members = record.members.values() if record else ()
    return sum(1 for m in members if m.handle and is_alive(m.handle.process))


def _record(cluster: str) -> ClusterRecord | None:
    """The record as far as it can be read; what cannot is for the next holder to report."""
    with contextlib.suppress(NotFoundError, RecordError):
        return read_cluster(cluster)
    return None


def _described(cluster: str) -> Holder:
    holder, record = live_holder(cluster), _record(cluster)
    return Holder(
        cluster,
        pid=holder.process.pid if holder else 0,
        version=holder.version if holder else "",
        protocol=holder.protocol if holder else 0,
        machines=_machines(record),
        bound=record is not None and record.bound,
    )
