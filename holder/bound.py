"""Bound clusters: they belong to a process, and are destroyed when it ends, whatever ends it.

The holder watches that process through a pidfd, which needs no help of it: a SIGKILL is noticed like an exit. Its own
end takes the machines with it (`fleetbox.backends.host.confinement`); what then is left of an abandoned cluster is
removed by the next holder, or by `fleetbox prune`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from fleetbox import paths
from fleetbox.errors import ConflictError
from fleetbox.holder.folders import remove_folder
from fleetbox.holder.members import erase
from fleetbox.holder.orphans import end_process, find_orphans
from fleetbox.holder.snapshots.store import SnapshotStore
from fleetbox.holder.store import ClusterStore
from fleetbox.identity import ProcessIdentity, open_pidfd
from fleetbox.records import ClusterRecord
from fleetbox.specs import TEMPLATE_NAME

log = logging.getLogger(__name__)


class OwnerWatch:
    """Calls `on_end` once when the process that is watched has ended; in the loop's thread."""

    def __init__(self, on_end: Callable[[], None]) -> None:
        self.ended = False
        self._on_end = on_end
        self._pidfd = -1

    def watch(self, owner: ProcessIdentity) -> None:
        """Begin; repeatable. Raises ConflictError when it has ended already."""
        if self._pidfd >= 0:
            return
        found = open_pidfd(owner)
        if found is None:
            self.ended = True
            raise ConflictError(
                "the process that the cluster shall be bound to has ended",
                why=f"there is no process {owner.pid} any more",
            )
        self._pidfd = found
        asyncio.get_running_loop().add_reader(found, self._readable)

    def _readable(self) -> None:
        self.close()
        self.ended = True
        self._on_end()

    def close(self) -> None:
        """Look no more."""
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


def check_owner(record: ClusterRecord | None, owner: ProcessIdentity | None) -> None:
    """Raise ConflictError for a cluster that is there and cannot become bound to `owner`; None asks for nothing."""
    if record is None or owner is None or record.owner == owner:
        return
    if record.owner is None:
        raise ConflictError(
            f"there is a cluster {record.name!r} already, which is not bound",
            why="bound to a process, it would be destroyed with it",
            hint="choose another name, or leave `bound` out",
        )
    raise ConflictError(
        f"the cluster {record.name!r} is bound to another process",
        why=f"process {record.owner.pid} has it",
        hint="choose another name",
    )


async def take_over(store: ClusterStore, watch: OwnerWatch) -> bool:
    """Destroy a cluster whose owner ended while no holder was there; else watch it. Whether it is still wanted."""
    record = store.record
    if record is None or record.owner is None:
        return True
    if not record.abandoned:
        watch.watch(record.owner)
        return True
    log.warning("the process that %s was bound to has ended: destroyed", record.name)
    await destroy_abandoned(store)
    return False


async def destroy_abandoned(store: ClusterStore) -> None:
    """Remove everything of a cluster whose owner has ended, and that no holder has; its network is collected apart.

    For the one who has the cluster's lock.
    """
    record = store.current
    for orphan in await asyncio.to_thread(find_orphans, record.name, record):
        await end_process(orphan)
    await remove_folder(paths.member_dir(record.name, TEMPLATE_NAME))
    for member in record.members.values():
        await erase(record.name, member)
    await remove_snapshots(record)
    await store.remove()
    paths.known_hosts(record.name).unlink(missing_ok=True)


async def remove_snapshots(record: ClusterRecord) -> None:
    """Remove the snapshots that belong to a bound cluster."""
    if record.bound:
        await asyncio.to_thread(SnapshotStore().remove_bound, {record.id})
