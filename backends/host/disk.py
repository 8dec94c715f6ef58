"""Disks: made from immutable bases at the lowest cost, grown, looked into, and refused when they reach outside.

Every disk is opened with its format named, never probed: a guest can write a qcow2 header into a raw disk, and a prober
would then follow its backing file into the host (design §8).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import struct
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fleetbox.backends.base import Disk, DiskFormat
from fleetbox.backends.host import process
from fleetbox.errors import DiskError
from fleetbox.faultpoint import arrive
from fleetbox.sizes import MIB, format_size

SECTOR_BYTES = 512

# A write of a few KiB into a plain overlay copies the rest of its 64 KiB cluster from the base. With subclusters it
# copies nothing: 4,000 scattered 4 KiB writes took 0.21 s and 17 MB instead of 0.62 s and 257 MB. No lazy_refcounts:
# they save little with the writeback cache, and a killed machine's disk would need a repair before it is opened again.
_QCOW2_OPTIONS = "cluster_size=128k,extended_l2=on"

_FICLONE = 0x40049409  # ioctl_ficlone(2)
_COPY_CHUNK_BYTES = 64 * MIB

_QCOW2_MAGIC = b"QFI\xfb"
_EXTENSION_EXTERNAL_DATA = 0x44415441
_INCOMPATIBLE_CORRUPT = 1 << 1
_INCOMPATIBLE_EXTERNAL_DATA = 1 << 2


@dataclass(frozen=True)
class DiskInfo:
    """`virtual_bytes` is what the guest sees, `allocated_bytes` what the host gave; `backing` is what it stands on."""

    virtual_bytes: int
    allocated_bytes: int
    backing: Path | None


@contextlib.contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn an OSError inside the block into a DiskError that says `what` could not be done."""
    try:
        yield
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        raise DiskError(
            what,
            why="the disk is full" if full else e.strerror or str(e),
            hint="free some space and try again" if full else "check the path's owner, mode and file system",
        ) from e


def free_space_preflight(folder: Path, needed_bytes: int) -> None:
    """Raise DiskError when the file system of `folder` is read-only, or has less than `needed_bytes` free for this
    user.
    """
    with disk_errors(f"{folder} cannot be used"):
        found = os.statvfs(folder)
    if found.f_flag & os.ST_RDONLY:
        raise DiskError(
            f"{folder} cannot be written",
            why="its file system is read-only",
            hint="remount it, or set FLEETBOX_HOME to another folder",
        )
    free_bytes = found.f_bavail * found.f_frsize
    if free_bytes < needed_bytes:
        raise DiskError(
            f"there is too little space in {folder}",
            why=f"{format_size(needed_bytes)} are needed, {format_size(free_bytes)} are free",
            hint="free some space, or move the data folder with XDG_DATA_HOME or FLEETBOX_HOME",
        )


async def make_disk(base: Disk | Path, target_folder: Path, size_bytes: int, formats: Collection[DiskFormat]) -> Disk:
    """A writable disk `disk.qcow2` or `disk.raw` in `target_folder` that begins as `base`; a plain path is a raw disk.

    A qcow2 overlay where `formats` has it (or the base is one), else a reflink where the file system can, else a sparse
    copy. `size_bytes` 0 keeps the base's size. Appears whole or not at all; cancelled, it leaves nothing.

    Raises DiskError when there is a disk already, the base is not there or larger than `size_bytes`, or space is short.
    """
    if isinstance(base, Path):
        base = Disk(base, "raw")
    if base.format == "qcow2":
        base_bytes = (await disk_info(base)).virtual_bytes
    else:
        with disk_errors(f"the base disk {base.path} cannot be read"):
            base_bytes = base.path.stat().st_size
    virtual_bytes = _sectors(size_bytes or base_bytes)
    if virtual_bytes < base_bytes:
        raise _shrinking(target_folder, base_bytes, virtual_bytes)
    kind: DiskFormat = "qcow2" if "qcow2" in (*formats, base.format) else "raw"
    disk = Disk(target_folder / f"disk.{kind}", kind)
    if disk.path.exists():
        raise DiskError(
            f"there is a disk {disk.path} already",
            why="a member's disk is never overwritten",
            hint="destroy the member it belongs to, or move the file away",
        )
    temporary = unfinished(disk.path)
    try:
        if kind == "qcow2":
            await _overlay(base, temporary, virtual_bytes)
        else:
            await _copy(base.path, temporary, virtual_bytes)
        with disk_errors(f"the disk {disk.path} cannot be made"):
            temporary.rename(disk.path)
    finally:
        temporary.unlink(missing_ok=True)
    return disk


