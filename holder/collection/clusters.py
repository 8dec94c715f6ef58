"""What is left of one cluster that no holder holds: half made members, stray machines, stale sockets, empty folders."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fleetbox import paths, ssh
from fleetbox.faultpoint import arrive
from fleetbox.holder.collection.report import Pruning
from fleetbox.holder.collection.survey import Owned
from fleetbox.holder.orphans import end_process
from fleetbox.holder.runtime import stale_files
from fleetbox.identity import ProcessIdentity, is_alive
from fleetbox.records import MemberRecord
from fleetbox.specs import TEMPLATE_NAME


async def prune_cluster(owned: Owned, machines: Sequence[ProcessIdentity], pruning: Pruning) -> None:
    """Remove what is nobody's of a cluster whose lock is ours. `machines` are the processes that run on its disks."""
    await arrive("prune.cluster")
    if owned.error is not None:
        pruning.keep("cluster", owned.name, f"{owned.error}; nothing of it is touched")
        return
    if owned.store.record is not None and not pruning.dry_run:
        owned.events.open()
        owned.events.catch_up(owned.store.record)
    if owned.store.record is not None and owned.store.record.abandoned:
        from fleetbox.holder.bound import destroy_abandoned  # as below: it costs more than all of a prune in vain

        await pruning.remove(
            "cluster", owned.name, "the process that it was bound to has ended", partial(destroy_abandoned, owned.store)
        )
        if pruning.dry_run:
            return
    await _end_strays(owned, machines, pruning)
    await _remove_half_made(owned, pruning)
    await _remove_folders(owned, pruning)
    await _remove_runtime_files(owned, pruning)
    for path in sorted(paths.cluster_state_dir(owned.name).glob(".cluster.json.*")):
        await pruning.remove_path("file", path, "the writing of a record was interrupted")
    if owned.store.record is None:
        await _remove_the_rest(owned, pruning)


def _members(owned: Owned) -> list[MemberRecord]:
    return list(owned.store.record.members.values()) if owned.store.record else []


def _live(owned: Owned) -> dict[int, MemberRecord]:
    """Members whose machine the next holder will adopt, by pid."""
    return {m.handle.process.pid: m for m in _members(owned) if m.handle and is_alive(m.handle.process)}


async def _end_strays(owned: Owned, machines: Sequence[ProcessIdentity], pruning: Pruning) -> None:
    live = _live(owned)
    for stray in machines:
        if stray.pid not in live:

            async def end(stray: ProcessIdentity = stray) -> None:
                await end_process(stray)

            name = f"{stray.program} {stray.pid}"
            await pruning.remove("process", name, f"it runs on a disk of {owned.name}, and no record names it", end)


async def _remove_half_made(owned: Owned, pruning: Pruning) -> None:
    for member in _members(owned):
        if member.half_made:

            async def undo(member: MemberRecord = member) -> None:
                from fleetbox.holder.members import erase

                await erase(owned.name, member)
                await arrive("prune.erased")
                owned.store.drop_member(member.name)
                await owned.store.commit()

            await pruning.remove("member", f"{owned.name}/{member.name}", "it was half made", undo)
    if not pruning.dry_run and owned.store.record is not None and not owned.store.record.members:
        await owned.store.remove()


async def _remove_folders(owned: Owned, pruning: Pruning) -> None:
    """Members' folders that no record names. One with a disk in it may be somebody's: it is never removed."""
    known = {Path(m.folder) for m in _members(owned)}
    root = paths.cluster_data_dir(owned.name)
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if folder in known or not folder.is_dir():
            continue
        if folder.name == TEMPLATE_NAME:
            await pruning.remove_path("folder", folder, "the making of a template was interrupted")
        elif disks := [p.name for p in folder.glob("disk.*") if p.suffix != ".lock"]:
            pruning.keep(
                "folder", str(folder), f"no record names it, but {disks[0]} may be wanted: move it away by hand"
            )
        else:
            await pruning.remove_path("folder", folder, "no record names it, and there is no disk in it")


async def _remove_runtime_files(owned: Owned, pruning: Pruning) -> None:
    runtime = paths.cluster_runtime_dir(owned.name)
    if not runtime.is_dir():
        return
    live = _live(owned)
    for member in _members(owned):
        master = ssh.control_path(owned.name, member.name)
        if member not in live.values() and master.is_socket():
            await pruning.remove(
                "process",
                f"ssh to {owned.name}/{member.name}",
                "its machine has ended",
                partial(_end_master, member, owned),
            )
    if not live:
        await pruning.remove_path("runtime folder", runtime, f"nothing of {owned.name} runs")
        return
    for path in await asyncio.to_thread(stale_files, runtime, live):
        await pruning.remove_path("file", path, "the process that it led to has ended")


async def _end_master(member: MemberRecord, owned: Owned) -> None:
    from fleetbox.holder.members import close_master

    await close_master(owned.name, member.name)


async def _remove_the_rest(owned: Owned, pruning: Pruning) -> None:
    """Of a cluster without a record, remove what holds no disk."""
    await arrive("prune.gone")
    if not owned.made:

        async def remove() -> None:
            await asyncio.to_thread(shutil.rmtree, paths.cluster_state_dir(owned.name))

        await pruning.remove("folder", str(paths.cluster_state_dir(owned.name)), "its cluster does not exist", remove)
    if not pruning.dry_run:
        with contextlib.suppress(OSError):
            paths.cluster_data_dir(owned.name).rmdir()
