"""Machines of this installation that no record names.

A holder that is killed between launching a machine and writing its record leaves one. It is known by what it does: it
holds the lock of a member's disk, which is inherited from the holder that launched it
(`fleetbox.backends.host.disklock`).
"""

from __future__ import annotations

from fleetbox import paths
from fleetbox.backends.host import process
from fleetbox.backends.host.disklock import lock_holders
from fleetbox.identity import ProcessIdentity, identify, is_alive
from fleetbox.records import ClusterRecord


def find_orphans(cluster: str, record: ClusterRecord | None) -> list[ProcessIdentity]:
    """Processes that run on a disk of the cluster and stand in no member's record. Blocks for some ms.

    For a caller that has the cluster's lock: nobody is about to record them.
    """
    disks = [lock.with_suffix("") for lock in paths.cluster_data_dir(cluster).glob("*/disk.*.lock")]
    handles = [m.handle for m in record.members.values() if m.handle] if record else []
    recorded = {handle.process.pid for handle in handles if is_alive(handle.process)}
    found = (identify(pid) for pid in lock_holders(*disks) if pid not in recorded)
    return [identity for identity in found if identity is not None]


async def end_process(identity: ProcessIdentity) -> bool:
    """End exactly this process; False when it is gone already."""
    orphan = process.adopt(identity)
    if orphan is None:
        return False
    await orphan.kill()
    orphan.close()
    return True
