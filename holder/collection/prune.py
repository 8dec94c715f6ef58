"""Across all clusters and stores: find what no live holder owns and none will take over, and remove it.

Locks first (`survey`), then decisions by the records as they were read under them. What is never removed: a disk,
whether a record names it or not; a snapshot that can be read; a machine that the next holder can adopt; anything of a
live holder, of another installation, or of a record that cannot be read.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from pathlib import Path

from fleetbox import paths
from fleetbox.backends.host.disklock import processes_on
from fleetbox.errors import FleetboxError, HostError, NetworkError, RecordError
from fleetbox.faultpoint import arrive
from fleetbox.holder.collection.clusters import prune_cluster
from fleetbox.holder.collection.report import Pruning
from fleetbox.holder.collection.survey import Survey, survey
from fleetbox.holder.images.store import ImageStore, users_of
from fleetbox.holder.lock import HolderLock
from fleetbox.holder.snapshots.store import SnapshotStore
from fleetbox.holder.warm.templates import TemplateStore
from fleetbox.host import PruneItem, PruneReport
from fleetbox.identity import UNKNOWN_MAKER_S, ProcessIdentity, identify
from fleetbox.records import read_clusters

ABANDONED_S = 600.0
"""A download that goes on has had something to write within this time."""


async def prune(*, dry_run: bool = False, images: bool = False, templates: bool = False) -> PruneReport:
    """Remove what nobody owns, or with `dry_run` only say what that is.

    `images` and `templates` remove those as well that nothing stands on: they can be had again.
    """
    pruning = Pruning(dry_run=dry_run)
    with survey() as found:
        machines = await asyncio.to_thread(_machines, found)
        for name, why in found.failed.items():
            pruning.failed("cluster", name, f"its lock cannot be taken: {why}; nothing of it is touched")
        for owned in found.clusters.values():
            await prune_cluster(owned, machines.get(owned.name, ()), pruning)
        await _prune_unknown_runtime_folders(found, pruning)
        await _prune_stores(pruning, images=images, templates=templates)
        await _prune_downloads(pruning, of_images=images)
        await _prune_networks(pruning)
    return pruning.report()


def _machines(found: Survey) -> dict[str, list[ProcessIdentity]]:
    """The processes that run on a disk of a cluster that is ours to look at, by cluster. Blocks for some ms."""
    root = paths.data_dir() / "clusters"
    machines: dict[str, list[ProcessIdentity]] = {}
    for pid, path in processes_on(root) if root.is_dir() else ():
        cluster = path.relative_to(root).parts[0]
        identity = identify(pid) if cluster in found.clusters else None
        if identity is not None and identity not in machines.setdefault(cluster, []):
            machines[cluster].append(identity)
    return machines


async def _prune_unknown_runtime_folders(found: Survey, pruning: Pruning) -> None:
    """Runtime folders that belong to no cluster: those of clusters are known by the digest of their names.

    A cluster's state folder is made before its runtime folder: one that is listed first and then not known is nobody's.
    """
    present = [p for p in sorted(paths.runtime_dir().glob("*")) if re.fullmatch(r"[0-9a-f]{12}", p.name)]
    names = {*found.clusters, *found.busy, *(p.name for p in paths.clusters_dir().glob("*"))}
    known = {paths.cluster_runtime_dir(name) for name in names}
    for folder in present:
        if folder not in known:
            await pruning.remove_path("runtime folder", folder, "it belongs to no cluster")


async def _prune_stores(pruning: Pruning, *, images: bool, templates: bool) -> None:
    dry_run = pruning.dry_run
    snapshots = SnapshotStore()
    for unreadable in await asyncio.to_thread(lambda: snapshots.readable()[1]):
        pruning.keep("snapshot", unreadable.message, f"{unreadable.why}; no base disk is removed")
    pruning.done(await asyncio.to_thread(_ownerless_snapshots, snapshots, dry_run))
    swept = await asyncio.to_thread(snapshots.sweep, dry_run=dry_run)
    pruning.done(PruneItem("snapshot", name, "its making was interrupted", not dry_run) for name in swept)
    store = TemplateStore()
    if templates:
        pruning.done(await asyncio.to_thread(store.prune, unused_for_s=0, dry_run=dry_run))
    else:
        pruning.done(await asyncio.to_thread(store.sweep, dry_run=dry_run))
    image_store = ImageStore()
    if images:
        kept = set() if templates and dry_run else {t.image_digest for t in await asyncio.to_thread(store.templates)}
        await _prune_images(image_store, kept, pruning)
    swept = await asyncio.to_thread(image_store.sweep, dry_run)
    pruning.done(PruneItem("image", name, "its making was interrupted", not dry_run) for name in swept)


def _ownerless_snapshots(store: SnapshotStore, dry_run: bool) -> list[PruneItem]:
    """Snapshots that are bound to a cluster which is gone, as long as every cluster's record can be read."""
    bound = store.bound_clusters()  # first: a cluster that is made meanwhile has no snapshot among them
    records = list(read_clusters()) if bound else []
    if any(isinstance(record, RecordError) for record in records):
        return []
    gone = bound - {record.id for record in records if not isinstance(record, RecordError)}
    removed = store.remove_bound(gone, dry_run=dry_run)
    return [
        PruneItem("snapshot", s.name or s.id, "the cluster that it was bound to is gone", not dry_run) for s in removed
    ]


