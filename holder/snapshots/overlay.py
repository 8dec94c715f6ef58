"""The qcow2 files of a snapshot: what they stand on, and making them stand on our blobs.

Where a foreign file's header says it stands is never followed, only replaced (QEMU's docs/interop/qcow2.txt).
"""

from __future__ import annotations

import re
import struct
import tempfile
from pathlib import Path

from fleetbox.backends.host import process
from fleetbox.backends.host.disk import disk_errors, refuse_foreign
from fleetbox.errors import DiskError
from fleetbox.holder.snapshots.store import blob_path
from fleetbox.snapshot import Blob

_HEADER_BYTES = 128 * 1024
_BACKING = struct.Struct(">QI")  # offset and length of the backing file's name, at byte 8
_BACKING_AT = 8
_NAME_MAX = 1023
_BLOB = re.compile(r"([0-9a-f]{64})\.(?:raw|qcow2)")


def backing_digest(path: Path) -> str:
    """Digest of the blob that our own qcow2 file stands on, empty for none.

    Raises DiskError when it stands on something else.
    """
    name = _backing_name(path)
    found = _BLOB.fullmatch(name.rpartition("/")[2])
    if name and not found:
        raise DiskError(f"the disk {path} stands on {name}", why="that is no base disk of fleetbox")
    return found[1] if found else ""


def rebase(path: Path, blob: Blob | None) -> bool:
    """Make a qcow2 file from outside stand on `blob`, or on nothing; returns whether that changed it. Blocks.

    Raises DiskError for a file that is no qcow2, is damaged, encrypted, or keeps its data elsewhere.
    """
    with disk_errors(f"{path} cannot be read"), path.open("rb") as file:
        header = bytearray(file.read(_HEADER_BYTES))
    if len(header) < _BACKING_AT + _BACKING.size:
        raise DiskError(f"{path.name} is refused", why="it is no qcow2 file")
    wanted = str(blob_path(blob)) if blob else ""
    named = _backing_name(path)
    _BACKING.pack_into(header, _BACKING_AT, 0, 0)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".header-") as alone:
        alone.write(header)
        alone.flush()
        if refuse_foreign(Path(alone.name)) != "qcow2":
            raise DiskError(f"{path.name} is refused", why="it is no qcow2 file")
    # A relative name is resolved from the file's own folder, which for a template's disk is that of its blob.
    if named == wanted or (blob and path.parent.name == "blobs" and named == blob_path(blob).name):
        return False
    with disk_errors(f"{path} cannot be changed"), path.open("r+b") as file:
        file.seek(_BACKING_AT)
        file.write(_BACKING.pack(0, 0))
    if blob:
        argv = ["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", blob.format, "-b", wanted, str(path)]
        try:
            process.run_blocking(argv)
        except process.ProgramFailed as e:
            raise DiskError(f"{path.name} cannot be put on its base disk", why=e.why, details=e.details) from e
    return True


def _backing_name(path: Path) -> str:
    with disk_errors(f"{path} cannot be read"), path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if len(header) < _BACKING_AT + _BACKING.size or header[:4] != b"QFI\xfb":
        return ""
    offset, length = _BACKING.unpack_from(header, _BACKING_AT)
    if not offset or length > _NAME_MAX or offset + length > len(header):
        return ""
    return header[offset : offset + length].decode(errors="replace")
