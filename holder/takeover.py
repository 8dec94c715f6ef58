"""Taking over from a holder that is dead: its machines are adopted, what it left half made is rolled back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from fleetbox import paths
from fleetbox.faultpoint import arrive
from fleetbox.holder.folders import remove_folder, remove_run_files
from fleetbox.holder.images.library import ImageLibrary
from fleetbox.holder.members import Members, erase
from fleetbox.holder.orphans import end_machine, end_process, find_orphans, has_machine
from fleetbox.holder.provision import remove_slot
from fleetbox.holder.store import ClusterStore
from fleetbox.identity import boot_id
from fleetbox.records import MemberRecord, MemberState
from fleetbox.specs import TEMPLATE_NAME

log = logging.getLogger(__name__)


async def take_over(
    store: ClusterStore, cluster: str, images: ImageLibrary, connect: Callable[[], Awaitable[Members]]
) -> None:
    """Adopt what an earlier holder left running; roll back what it left half made.

    `connect` takes its network over; it is called only when a machine runs. Raises HostError or NetworkError when that
    cannot be done.
    """
    record = store.record
    orphans = await asyncio.to_thread(find_orphans, cluster, record)
    await arrive("takeover.orphans")
    for orphan in orphans:
        log.warning("%s %d runs a machine that no record names: ended", orphan.program, orphan.pid)
        await end_process(orphan)
    await remove_folder(paths.member_dir(cluster, TEMPLATE_NAME))
    remove_run_files(cluster, TEMPLATE_NAME)
    for unfinished in paths.cluster_state_dir(cluster).glob(".*.*"):  # the writing of a record was interrupted
        unfinished.unlink(missing_ok=True)
    if record is None:
        return
    for member in record.members.values():
        if member.state is MemberState.CREATING:
            await arrive("takeover.rollback")
            log.warning("%s was half made by an earlier holder: rolled back", member.name)
            await erase(cluster, member)
            store.drop_member(member.name)
    alive = [m for m in store.current.members.values() if await asyncio.to_thread(has_machine, cluster, m)]
    members = await _adopt(alive, images, connect) if alive else None
    for member in list(store.current.members.values()):
        # What an interrupted restore has left of the machine in the other slot, which was an orphan.
        await asyncio.to_thread(remove_slot, member, 1 - member.slot)
        remove_run_files(cluster, member.name, 1 - member.slot)
        if members is not None:
            await members.network.detach(member.name, 1 - member.slot)
        if members is None or member.name not in members.machines:
            remove_run_files(cluster, member.name)
            error = member.error or _how_it_ended(member)
            store.change_member(member.name, state=MemberState.STOPPED, handle=None, error=error)
    await arrive("takeover.commit")
    await store.commit()


async def _adopt(alive: list[MemberRecord], images: ImageLibrary, connect: Callable[[], Awaitable[Members]]) -> Members:
    members = await connect()
    await arrive("takeover.network")
    await members.network.release(TEMPLATE_NAME)
    for member in alive:
        await arrive("takeover.adopt")
        image = images.inspect(member.image_digest) if member.image_digest else None
        if not await members.adopt(member, image):
            await end_machine(members.provisioner.cluster, member)
        await arrive("takeover.adopted")
    return members


def _how_it_ended(member: MemberRecord) -> str:
    """Why a member is stopped that no holder has seen stop."""
    if member.state is MemberState.STOPPED:
        return ""
    if member.handle is not None and member.handle.process.boot_id != boot_id():
        return "the host was restarted"
    return "it ended while no holder was there"
