"""`fleetbox prune`: remove what no live holder owns and none will take over.

Every cluster is looked at under its own lock, so a live holder's cluster is never touched, and two prunes at once take
turns. It fails closed: a record that cannot be read protects everything that might be its. Disks of members that a
record names are never removed; an adoptable machine is left to the next holder.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from pathlib import Path

from fleetbox import paths
from fleetbox.backends.host.network.reconcile import reconcile
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import HostError, NetworkError, RecordError
from fleetbox.faultpoint import arrive
from fleetbox.holder.bound import destroy_abandoned
from fleetbox.holder.images.library import ImageLibrary
from fleetbox.holder.lock import HolderLock
from fleetbox.holder.members import erase
from fleetbox.holder.orphans import end_process, find_orphans
from fleetbox.holder.snapshots.store import SnapshotStore
from fleetbox.holder.store import ClusterStore
from fleetbox.holder.warm.templates import TemplateStore
from fleetbox.host import PruneItem, PruneReport
from fleetbox.identity import is_alive
from fleetbox.records import MemberState, read_clusters
from fleetbox.specs import TEMPLATE_NAME


async def prune(*, dry_run: bool = False) -> PruneReport:
    """Remove what nobody owns, or with `dry_run` only say what that is."""
    items: list[PruneItem] = []
    for folder in sorted(p for p in paths.clusters_dir().glob("*") if p.is_dir()):
        items += [item async for item in _prune_cluster(folder.name, dry_run)]
    items += _unknown_runtime_folders(dry_run)
    items += await asyncio.to_thread(_ownerless_snapshots, dry_run)
    for name in await asyncio.to_thread(SnapshotStore().sweep, dry_run=dry_run):
        items.append(PruneItem("snapshot", name, "its making was interrupted", not dry_run))
    items += await asyncio.to_thread(TemplateStore().sweep, dry_run=dry_run)
    swept = await asyncio.to_thread(ImageLibrary().sweep, dry_run)
    items += [PruneItem("image", name, "its making was interrupted", not dry_run) for name in swept]
    with closing(HostThread("prune")) as host:
        try:
            await arrive("prune.network")
            removed = await reconcile(host, dry_run=dry_run)
            items += [PruneItem("network", name, "its holder is gone", not dry_run) for name in removed]
        except (HostError, NetworkError) as e:
            items.append(PruneItem("network", "host networks", f"could not be looked at: {e}", removed=False))
    return PruneReport(tuple(items))


async def _prune_cluster(cluster: str, dry_run: bool) -> AsyncIterator[PruneItem]:
    lock = HolderLock.take(paths.holder_lock(cluster))
    if lock is None:
        return
    gone = False
    try:
        await arrive("prune.cluster")
        store = ClusterStore(paths.cluster_record(cluster))
        try:
            store.load()
        except RecordError:
            return
        for orphan in find_orphans(cluster, store.record):
            if not dry_run:
                await end_process(orphan)
            yield PruneItem("process", f"{orphan.program} {orphan.pid}", "no record names it", not dry_run)
        unfinished = paths.member_dir(cluster, TEMPLATE_NAME)
        if unfinished.exists():
            if not dry_run:
                shutil.rmtree(unfinished, ignore_errors=True)
            yield PruneItem("folder", str(unfinished), "the making of a template was interrupted", not dry_run)
        if store.record is not None and store.record.abandoned:
            if not dry_run:
                await destroy_abandoned(store)
            yield PruneItem("cluster", cluster, "the process that it was bound to has ended", not dry_run)
        elif store.record is not None:
            for member in list(store.record.members.values()):
                if member.state is MemberState.CREATING:
                    if not dry_run:
                        await erase(cluster, member)
                        await arrive("prune.erased")
                        store.drop_member(member.name)
                        await store.commit()
                    yield PruneItem("member", f"{cluster}/{member.name}", "it was half made", not dry_run)
            if not dry_run and not store.current.members:
                await store.remove()
        members = store.record.members.values() if store.record else ()
        if not any(m.handle and is_alive(m.handle.process) for m in members):
            for item in _remove_runtime_folder(paths.cluster_runtime_dir(cluster), dry_run):
                yield item
        gone = not paths.cluster_record(cluster).exists()
        if gone:
            await arrive("prune.gone")
            yield PruneItem("folder", str(paths.cluster_state_dir(cluster)), "its cluster does not exist", not dry_run)
    finally:
        if gone and not dry_run:
            shutil.rmtree(paths.cluster_state_dir(cluster), ignore_errors=True)
            with suppress(OSError):
                paths.cluster_data_dir(cluster).rmdir()
        lock.release()


def _ownerless_snapshots(dry_run: bool) -> list[PruneItem]:
    """Snapshots that are bound to a cluster which is gone, as long as every cluster's record can be read."""
    store = SnapshotStore()
    bound = store.bound_clusters()  # first: a cluster that is made meanwhile has no snapshot among them
    records = list(read_clusters()) if bound else []
    if any(isinstance(record, RecordError) for record in records):
        return []
    gone = bound - {record.id for record in records if not isinstance(record, RecordError)}
    removed = store.remove_bound(gone, dry_run=dry_run)
    return [
        PruneItem("snapshot", s.name or s.id, "the cluster that it was bound to is gone", not dry_run) for s in removed
    ]


def _remove_runtime_folder(folder: Path, dry_run: bool) -> list[PruneItem]:
    """Sockets and pidfiles of a holder and machines that are gone; the caller knows that they are."""
    if not folder.is_dir():
        return []
    if not dry_run:
        shutil.rmtree(folder, ignore_errors=True)
    return [PruneItem("runtime folder", str(folder), "nothing of its cluster runs", not dry_run)]


def _unknown_runtime_folders(dry_run: bool) -> list[PruneItem]:
    """Runtime folders that belong to no cluster.

    A cluster's state folder is made before its runtime folder: one that is listed first and then not known is nobody's.
    """
    found = [p for p in sorted(paths.runtime_dir().glob("*")) if re.fullmatch(r"[0-9a-f]{12}", p.name)]
    known = {paths.cluster_runtime_dir(p.name) for p in paths.clusters_dir().glob("*")}
    return [item for folder in found if folder not in known for item in _remove_runtime_folder(folder, dry_run)]
