"""A disk image of anybody's making becomes the store's own: raw, sparse, whole, and referring to no other file.

A qcow2 header may name any file of the host as its backing or data file, and a raw disk may begin with a qcow2 header
that its guest wrote. So the format is read here, by magic number, and named to every program that opens the file.
"""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import msgspec

from fleetbox.backends.base import DiskFormat
from fleetbox.backends.host import process
from fleetbox.backends.host.files import worker
from fleetbox.backends.host.files.sparse import copy_file, digest_file
from fleetbox.backends.host.files.worker import Meter, OnEvent
from fleetbox.errors import ImageError
from fleetbox.holder.images.partitions import read_ext, read_partitions
from fleetbox.sizes import format_size

_QCOW2 = b"QFI\xfb"
_EXTERNAL_DATA_FILE = 1 << 2  # incompatible feature bit, docs/interop/qcow2.txt of QEMU
_FOREIGN = {
    b"KDMV": "a VMware disk",
    b"COWD": "a VMware disk",
    b"vhdxfile": "a VHDX disk",
    b"conectix": "a VHD disk",
    b"<<< ": "a VirtualBox disk",
    b"\x1f\x8b": "compressed by gzip",
    b"\xfd7zXZ\x00": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"BZh": "compressed by bzip2",
    b"PK\x03\x04": "a zip archive",
    b"LUKS\xba\xbe": "encrypted",
}
_HINT = "fleetbox takes raw and qcow2 disk images"


def probe(path: Path, name: str) -> DiskFormat:
    """The format of an image file, called `name` in errors.

    Raises ImageError for one that is missing, unreadable, empty, of another format, encrypted, or refers to another
    file.
    """
    if not path.exists():
        raise ImageError(f"there is no image file {name}", hint="check the path")
    if not path.is_file():
        raise ImageError(f"{name} is no image", why="it is not a regular file", hint=_HINT)
    try:
        with path.open("rb") as file:
            header = file.read(4096)
            size = os.fstat(file.fileno()).st_size
    except OSError as e:
        raise ImageError(f"{name} cannot be read", why=e.strerror or str(e), hint="check its owner and mode") from e
    if not header:
        raise ImageError(f"{name} is no image", why="it is empty", hint=_HINT)
    for magic, what in _FOREIGN.items():
        if header.startswith(magic):
            raise ImageError(f"{name} is no image that fleetbox can use", why=f"it is {what}", hint=_HINT)
    if header.startswith(_QCOW2):
        _check_qcow2(header, name)
        return "qcow2"
    _check_raw(path, name, size)
    return "raw"


def _check_qcow2(header: bytes, name: str) -> None:
    if len(header) < 104:
        raise ImageError(f"{name} is damaged", why="its qcow2 header is cut off", hint="fetch it again")
    version, backing = struct.unpack_from(">IQ", header, 4)
    encryption = struct.unpack_from(">I", header, 32)[0]
    features = struct.unpack_from(">Q", header, 72)[0] if version >= 3 else 0
    if version not in (2, 3):
        raise ImageError(f"{name} is no image that fleetbox can use", why=f"qcow2 version {version}", hint=_HINT)
    if backing or features & _EXTERNAL_DATA_FILE:
        raise ImageError(
            f"{name} is refused",
            why=f"its {'backing' if backing else 'external data'} file could be any file of this host",
            hint="flatten it where it comes from: qemu-img convert -O qcow2 IMAGE FLAT",
        )
    if encryption:
        raise ImageError(f"{name} is no image that fleetbox can use", why="it is encrypted", hint=_HINT)


def _check_raw(path: Path, name: str, size: int) -> None:
    """Raise ImageError when a raw disk holds neither partitions nor an ext file system, or less than they need."""
    whole = read_ext(path, 0)
    partitions = [] if whole else read_partitions(path)
    ends = [whole.size_bytes] if whole else [p.offset + p.size_bytes for p in partitions]
    if not ends:
        raise ImageError(
            f"{name} is no disk image", why="it holds neither a partition table nor an ext file system", hint=_HINT
        )
    if max(ends) > size or any(p.protective for p in partitions):
        raise ImageError(
            f"{name} is cut off",
            why=f"its file systems end at {format_size(max(ends))}, the file at {format_size(size)}"
            if max(ends) > size
            else "the end of its partition table is missing",
            hint="fetch it again",
        )


class StoringFailed(ImageError):
    """The image is good as far as is known, and could not be written: it may be tried again."""


async def to_raw(source: Path, target: Path, name: str, sha256: str, on_event: OnEvent) -> str:
    """Write `source` as a sparse raw disk to `target` and return that disk's sha256.

    `sha256`, when not empty, must be the digest of `source` itself. Raises ImageError as `probe` does, and for a wrong
    digest, a damaged image and a full disk. `target` is the caller's to remove then.
    """
    disk_format = await worker.run(lambda _: probe(source, name))
    meter = Meter(on_event, "import", name)
    try:
        if disk_format == "raw":
            digest = found = await worker.run(lambda stop: copy_file(source, target, stop, meter))
        else:
            found = await worker.run(lambda stop: digest_file(source, stop, meter)) if sha256 else ""
        if sha256 and found != sha256:
            raise ImageError(
                f"{name} is not the file that was asked for",
                why=f"its sha256 is {found}, not {sha256}",
                hint="check the digest, or fetch the file again",
            )
        if disk_format == "qcow2":
            await _flatten(source, target, name)
            await worker.run(lambda _: _check_raw(target, name, target.stat().st_size))
            digest = await worker.run(lambda stop: digest_file(target, stop, meter))
    except OSError as e:
        raise storing_failed(e, name, target.parent) from e
    return digest


async def _flatten(source: Path, target: Path, name: str) -> None:
    # `backing: null` keeps QEMU from opening a backing file even if the file changed since it was probed.
    described = msgspec.json.encode(
        {"driver": "qcow2", "backing": None, "file": {"driver": "file", "filename": str(source)}}
    ).decode()
    try:
        await process.run(["qemu-img", "check", "-q", f"json:{described}"], timeout_s=600)
    except process.ProgramFailed as e:
        if e.returncode != 3:  # leaked clusters cost space and nothing else
            raise ImageError(f"{name} is damaged", why=e.why, hint="fetch it again", details=e.details) from e
    try:
        argv = ["qemu-img", "convert", "-q", "-O", "raw", "-S", "64k", f"json:{described}", str(target)]
        await process.run(argv, timeout_s=3600)
    except process.ProgramFailed as e:
        if os.strerror(errno.ENOSPC) in e.stderr:
            raise storing_failed(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), name, target.parent) from e
        raise ImageError(f"{name} cannot be converted", why=e.why, hint="fetch it again", details=e.details) from e


def storing_failed(error: OSError, name: str, folder: Path) -> StoringFailed:
    """The error for an image that could not be written into the store."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return StoringFailed(
        f"{name} cannot be stored",
        why=error.strerror or str(error),
        hint=f"free some space in {folder} and try again; nothing was changed" if full else f"check {folder}",
    )
