"""The images that are here: `images/<digest>/{image.json,kernel,initrd}`, each disk as `blobs/<digest>.raw`.

An image lands whole or not at all (`fleetbox.holder.landing`). A record that cannot be read hides no other and is never
overwritten: it is moved aside, named, when the same image comes again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from fleetbox import paths
from fleetbox.errors import ConflictError, NotFoundError, RecordError
from fleetbox.holder.landing import Landing, sync
from fleetbox.holder.refs import each_of, the_one
from fleetbox.holder.snapshots.store import SnapshotStore
from fleetbox.holder.store import write_atomically
from fleetbox.image import Image
from fleetbox.records import SCHEMA, ClusterRecord, read_clusters, read_record
from fleetbox.shapes import Digest

log = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{64}")


class ImageRecord(msgspec.Struct, frozen=True):
    """`image.json`. `folder` is where it was made; it is found where it is, so that the data folder can be moved.

    `source_sha256` is the digest of the file that the image came from, `source_stamp` its size, inode and time when it
    was a file of this host: each tells that the same source need not be taken again.
    """

    digest: Digest
    source: str
    architecture: str
    size_bytes: int
    created_at: float
    boot: Literal["direct", "firmware"]
    root: str = ""
    boot_reason: str = ""
    has_systemd: bool = False
    names: tuple[str, ...] = ()
    source_sha256: str = ""
    source_stamp: str = ""
    folder: str = ""
    schema: int = SCHEMA


class ImageStore:
    """Reads and changes the images of this installation; every method is safe beside other processes."""

    def __init__(self) -> None:
        self._images = paths.images_dir()
        self._blobs = paths.blobs_dir()
        self._landing = Landing(self._images, "image")

    def _blob(self, digest: str) -> Path:
        return self._blobs / f"{digest}.raw"

    def records(self) -> Iterator[ImageRecord | RecordError]:
        """Every image, or the error of one that cannot be read or has lost its disk."""
        try:
            names = sorted(os.listdir(self._images))  # noqa: PTH208 - names, not paths
        except FileNotFoundError:
            return
        for name in names:
            if _DIGEST.fullmatch(name):
                try:
                    record = read_record(self._images / name / "image.json", ImageRecord)
                    if record.digest != name or not self._blob(name).is_file():
                        raise RecordError(
                            f"the image {name[:12]} has no disk",
                            why=f"{self._blob(name)} is gone",
                            hint=f"remove {self._images / name}, or get the image again",
                        )
                    yield record
                except NotFoundError:
                    continue  # removed since the folder was listed
                except RecordError as e:
                    yield e

    def _readable(self) -> list[ImageRecord]:
        found = []
        for record in self.records():
            if isinstance(record, RecordError):
                log.warning("%s", record)
            else:
                found.append(record)
        return found

    def images(self) -> list[Image]:
        """All images that can be read, the newest last; the log names the others."""
        return [self.image(r) for r in sorted(self._readable(), key=lambda r: r.created_at)]

    def image(self, record: ImageRecord) -> Image:
        """The image as the outside sees it."""
        blob, folder, direct = self._blob(record.digest), self._images / record.digest, record.boot == "direct"
        try:
            stored_bytes = blob.stat().st_blocks * 512
        except FileNotFoundError:
            stored_bytes = 0
        return Image(
            digest=record.digest,
            names=record.names,
            source=record.source,
            architecture=record.architecture,
            size_bytes=record.size_bytes,
            stored_bytes=stored_bytes,
            created_at=record.created_at,
            disk=str(blob),
            kernel=str(folder / "kernel") if direct else "",
            initrd=str(folder / "initrd") if direct else "",
            root=record.root,
            boot=record.boot,
            boot_reason=record.boot_reason,
            has_systemd=record.has_systemd,
        )

    def find(self, ref: str = "", *, source_sha256: str = "", source: str = "", stamp: str = "") -> ImageRecord | None:
        """The image of that name, digest or digest prefix, or from that source. Raises AmbiguousError."""
        records = self._readable()
        if source_sha256 or source:
            return next(
                (
                    r
                    for r in sorted(records, key=lambda r: -r.created_at)
                    if (r.source_sha256 == source_sha256 if source_sha256 else r.source == source)
                    and r.source_stamp == (stamp or r.source_stamp)
                ),
                None,
            )
        return the_one(ref, records, "image", lambda r: r.digest, lambda r: r.names, digits=8)

    def inspect(self, ref: str) -> Image:
        """The image that `ref` names. Raises NotFoundError or AmbiguousError."""
        record = self.find(ref)
        if record is None:
            unreadable = [str(r) for r in self.records() if isinstance(r, RecordError)]
            raise NotFoundError(
                f"there is no image {ref!r} here",
                why="; ".join(unreadable),
                hint="`fleetbox image ls` lists the images, `fleetbox image pull` gets one",
            )
        return self.image(record)

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder to put an image together in; removed at the end, or by the next user's `sweep` after a crash."""
        with self._landing.placeholder() as folder:
            self._blobs.mkdir(parents=True, exist_ok=True)
            yield folder

    def publish(self, folder: Path, disk: Path, record: ImageRecord) -> Image:
        """Move `disk`, and `kernel` and `initrd` of the staging folder, into place; an image that is there stays.

        Either way the image then has the record's names, and no other image has them. Blocks while it syncs.
        """
        landing = folder / "image"
        landing.mkdir()
        for name in ("kernel", "initrd") if record.boot == "direct" else ():
            (folder / name).rename(landing / name)
            sync(landing / name)
        disk.chmod(0o444)
        sync(disk)
        folded = msgspec.structs.replace(record, names=(), folder=str(self._images / record.digest))
        (landing / "image.json").write_bytes(_encode(folded))
        sync(landing / "image.json")
        sync(landing)
        target = self._images / record.digest
        with self._landing.locked():
            if not self._blob(record.digest).is_file():
                disk.rename(self._blob(record.digest))
                sync(self._blobs)
            if self._is_unreadable(record.digest):
                target.rename(self._images / f".unreadable-{record.digest}-{time.time_ns()}")
            if not target.exists():
                self._landing.land(landing, record.digest)
            return self.image(self._name(record))

    def _is_unreadable(self, digest: str) -> bool:
        try:
            read_record(self._images / digest / "image.json", ImageRecord)
        except NotFoundError:
            return (self._images / digest).exists()
        except RecordError:
            return True
        return False

    def name(self, record: ImageRecord) -> Image:
        """Give the stored image the further names and source facts of `record`; other images lose those names."""
        with self._landing.locked():
            return self.image(self._name(record))

    def _name(self, record: ImageRecord) -> ImageRecord:
        for other in self._readable():
            if other.digest != record.digest and set(other.names) & set(record.names):
                kept = tuple(n for n in other.names if n not in record.names)
                self._write(msgspec.structs.replace(other, names=kept))
        present = read_record(self._images / record.digest / "image.json", ImageRecord)
        merged = msgspec.structs.replace(
            present,
            names=tuple(dict.fromkeys((*present.names, *record.names))),
            source=record.source,
            source_sha256=record.source_sha256 or present.source_sha256,
            source_stamp=record.source_stamp or present.source_stamp,
        )
        if merged != present:
            self._write(merged)
        return merged

    def _write(self, record: ImageRecord) -> None:
        write_atomically(self._images / record.digest / "image.json", _encode(record))

    def remove(self, refs: Sequence[str]) -> list[Image]:
        """Remove images and return them. One that a member's disk stands on stays, and so does every one while a
        cluster's record cannot be read.

        Raises the error of a single ref, or PartialError after the others of several are done.
        """
        with self._landing.locked():
            return each_of(refs, self._remove, "image", "removed")

    def _remove(self, ref: str) -> Image:
        image = self.inspect(ref)
        self._check_unused(image)
        gone = self._landing.take_out(image.digest)
        self._blob(image.digest).unlink(missing_ok=True)
        if gone is not None:
            shutil.rmtree(gone)
        return image

    def _check_unused(self, image: Image) -> None:
        users = users_of(image.digest)
        if users:
            raise ConflictError(
                f"the image {image.names[0] if image.names else image.digest[:12]} is in use",
                why=f"{', '.join(users)} {'stands' if len(users) == 1 else 'stand'} on it",
                hint="destroy these members, or remove these snapshots, first",
            )

    def sweep(self, dry_run: bool = False) -> list[str]:
        """Remove what crashed makers left: staging folders, and disks without an image that no member uses.

        Returns what was (or would be) removed, in words. Disks stay while any cluster's record cannot be read.
        """
        found = []
        with self._landing.locked():
            found += [f"unfinished image {name}" for name in self._landing.collect(dry_run=dry_run)]
            for blob in sorted(self._blobs.glob("*.raw")):
                if not _DIGEST.fullmatch(blob.stem) or (self._images / blob.stem).exists():
                    continue
                try:
                    if users_of(blob.stem):
                        continue
                except ConflictError:
                    break
                found.append(f"disk {blob.name} of no image")
                if not dry_run:
                    blob.unlink()
        return found


def users_of(digest: str) -> list[str]:
    """The members, as `cluster/member`, whose disks stand on the image, and the snapshots that rest on it.

    Raises ConflictError while a cluster's or a snapshot's record cannot be read: it might.
    """
    users = list(SnapshotStore().pins().get(digest, ()))
    for cluster in read_clusters():
        if not isinstance(cluster, ClusterRecord):
            raise ConflictError(
                f"whether the image {digest[:12]} is in use cannot be told", why=str(cluster), hint=cluster.hint
            )
        users += [f"{cluster.name}/{m.name}" for m in cluster.members.values() if m.image_digest == digest]
    return users


def _encode(record: ImageRecord) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record), indent=1)
