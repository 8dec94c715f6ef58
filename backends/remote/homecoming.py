"""Bringing what a machine wrote back from the helper: its disks, and the files of its snapshots."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Container, Iterable
from pathlib import Path

from fleetbox.backends.base import Disk, VMConfig, timeout_scale
from fleetbox.backends.host.backing import backing_name, check_apart_from_backing, put_on
from fleetbox.backends.host.disk import disk_errors
from fleetbox.backends.remote import away
from fleetbox.backends.remote.link import Link
from fleetbox.backends.remote.wire import Act, Told, Which
from fleetbox.errors import DiskError
from fleetbox.names import new_id

WATCHER_GOES_S = 2.0


def writable(config: VMConfig) -> list[tuple[int, Disk]]:
    """The machine's disks that it writes to, each with its number."""
    return [(number, disk) for number, disk in enumerate(config.disks) if not disk.read_only]


async def fetch_disk(link: Link, machine: str, number: int, disk: Disk) -> None:
    """Make the disk's file here what the helper's is now; it stands on the same base as before.

    The old file stays until the new one is whole. Raises HolderError, DiskError.
    """
    temporary = disk.path.with_name(f".{disk.path.name}.{new_id()}.new")
    try:
        await link.fetch_file(f"/v1/machines/{machine}/disks/{number}", temporary)
        await asyncio.to_thread(_put_in_place, temporary, disk)
    finally:
        temporary.unlink(missing_ok=True)


def _put_in_place(temporary: Path, disk: Disk) -> None:
    if disk.format == "qcow2":
        check_apart_from_backing(temporary)
        name = backing_name(disk.path)
        base = disk.path.parent / name if name else None
        put_on(temporary, Disk(base, "qcow2" if base.suffix == ".qcow2" else "raw", read_only=True) if base else None)
    with disk_errors(f"the disk {disk.path} cannot be replaced"):
        temporary.rename(disk.path)
        away.sync_folder(disk.path.parent)


async def settle(link: Link, disks: Iterable[Disk], running: Container[str] = ()) -> None:
    """Make sure that each of these disks is here as it was written last, and that no machine runs on it.

    What an earlier holder has left with the helper is ended there, when it still runs, and brought home. `running` are
    the launches that this process follows.

    Raises HolderError, and DiskError when a machine uses the disk or the helper does not know the one that has it.
    """
    for disk in disks:
        note = away.read(disk.path)
        if note is None:
            continue
        told = await _settled(link, note, disk, running)
        if told is not None:
            await fetch_disk(link, note.machine, note.index, disk)
        elif note.stage == "away":
            raise DiskError(
                f"the newest state of the disk {disk.path} is not here",
                why=f"a machine ran on it with a remote helper, and that at {link.path} does not know it",
                hint=f"start the helper with the folder that it had then; or remove {away.note_of(disk.path)} to go on "
                "with the disk as it was before",
            )
        away.clear(disk.path)
        if told is not None:
            await link.order("forget", Act(note.machine, note.generation))


def is_abandoned(told: Told) -> bool:
    """Whether no note names the launch: its member was destroyed while nobody could tell the helper.

    Every machine has a note beside its disk from before its launch until its disk is home.
    """
    notes = [away.read(Path(origin)) for origin in told.origins]
    return all(note is None or note.generation != told.generation for note in notes)


async def discard(link: Link, told: Told) -> None:
    """End a machine and give its disk up."""
    act = Act(told.machine, told.generation)
    await link.order("kill", act)
    await link.order("forget", act)


async def discard_earlier(link: Link, machine: str, running: Container[str]) -> None:
    """Make room for a machine where the helper has one of an earlier life, whose disk nobody has any more."""
    told: Told | None = await link.call("find", Which(machine), Told | None)
    if told is not None and told.generation not in running and not told.watched and is_abandoned(told):
        await discard(link, told)


async def _settled(link: Link, note: away.Away, disk: Disk, running: Container[str]) -> Told | None:
    """What the helper knows of the launch that has the disk, once it does not run any more."""
    deadline = asyncio.get_running_loop().time() + WATCHER_GOES_S * timeout_scale()
    while True:
        told: Told | None = await link.call("find", Which(note.machine), Told | None)
        if told is None or told.generation != note.generation:
            return None
        if told.end is not None:
            return told
        followed = told.watched and asyncio.get_running_loop().time() >= deadline
        if note.generation in running or followed:
            raise DiskError(
                f"the disk {disk.path} is in use",
                why=f"{told.name} runs on it with the remote helper",
                hint="two machines on one disk would destroy it; stop the one that uses it first",
            )
        if told.watched:  # by a holder that has just died, most likely
            await asyncio.sleep(0.1)
        else:
            await link.order("kill", Act(note.machine, note.generation))


SAVED_FILE = re.compile(r"[a-z][a-z0-9.]{0,31}")


async def fetch_saved(link: Link, machine: str, folder: Path, names: Iterable[str]) -> None:
    """Bring a snapshot's files into `folder`. Raises HolderError, DiskError."""
    for name in names:
        if not SAVED_FILE.fullmatch(name):
            raise DiskError(f"the remote helper offers a file {name!r}", why="no snapshot has such a file")
        await link.fetch_file(f"/v1/machines/{machine}/saved/{name}", folder / name)