def unfinished(path: Path) -> Path:
    """Where a disk is while it is being made; a crash may leave it."""
    return path.with_name(f".{path.name}.new")


async def copy_disk(source: Path, target: Path) -> None:
    """Copy a disk's file: a reflink where the file system can, else a sparse copy.

    Appears whole or not at all; cancelled, it leaves nothing. An overlay names its base by an absolute path, so that
    its copy stands on the same one. Raises DiskError.
    """
    temporary = unfinished(target)
    try:
        await arrive("disk.copy")
        with disk_errors(f"the disk {source} cannot be copied"):
            size_bytes = source.stat().st_size
        await _copy(source, temporary, size_bytes)
        await arrive("disk.land")
        with disk_errors(f"the disk {target} cannot be made"):
            temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)


async def grow_disk(disk: Disk, size_bytes: int) -> None:
    """Make a disk that no machine uses at least `size_bytes` large for its guest.

    Raises DiskError when it is larger already (shrinking would cut the guest's file system off), or is in use.
    """
    current_bytes, wanted_bytes = (await disk_info(disk)).virtual_bytes, _sectors(size_bytes)
    if wanted_bytes < current_bytes:
        raise _shrinking(disk.path, current_bytes, wanted_bytes)
    if wanted_bytes > current_bytes:
        await _qemu_img(
            ["resize", "-q", "-f", disk.format, str(disk.path), str(wanted_bytes)],
            f"the disk {disk.path} cannot be grown",
        )


async def disk_info(disk: Disk) -> DiskInfo:
    """Sizes and backing file of a disk, also while a machine runs on it. Raises DiskError when it cannot be read."""
    output = await _qemu_img(
        ["info", "--force-share", "--output=json", "-f", disk.format, str(disk.path)],
        f"the disk {disk.path} cannot be read",
    )
    found = msgspec.json.decode(output, type=_Info)
    backing = found.full_backing_filename or found.backing_filename
    return DiskInfo(found.virtual_size, found.actual_size, Path(backing) if backing else None)


def refuse_foreign(path: Path) -> DiskFormat:
    """The format of a file that came from outside, once it is sure to hold all of its data itself.

    Reads the header only (QEMU's docs/interop/qcow2.txt). Without the qcow2 magic it is raw.

    Raises DiskError for a qcow2 file that is damaged, encrypted, or points at other files: a guest would see those.
    """
    with disk_errors(f"{path} cannot be read"), path.open("rb") as file:
        header = file.read(128 * 1024)
    if not header.startswith(_QCOW2_MAGIC):
        return "raw"
    reason = _qcow2_objection(header)
    if reason:
        raise DiskError(
            f"the qcow2 file {path} is refused",
            why=reason,
            hint="make a self-contained copy where it came from: qemu-img convert -O qcow2 OLD NEW",
        )
    return "qcow2"


def _qcow2_objection(header: bytes) -> str:
    try:
        version, backing_offset = struct.unpack_from(">IQ", header, 4)
        (encryption,) = struct.unpack_from(">I", header, 32)
        if version not in (2, 3):
            return f"its version {version} is not 2 or 3"
        if backing_offset:
            return "it stands on a backing file"
        if encryption:
            return "it is encrypted"
        if version == 2:
            header_bytes = 72
        else:
            (incompatible,) = struct.unpack_from(">Q", header, 72)
            (header_bytes,) = struct.unpack_from(">I", header, 100)
            if incompatible & _INCOMPATIBLE_EXTERNAL_DATA:
                return "its data is in another file"
            if incompatible & _INCOMPATIBLE_CORRUPT:
                return "it is marked as corrupt"
        offset = header_bytes
        while (extension := struct.unpack_from(">II", header, offset))[0]:
            if extension[0] == _EXTENSION_EXTERNAL_DATA:
                return "it names another file for its data"
            offset += 8 + (extension[1] + 7) // 8 * 8
    except struct.error:
        return "its header is cut off"
    return ""


