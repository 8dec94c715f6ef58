"""Snapshots as a stream: written and read front to back, without seeking and without an intermediate file.

See `header` for the format. What comes in is written to staging folders, and becomes a snapshot only once the stream
has ended as it should and every digest is right.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from fleetbox import paths
from fleetbox.backends.host.disk import disk_errors, free_space_preflight
from fleetbox.backends.host.files.sparse import digest_file
from fleetbox.backends.host.files.worker import Meter, Stop
from fleetbox.errors import SnapshotError
from fleetbox.holder.images.store import ImageRecord, ImageStore
from fleetbox.holder.snapshots import overlay
from fleetbox.holder.snapshots.extents import extents
from fleetbox.holder.snapshots.header import (
    FORMAT,
    HEADER_MAX_BYTES,
    Entry,
    Header,
    check_size,
    parse,
    refused,
)
from fleetbox.holder.snapshots.store import RECORD, SnapshotStore, blob_path, check_identity
from fleetbox.holder.snapshots.tarstream import Reader, Writer, read_extents
from fleetbox.names import new_id
from fleetbox.snapshot import Blob, Snapshot

DIGEST = "snapshot.sha256"


# --- out


def export(snapshot: Snapshot, fd: int, stop: Stop, meter: Meter | None = None) -> None:
    """Write the snapshot, with the images and base disks that it rests on, to an open file or pipe. Blocks.

    Raises SnapshotError when something of it is missing, DiskError when it cannot be read or written.
    """
    store, images = SnapshotStore(), ImageStore()
    sources: dict[str, Path] = {}
    records = []
    for digest in snapshot.images:
        record = images.find(digest)
        if record is None:
            raise _lost(snapshot, f"the image {digest[:12]}")
        records.append(msgspec.structs.replace(record, names=()))
        image = images.image(record)
        sources |= {f"images/{digest}/{Path(part).name}": Path(part) for part in (image.kernel, image.initrd) if part}
    sources |= {f"blobs/{blob_path(blob).name}": blob_path(blob) for blob in snapshot.blobs}
    folder = store.folder(snapshot)
    sources |= {f"members/{file.path}": folder / file.path for file in snapshot.files}
    writer = Writer(fd, stop, meter)
    with disk_errors(f"the snapshot {snapshot.name or snapshot.id} cannot be read"):
        try:
            writer.total = 2 * sum(path.stat().st_blocks * 512 for path in sources.values())
            entries = tuple(_entry(name, path, writer) for name, path in sources.items())
        except FileNotFoundError as e:
            raise _lost(snapshot, str(e.filename)) from None
    carried = msgspec.structs.replace(snapshot, bound_to="", folder="")
    data = msgspec.json.encode(Header(FORMAT, carried, tuple(records), entries))
    with disk_errors("the archive cannot be written"):
        writer.member(RECORD, data)
        writer.member(DIGEST, f"{hashlib.sha256(data).hexdigest()}\n".encode())
        for entry in entries:
            writer.file(entry, sources[entry.path])
        writer.end()


def _lost(snapshot: Snapshot, what: str) -> SnapshotError:
    return SnapshotError(
        f"the snapshot {snapshot.name or snapshot.id} is not whole",
        why=f"{what} is gone",
        hint="bring it back; until then the snapshot cannot be used",
    )


def _entry(name: str, path: Path, writer: Writer) -> Entry:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        found = tuple(extents(file.fileno(), size))
        for data in read_extents(file.fileno(), found):
            digest.update(data)
            writer.moved(len(data))
    backing = overlay.backing_digest(path) if path.suffix == ".qcow2" else ""
    return Entry(name, size, digest.hexdigest(), found, backing)


# --- in


class Incoming:
    """An archive that is being read: `inspect` it first, then `land` it. Both block, in any thread."""

    def __init__(self, fd: int, max_bytes: int = 0) -> None:
        self._reader = Reader(fd)
        self._max_bytes = max_bytes
        self._header: Header | None = None

    def inspect(self, stop: Stop) -> Snapshot:
        """What the archive holds; nothing has been written. Raises SnapshotError for one that is not taken."""
        self._reader.stop = stop
        data = self._reader.small(RECORD, HEADER_MAX_BYTES)
        said = self._reader.small(DIGEST, 128)
        if said != f"{hashlib.sha256(data).hexdigest()}\n".encode():
            raise refused("its header is damaged")
        self._header = parse(data)
        check_size(self._header.files, self._max_bytes)
        return self._header.snapshot

    def land(self, identity: Mapping[str, str], name: str, stop: Stop, meter: Meter | None = None) -> Snapshot:
        """Make the archive a snapshot of this installation and return its record.

        `identity` is what this host's backend says of itself. `name` replaces the snapshot's own; without it, a name
        that is taken gets a number. Raises SnapshotError, HostError, ConflictError, DiskError; nothing is left then.
        """
        header = self._header
        assert header is not None
        self._reader.stop = stop
        store = SnapshotStore()
        check_identity(header.snapshot, identity)
        store.check_free(name)
        snapshot = msgspec.structs.replace(
            header.snapshot,
            id=_free_id(header.snapshot.id),
            name=name or _free_name(header.snapshot.name, store.names()),
            bound_to="",
        )
        with disk_errors("the snapshot cannot be stored"), store.staging() as folder, store.staging() as bases:
            store.announce(folder, snapshot)
            present = {path for path in (_present(e.path) for e in header.files) if path}
            needed = [entry for entry in header.files if entry.path not in present]
            free_space_preflight(folder, sum(entry.stored_bytes for entry in needed))
            self._reader.meter = (meter, sum(entry.stored_bytes for entry in header.files)) if meter else None
            for entry in header.files:
                target = None if entry.path in present else _target(entry, folder, bases)
                self._reader.file(entry, target)
            self._reader.end()
            snapshot = _settle(header, snapshot, folder, bases, stop)
            store.announce(folder, snapshot)
            _publish_bases(header, snapshot, bases)
            for blob in snapshot.blobs:
                if not blob_path(blob).is_file():
                    raise refused(f"its base disk {blob.digest[:12]} is not here any more")
            return store.publish(folder, snapshot, stop)


def _free_id(wanted: str) -> str:
    return new_id() if (paths.snapshots_dir() / wanted).exists() else wanted


def _free_name(wanted: str, taken: set[str]) -> str:
    name, number = wanted, 1
    while name and name in taken:
        number += 1
        name = f"{wanted[:58]}-{number}"
    return name


def _present(path: str) -> str:
    """`path` when the image or base disk that it belongs to is here already, else an empty text."""
    folder, _, rest = path.partition("/")
    if folder == "images" or (folder == "blobs" and rest.endswith(".raw")):
        return path if ImageStore().find(rest[:64]) else ""
    return path if folder == "blobs" and (paths.blobs_dir() / rest).is_file() else ""


def _target(entry: Entry, folder: Path, bases: Path) -> Path:
    kind, _, rest = entry.path.partition("/")
    target = folder / rest if kind == "members" else bases / entry.path
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return target


def _settle(header: Header, snapshot: Snapshot, folder: Path, bases: Path, stop: Stop) -> Snapshot:
    """Check what the base disks are, and make every qcow2 file stand on ours.

    A template's disk whose header must change for that gets another digest, and the members' records that of it.
    """
    renamed: dict[str, str] = {}
    blobs: list[Blob] = []
    for blob in snapshot.blobs:
        path = bases / "blobs" / f"{blob.digest}.{blob.format}"
        if path.exists():
            if digest_file(path, stop) != blob.digest:
                raise refused(f"its base disk {blob.digest[:12]} has another content than its digest says")
            if blob.format == "qcow2":
                [below] = [b for b in snapshot.blobs if b.digest == blob.backing]
                if overlay.rebase(path, below):
                    renamed[blob.digest] = digest_file(path, stop)
                    path.rename(path.with_name(f"{renamed[blob.digest]}.qcow2"))
        blobs.append(msgspec.structs.replace(blob, digest=renamed.get(blob.digest, blob.digest)))
    by_old_digest = {old.digest: new for old, new in zip(snapshot.blobs, blobs, strict=True)}
    for entry in header.files:
        kind, _, rest = entry.path.partition("/")
        if kind == "members" and entry.path.endswith(".qcow2"):
            overlay.rebase(folder / rest, by_old_digest[entry.backing] if entry.backing else None)
    members = {
        name: msgspec.structs.replace(record, base=renamed.get(record.base, record.base))
        for name, record in snapshot.members.items()
    }
    return msgspec.structs.replace(snapshot, members=members, blobs=tuple(blobs))


def _publish_bases(header: Header, snapshot: Snapshot, bases: Path) -> None:
    images: dict[str, ImageRecord] = {image.digest: image for image in header.images}
    store = ImageStore()
    for blob in snapshot.blobs:
        landed = bases / "blobs" / f"{blob.digest}.{blob.format}"
        if not landed.exists():
            continue
        if blob.image:
            with store.staging() as staging:
                for part in (bases / "images" / blob.digest).glob("*"):
                    part.rename(staging / part.name)
                store.publish(staging, landed, msgspec.structs.replace(images[blob.digest], created_at=time.time()))
        else:
            landed.chmod(0o444)
            with landed.open("rb") as file:
                os.fsync(file.fileno())
            paths.blobs_dir().mkdir(parents=True, exist_ok=True)
            if not blob_path(blob).exists():
                landed.rename(blob_path(blob))
