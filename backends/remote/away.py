"""Where a disk is: here, or with the helper that a machine runs on it.

While a machine runs, its disk is the helper's copy, and the file here is what it was at the launch. A note beside the
file says so, with the launch that has it. It is written before the helper is asked and goes once the disk has come
home, so that no crash on either side passes an old disk off as the newest, or a disk of another life as this one's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from fleetbox.backends.host.disk import disk_errors
from fleetbox.errors import DiskError

Stage = Literal["starting", "away"]


class Away(msgspec.Struct, frozen=True):
    """The note. `starting`: the helper may not have begun, then the file here is the newest; `away`: it has."""

    machine: str
    generation: str
    stage: Stage
    index: int


def note_of(disk: Path) -> Path:
    """Where the note of a disk stands."""
    return disk.with_name(f".{disk.name}.away")


def read(disk: Path) -> Away | None:
    """The note of a disk, None when it is at home. Raises DiskError when it cannot be understood."""
    with disk_errors(f"{note_of(disk)} cannot be read"):
        try:
            data = note_of(disk).read_bytes()
        except FileNotFoundError:
            return None
    try:
        return msgspec.json.decode(data, type=Away)
    except msgspec.DecodeError as e:
        raise DiskError(
            f"{note_of(disk)} cannot be understood", why=str(e), hint="where the disk is stands in it"
        ) from e


def write(disk: Path, away: Away) -> None:
    """Say that the disk is away; on disk when this returns. Blocks; raises DiskError."""
    note = note_of(disk)
    temporary = note.with_name(f"{note.name}.new")
    with disk_errors(f"{note} cannot be written"):
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(away))
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(note)
        sync_folder(disk.parent)


def clear(disk: Path) -> None:
    """Say that the disk is at home."""
    note_of(disk).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder last. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