class _Info(msgspec.Struct, rename="kebab"):
    virtual_size: int
    actual_size: int = 0
    backing_filename: str = ""
    full_backing_filename: str = ""


def _sectors(size_bytes: int) -> int:
    return -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES


def _shrinking(path: Path, current_bytes: int, wanted_bytes: int) -> DiskError:
    return DiskError(
        f"the disk in {path} cannot shrink" if path.is_dir() else f"the disk {path} cannot shrink",
        why=f"it has {format_size(current_bytes)}, {format_size(wanted_bytes)} are asked for",
        hint=f"leave --disk out, or ask for {format_size(current_bytes)} or more",
    )


async def _qemu_img(arguments: list[str], what: str) -> bytes:
    try:
        return await process.run(["qemu-img", *arguments], timeout_s=300.0)
    except process.ProgramFailed as e:
        in_use = "lock" in e.stderr
        full = os.strerror(errno.ENOSPC) in e.stderr
        raise DiskError(
            what,
            why="a machine is using it" if in_use else "the disk is full" if full else e.why,
            hint="stop the machine first" if in_use else "free some space and try again" if full else "",
            details=e.details,
        ) from e


async def _overlay(base: Disk, target: Path, virtual_bytes: int) -> None:
    free_space_preflight(target.parent, 4 * MIB)
    # The backing file's name stands in the overlay and is resolved from the overlay's folder: it must be absolute. A
    # comma or colon in a path is safe here: these are plain file names, not option strings.
    await _qemu_img(
        [
            *("create", "-q", "-f", "qcow2", "-F", base.format, "-b", str(base.path.absolute())),
            *("-o", _QCOW2_OPTIONS, str(target), str(virtual_bytes)),
        ],
        f"an overlay on {base.path} cannot be made in {target.parent}",
    )
    target.chmod(0o600)


async def _copy(base: Path, target: Path, virtual_bytes: int) -> None:
    stop = threading.Event()
    task = asyncio.ensure_future(asyncio.to_thread(_copy_blocking, base, target, virtual_bytes, stop))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.gather(task, return_exceptions=True)
        raise


def _copy_blocking(base: Path, target: Path, virtual_bytes: int, stop: threading.Event) -> None:
    with (
        disk_errors(f"{base} cannot be copied to {target.parent}"),
        base.open("rb") as source,
        os.fdopen(os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as copy,
    ):
        try:
            fcntl.ioctl(copy, _FICLONE, source.fileno())
        except OSError:  # another file system, or one without reflinks
            info = os.fstat(source.fileno())
            free_space_preflight(target.parent, min(info.st_blocks * 512, info.st_size))
            for start, end in data_extents(source.fileno(), info.st_size):
                _copy_range(source.fileno(), copy.fileno(), start, end, stop)
        copy.truncate(virtual_bytes)


def data_extents(fd: int, size_bytes: int, begin: int = 0) -> Iterator[tuple[int, int]]:
    """Where a file has data from `begin` on, as (start, end) offsets; the rest is holes."""
    end = begin
    while end < size_bytes:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def _copy_range(source: int, copy: int, start: int, end: int, stop: threading.Event) -> None:
    while start < end and not stop.is_set():
        os.lseek(copy, start, os.SEEK_SET)
        copied = os.sendfile(copy, source, start, min(end - start, _COPY_CHUNK_BYTES))
        if copied == 0:
            raise OSError(errno.EIO, "the base became shorter while it was copied")
        start += copied
