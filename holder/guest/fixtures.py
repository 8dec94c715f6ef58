"""Fixtures: host folders packed into small read-only disks.

`mke2fs -d` builds an ext4 image without root and without mounting. The folder comes as it is: symbolic and hard links,
modes, extended attributes and the owners' numbers of the host; only the top folder is always root's with mode 0755.
Sockets, pipes and device nodes come as bare names: nothing is read from them, and the guest mounts with `nodev`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from fleetbox.backends.base import Disk
from fleetbox.backends.host import process
from fleetbox.backends.host.disk import disk_errors, free_space_preflight
from fleetbox.errors import DiskError, UsageError
from fleetbox.sizes import MIB
from fleetbox.specs import Fixture

_BLOCK_BYTES = 4096
_INODE_BYTES = 256
# mke2fs gives the top folder the mode of the host's, which is 0700 for a temporary one, and adds a folder of its own.
_FINISH = b"set_inode_field <2> mode 040755\nrmdir lost+found\n"
_LONGEST_S = 3600.0  # a long pack can be cancelled; this ends one that hangs


def label(guest: str) -> str:
    """The file system label (at most 16 characters) of the fixture that is shown at `guest`."""
    return "fb-" + hashlib.sha256(guest.encode()).hexdigest()[:13]


@dataclass(frozen=True)
class _Content:
    """What a folder needs in a file system: blocks and inodes; and the bytes that its data really takes."""

    blocks: int
    inodes: int
    data_bytes: int


async def pack(fixture: Fixture, image_path: Path, label: str) -> Disk:
    """Pack the fixture's folder as it is now; replaces `image_path` only when done. Cancelled, it leaves nothing new.

    Raises UsageError when the folder is missing or not all of it can be read, DiskError when there is no space for it
    or it changed meanwhile.
    """
    folder = Path(fixture.host)
    if image_path.resolve().is_relative_to(folder.resolve()):
        raise UsageError(
            f"the fixture {folder} holds fleetbox's own data",
            why=f"its disk would be packed into itself: {image_path}",
            hint="choose a folder without it, or move it with FLEETBOX_HOME",
        )
    content = await asyncio.to_thread(_measure, folder)
    free_space_preflight(image_path.parent, content.data_bytes + MIB)
    temporary = image_path.with_name(f".{image_path.name}.new")
    try:
        with disk_errors(f"the fixture {folder} cannot be packed"):
            temporary.touch(0o600)
            os.truncate(temporary, 0)
        await _make_file_system(folder, temporary, label, content)
        with disk_errors(f"the fixture {folder} cannot be packed"):
            temporary.replace(image_path)
    finally:
        temporary.unlink(missing_ok=True)
    return Disk(image_path, "raw", read_only=True, serial=label)


async def _make_file_system(folder: Path, image: Path, label: str, content: _Content) -> None:
    # The image is a sparse file, so a generous margin costs nothing: extents, attributes.
    inodes = content.inodes + content.inodes // 16 + 64
    blocks = content.blocks + content.blocks // 16 + inodes * _INODE_BYTES // _BLOCK_BYTES + 1024
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", str(_BLOCK_BYTES), "-I", str(_INODE_BYTES), "-N", str(inodes)]
    # Never written to: no journal, no room to grow, no reserve for root, nothing to initialise later. Checksums would
    # more than double the time: mke2fs goes through a folder's whole list of names for every file that it adds.
    argv += ["-m", "0", "-O", "^has_journal,^resize_inode,^metadata_csum", "-E", "root_owner=0:0,lazy_itable_init=1"]
    argv += ["-L", label, "-d", str(folder), str(image), str(blocks)]
    try:
        await process.run(argv, timeout_s=_LONGEST_S)
        await process.run(["debugfs", "-w", "-f", "-", str(image)], stdin=_FINISH)
    except process.ProgramFailed as e:
        full = os.strerror(28) in e.stderr
        raise DiskError(
            f"the fixture {folder} cannot be packed",
            why="the disk is full" if full else e.why,
            hint="free some space and try again" if full else "was it changed meanwhile? try again",
            details=e.details,
        ) from e


def _measure(folder: Path) -> _Content:
    blocks, inodes, data_bytes = 1, 1, 0
    folders = [folder]
    try:
        while folders:
            names_bytes = 0
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    info = entry.stat(follow_symlinks=False)
                    inodes += 1
                    names_bytes += 12 + len(os.fsencode(entry.name))
                    if stat.S_ISDIR(info.st_mode):
                        folders.append(Path(entry.path))
                    elif stat.S_ISREG(info.st_mode):
                        _check_readable(folder, entry.path)
                        blocks += -(-info.st_size // _BLOCK_BYTES)
                        data_bytes += min(info.st_size, info.st_blocks * 512)
                    else:
                        blocks += 1  # the target of a long symbolic link
            blocks += 2 + names_bytes * 2 // _BLOCK_BYTES
    except OSError as e:
        raise _unreadable(folder, e.filename, e.strerror or str(e)) from e
    return _Content(blocks, inodes, data_bytes)


def _check_readable(folder: Path, path: str) -> None:
    if not os.access(path, os.R_OK, effective_ids=True):
        raise _unreadable(folder, path, os.strerror(13))


def _unreadable(folder: Path, path: str, why: str) -> UsageError:
    return UsageError(
        f"the fixture {folder} cannot be read",
        why=f"{path}: {why}",
        hint="make all of it readable for this user, or choose another folder",
    )
