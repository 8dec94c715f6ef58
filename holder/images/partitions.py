"""Where the file systems of a raw disk lie, and what an ext superblock says, read without mounting anything."""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fleetbox.backends.host.process import ProgramFailed, run_blocking

_EXT_MAGIC = 0xEF53
_SUPERBLOCK = 1024  # "Disk layout" of the kernel's ext4 documentation
_INCOMPAT_64BIT = 0x80


@dataclass(frozen=True)
class Partition:
    """A part of a disk. A `protective` one only guards a GPT: seeing it means that the GPT itself is damaged."""

    offset: int
    size_bytes: int
    protective: bool = False


@dataclass(frozen=True)
class ExtFilesystem:
    """An ext2, ext3 or ext4 file system at `offset` of a disk."""

    offset: int
    size_bytes: int
    uuid: str


class _Row(msgspec.Struct):
    start: int
    size: int
    type: str = ""


class _Table(msgspec.Struct):
    partitions: list[_Row] = msgspec.field(default_factory=list)
    sectorsize: int = 512


class _Sfdisk(msgspec.Struct):
    partitiontable: _Table


def read_partitions(disk: Path) -> list[Partition]:
    """The partitions in order of number; empty when there is no partition table."""
    try:
        table = msgspec.json.decode(run_blocking(["sfdisk", "--json", str(disk)]), type=_Sfdisk).partitiontable
    except (ProgramFailed, msgspec.DecodeError):
        return []
    return [
        Partition(row.start * table.sectorsize, row.size * table.sectorsize, row.type == "ee")
        for row in table.partitions
    ]


def read_ext(disk: Path, offset: int) -> ExtFilesystem | None:
    """The ext file system that begins at `offset`, None when there is none."""
    with disk.open("rb") as file:
        file.seek(offset + _SUPERBLOCK)
        block = file.read(1024)
    if len(block) < 1024 or struct.unpack_from("<H", block, 0x38)[0] != _EXT_MAGIC:
        return None
    blocks, log_block_size = struct.unpack_from("<I", block, 0x4)[0], struct.unpack_from("<I", block, 0x18)[0]
    if struct.unpack_from("<I", block, 0x60)[0] & _INCOMPAT_64BIT:
        blocks |= struct.unpack_from("<I", block, 0x150)[0] << 32
    return ExtFilesystem(offset, blocks << (10 + min(log_block_size, 6)), str(uuid.UUID(bytes=block[0x68:0x78])))


def read_filesystems(disk: Path) -> list[ExtFilesystem]:
    """The ext file systems of a partitioned or a whole-disk image, in order of partition."""
    whole = read_ext(disk, 0)
    if whole:
        return [whole]
    found = (read_ext(disk, partition.offset) for partition in read_partitions(disk))
    return [filesystem for filesystem in found if filesystem]
