"""The qcow2 files of a snapshot: what they stand on, and making them stand on our blobs.

Where a foreign file's header says it stands is never followed, only replaced (`fleetbox.backends.host.backing`).
"""

from __future__ import annotations

import re
from pathlib import Path

from fleetbox.backends.base import Disk
from fleetbox.backends.host.backing import backing_name, check_apart_from_backing, put_on
from fleetbox.errors import DiskError
from fleetbox.holder.snapshots.store import blob_path
from fleetbox.snapshot import Blob

_BLOB = re.compile(r"([0-9a-f]{64})\.(?:raw|qcow2)")


def backing_digest(path: Path) -> str:
    """Digest of the blob that our own qcow2 file stands on, empty for none.

    Raises DiskError when it stands on something else.
    """
    name = backing_name(path)
    found = _BLOB.fullmatch(name.rpartition("/")[2])
    if name and not found:
        raise DiskError(f"the disk {path} stands on {name}", why="that is no base disk of fleetbox")
    return found[1] if found else ""


def rebase(path: Path, blob: Blob | None) -> bool:
    """Make a qcow2 file from outside stand on `blob`, or on nothing; returns whether that changed it. Blocks.

    Raises DiskError for a file that is no qcow2, is damaged, encrypted, or keeps its data elsewhere.
    """
    check_apart_from_backing(path)
    named = backing_name(path)
    # A relative name is resolved from the file's own folder, which for a template's disk is that of its blob.
    if named == (str(blob_path(blob)) if blob else ""):
        return False
    if blob and path.parent.name == "blobs" and named == blob_path(blob).name:
        return False
    put_on(path, Disk(blob_path(blob), blob.format, read_only=True) if blob else None)
    return True
