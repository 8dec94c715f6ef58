"""What a qcow2 file stands on, read from its header and replaced, never followed.

A file from elsewhere may name any file of this host there (QEMU's docs/interop/qcow2.txt), so whoever takes one in puts
it on a disk of ours, or on nothing, before anything opens it.
"""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

from fleetbox.backends.base import Disk
from fleetbox.backends.host import process
from fleetbox.backends.host.disk import disk_errors, refuse_foreign
from fleetbox.errors import DiskError

_HEADER_BYTES = 128 * 1024
_BACKING = struct.Struct(">QI")  # offset and length of the backing file's name, at byte 8
_BACKING_AT = 8
_NAME_MAX = 1023


def backing_name(path: Path) -> str:
    """The name that a qcow2 file's header gives for its backing file; empty for none, or for no qcow2 file.

    Raises DiskError when the file cannot be read.
    """
    with disk_errors(f"{path} cannot be read"), path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if len(header) < _BACKING_AT + _BACKING.size or header[:4] != b"QFI\xfb":
        return ""
    offset, length = _BACKING.unpack_from(header, _BACKING_AT)
    if not offset or length > _NAME_MAX or offset + length > len(header):
        return ""
    return header[offset : offset + length].decode(errors="replace")


def check_apart_from_backing(path: Path) -> None:
    """Raise DiskError unless the file is a whole qcow2 file that keeps its data itself, whatever it stands on."""
    with disk_errors(f"{path} cannot be read"), path.open("rb") as file:
        header = bytearray(file.read(_HEADER_BYTES))
    if len(header) < _BACKING_AT + _BACKING.size:
        raise DiskError(f"{path.name} is refused", why="it is no qcow2 file")
    _BACKING.pack_into(header, _BACKING_AT, 0, 0)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".header-") as alone:
        alone.write(header)
        alone.flush()
        if refuse_foreign(Path(alone.name)) != "qcow2":
            raise DiskError(f"{path.name} is refused", why="it is no qcow2 file")


def put_on(path: Path, base: Disk | None) -> None:
    """Make a qcow2 file that `check_apart_from_backing` has passed stand on `base`, or on nothing. Blocks.

    Raises DiskError.
    """
    with disk_errors(f"{path} cannot be changed"), path.open("r+b") as file:
        file.seek(_BACKING_AT)
        file.write(_BACKING.pack(0, 0))
    if base is None:
        return
    argv = ["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", base.format, "-b", str(base.path), str(path)]
    try:
        process.run_blocking(argv)
    except process.ProgramFailed as e:
        raise DiskError(f"{path.name} cannot be put on its base disk", why=e.why, details=e.details) from e
