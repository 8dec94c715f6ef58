"""Machines of this installation that no record names.

A holder that is killed between launching a machine and writing its record leaves one. It is known by what it does: it
holds the lock of a member's disk, which is inherited from the holder that launched it
(`fleetbox.backends.host.disklock`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path

from fleetbox import paths
from fleetbox.backends.host import process
from fleetbox.backends.host.disklock import lock_holders, runs_on
from fleetbox.identity import ProcessIdentity, identify, is_alive
from fleetbox.records import ClusterRecord, MemberRecord

log = logging.getLogger(__name__)


def find_orphans(cluster: str, record: ClusterRecord | None) -> list[ProcessIdentity]:
    """Processes that run on a disk of the cluster and stand in no member's record. Blocks for some ms.

    For a caller that has the cluster's lock: nobody is about to record them.
    """
    disks = [lock.with_suffix("") for lock in paths.cluster_data_dir(cluster).glob("*/disk.*.lock")]
    handles = [m.handle for m in record.members.values() if m.handle] if record else []
    recorded = {handle.process.pid for handle in handles if is_alive(handle.process)}
    found = (identify(pid) for pid in lock_holders(*disks) if pid not in recorded)
    return [identity for identity in found if identity is not None]


def has_machine(cluster: str, record: MemberRecord) -> bool:
    """Whether the process that the member's record names runs, and is a machine of this member. Blocks for a moment.

    A record may have been forged: a process that neither has the lock of one of the member's disks nor names the
    cluster's runtime folder among its arguments is a stranger.
    """
    if record.handle is None or not is_alive(record.handle.process):
        return False
    pid = record.handle.process.pid
    disks = [lock.with_suffix("") for lock in Path(record.folder).glob("disk.*.lock")]
    if runs_on(pid, *disks) or _names(pid, paths.cluster_runtime_dir(cluster)):
        return True
    log.warning("process %d is no machine of %s/%s, as its record says: left alone", pid, cluster, record.name)
    return False


async def end_machine(cluster: str, record: MemberRecord) -> None:
    """End the machine that a dead holder left of a member, when exactly that process still runs."""
    if record.handle is not None and await asyncio.to_thread(has_machine, cluster, record):
        await end_process(record.handle.process)


def _names(pid: int, folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.fsencode(folder) in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


async def end_process(identity: ProcessIdentity) -> bool:
    """End exactly this process; False when it is gone already."""
    orphan = process.adopt(identity)
    if orphan is None:
        return False
    await orphan.kill()
    orphan.close()
    return True