async def _prune_images(store: ImageStore, of_templates: set[str], pruning: Pruning) -> None:
    for record in await asyncio.to_thread(lambda: list(store.records())):
        if isinstance(record, RecordError):
            pruning.keep("image", record.message, record.why)
            continue
        if record.digest in of_templates:
            continue
        try:
            if await asyncio.to_thread(users_of, record.digest):
                continue
        except FleetboxError as e:
            pruning.keep("image", record.digest[:12], str(e))
            continue

        async def remove(digest: str = record.digest) -> None:
            await asyncio.to_thread(store.remove, [digest])

        name = record.names[0] if record.names else record.digest[:12]
        await pruning.remove("image", name, "no member, snapshot or template stands on it", remove)


async def _prune_downloads(pruning: Pruning, *, of_images: bool) -> None:
    """Parts of downloads that nobody is at: kept for a day, as the next attempt goes on with them."""
    folder, limit_s = paths.downloads_dir(), ABANDONED_S if of_images else UNKNOWN_MAKER_S
    for part in sorted(folder.glob("*.part")) if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > limit_s:
                await _prune_part(part, pruning)


async def _prune_part(part: Path, pruning: Pruning) -> None:
    lock = HolderLock.take(part.with_suffix(".lock"))
    if lock is None:
        return  # somebody is at it
    try:

        async def remove() -> None:
            part.unlink(missing_ok=True)
            part.with_suffix(".json").unlink(missing_ok=True)

        await pruning.remove("download", part.name, "nobody has gone on with it", remove)
    finally:
        lock.release()


async def _prune_networks(pruning: Pruning) -> None:
    await arrive("prune.network")
    if not any(paths.networks_dir().glob("fb*.json")) and not any(
        paths.host_dir().glob(f"names/fb{paths.installation_digest()}*")
    ):
        return
    from fleetbox.backends.host.network.journal import read_networks
    from fleetbox.backends.host.network.reconcile import reconcile
    from fleetbox.backends.host.thread import HostThread

    for record in await asyncio.to_thread(lambda: list(read_networks())):
        if isinstance(record, RecordError):
            pruning.keep("network", record.message, f"{record.why}; its resources are left as they are")

    with contextlib.closing(HostThread("prune")) as host:
        try:
            removed = await reconcile(host, dry_run=pruning.dry_run)
            pruning.done(PruneItem("network", name, "its holder is gone", not pruning.dry_run) for name in removed)
        except (HostError, NetworkError) as e:
            pruning.failed("network", "host networks", f"they could not be looked at: {e}")
