"""The snapshots that are here: `snapshots/<id>/{snapshot.json,<member>/*}`.

A snapshot lands whole or not at all (`fleetbox.holder.landing`). Snapshots are user data: only `remove` deletes one,
and one whose record cannot be read is named, kept, and protects every base disk, as it may stand on any.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from fleetbox import paths
from fleetbox.backends.host.disk import disk_errors
from fleetbox.backends.host.files.sparse import digest_file
from fleetbox.backends.host.files.worker import Meter, Stop
from fleetbox.errors import (
    ConflictError,
    DiskError,
    HostError,
    NotFoundError,
    RecordError,
    UsageError,
)
from fleetbox.faultpoint import reach
from fleetbox.holder.landing import PLACEHOLDER, Landing, sync
from fleetbox.holder.refs import each_of, the_one
from fleetbox.records import MemberRecord, read_record
from fleetbox.snapshot import Blob, Snapshot, SnapshotFile

log = logging.getLogger(__name__)

RECORD = "snapshot.json"
_ID = re.compile(r"[0-9a-f]{16}")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")


def check_name(name: str) -> str:
    """Return `name` when a snapshot may be called that, empty for no name. Raises UsageError."""
    if not name or (_NAME.fullmatch(name) and not _ID.fullmatch(name)):
        return name
    raise UsageError(
        f"{name!r} is not a valid name for a snapshot",
        why="a name has 1 to 63 of a-z, 0-9, '.', '_' and -, begins and ends with a letter or digit, and is no id",
        hint="for example 'before-upgrade'",
    )


def blob_path(blob: Blob) -> Path:
    """Where a base disk is, or would be."""
    return paths.blobs_dir() / f"{blob.digest}.{blob.format}"


def blobs_under(members: Iterable[MemberRecord]) -> tuple[Blob, ...]:
    """Every base disk that the members' disks stand on, each after the one that it stands on itself."""
    found: dict[str, Blob] = {}
    for member in members:
        if member.image_digest:
            found.setdefault(member.image_digest, Blob(member.image_digest, "raw", image=True))
        if member.base and member.base not in found:
            found[member.base] = Blob(member.base, "qcow2", image=False, backing=member.image_digest)
    return tuple(found.values())


def check_identity(snapshot: Snapshot, local: Mapping[str, str]) -> None:
    """Raise HostError when the snapshot's device state cannot be loaded by what `local` describes.

    `local` is the backend's `snapshot_identity()`.
    """
    differing = [
        f"{key} {snapshot.identity.get(key) or 'unknown'}, here {local.get(key) or 'unknown'}"
        for key in sorted({*snapshot.identity, *local})
        if snapshot.identity.get(key) != local.get(key)
    ]
    if differing:
        raise HostError(
            f"the snapshot {snapshot.name or snapshot.id} cannot run here",
            why=f"it was taken with {'; '.join(differing)}",
            hint="the state of a machine's devices can only be loaded by the same hypervisor on the same kind of host",
        )


class SnapshotStore:
    """Reads and changes the snapshots of this installation; every method is safe beside other processes."""

    def __init__(self) -> None:
        self._root = paths.snapshots_dir()
        self._landing = Landing(self._root, "snapshot")

    def folder(self, snapshot: Snapshot) -> Path:
        """Where its files are: `<member>/…`."""
        return self._root / snapshot.id

    def records(self) -> Iterator[Snapshot | RecordError]:
        """Every snapshot, or the error of one that cannot be read, in order of id."""
        for path in self._folders():
            if _ID.fullmatch(path.name):
                try:
                    yield self._read(path)
                except NotFoundError:
                    continue  # removed since the folder was listed
                except RecordError as e:
                    yield e

    def _folders(self) -> list[Path]:
        try:
            return sorted(self._root.iterdir())
        except FileNotFoundError:
            return []
        except OSError as e:
            raise RecordError(f"the folder {self._root} cannot be read", why=e.strerror or str(e)) from e

    def _read(self, folder: Path) -> Snapshot:
        try:
            snapshot = read_record(folder / RECORD, Snapshot)
        except NotFoundError:
            if not folder.exists():
                raise
            raise _unreadable(folder, "it has no record") from None
        except RecordError as e:
            raise _unreadable(folder, e.why or e.message) from e
        if snapshot.id != folder.name:
            raise _unreadable(folder, f"its record is of the snapshot {snapshot.id}")
        return snapshot

    def readable(self) -> tuple[list[Snapshot], list[RecordError]]:
        """All snapshots, the newest last, and the errors of those that cannot be read."""
        found, unreadable = [], []
        for record in self.records():
            if isinstance(record, RecordError):
                unreadable.append(record)
            else:
                found.append(record)
        return sorted(found, key=lambda s: s.created_at), unreadable

    def find(self, ref: str) -> Snapshot:
        """The snapshot of that id, name or id prefix (4 digits or more).

        Raises NotFoundError, AmbiguousError, or the RecordError of the one that is meant.
        """
        if _ID.fullmatch(ref) and (self._root / ref).exists():
            return self._read(self._root / ref)
        found, unreadable = self.readable()
        snapshot = the_one(ref, found, "snapshot", lambda s: s.id, lambda s: (s.name,))
        if snapshot is not None:
            return snapshot
        raise NotFoundError(
            f"there is no snapshot {ref!r}",
            why="; ".join(e.message for e in unreadable),
            hint="`fleetbox snapshot ls` lists what there is",
        )

    def check_free(self, name: str) -> None:
        """Raise UsageError for a name that no snapshot can have, ConflictError for one that another has."""
        if check_name(name) and name in self.names():
            raise ConflictError(
                f"there is a snapshot {name!r} already", hint="choose another --name, or remove it with `snapshot rm`"
            )

    def names(self) -> set[str]:
        """The names that are taken."""
        return {s.name for s in self.readable()[0] if s.name}

    def staging(self) -> contextlib.AbstractContextManager[Path]:
        """A folder to put a snapshot together in; removed at the end, or by a later `sweep` after a crash."""
        return self._landing.placeholder()

    def announce(self, folder: Path, snapshot: Snapshot) -> None:
        """From now on the base disks of `snapshot`, which is being put together in `folder`, are pinned."""
        with disk_errors(f"the snapshot in {folder} cannot be written"):
            (folder / RECORD).write_bytes(_encode(snapshot))

    def publish(self, folder: Path, snapshot: Snapshot, stop: Stop | None = None) -> Snapshot:
        """Move the staging folder into place as `snapshot` and return its record, with its files listed.

        Blocks while it syncs; `stop` is asked for the last time right before the move. Raises ConflictError for a name
        or id that is taken meanwhile, DiskError; either way there is no snapshot, and the folder is still the caller's.
        """
        with disk_errors(f"the snapshot in {folder} cannot be written"):
            reach("save.publish")
            snapshot = msgspec.structs.replace(snapshot, files=tuple(_files(folder)), folder=str(self.folder(snapshot)))
            (folder / RECORD).write_bytes(_encode(snapshot))
            for path in (*folder.rglob("*"), folder):
                sync(path)
        with self._landing.locked():
            self.check_free(snapshot.name)
            if stop is not None:
                stop.check()
            target = self.folder(snapshot)
            if target.exists():
                raise ConflictError(f"there is a snapshot {snapshot.id} already")
            with disk_errors(f"the snapshot in {folder} cannot be moved into place"):
                reach("save.land")
                self._landing.land(folder, snapshot.id)
                reach("save.landed")
        return snapshot

    def remove(self, refs: Sequence[str]) -> list[Snapshot]:
        """Delete snapshots and return them.

        Raises the error of a single ref, or PartialError after the others of several are done.
        """
        with self._landing.locked():
            return each_of(refs, self._remove, "snapshot", "removed")

    def _remove(self, ref: str) -> Snapshot:
        snapshot = self.find(ref)
        with disk_errors(f"the snapshot {ref} cannot be removed"):
            reach("snapshot.remove")
            gone = self._landing.take_out(snapshot.id)
            reach("snapshot.removed")
            if gone is not None:
                shutil.rmtree(gone)
        return snapshot

    def remove_bound(self, clusters: Collection[str], *, dry_run: bool = False) -> list[Snapshot]:
        """Delete the snapshots that are bound to clusters of these ids, and return them.

        Raises PartialError when some could not be removed.
        """
        bound = [snapshot for snapshot in self.readable()[0] if snapshot.bound_to in clusters]
        return bound if dry_run or not bound else self.remove([snapshot.id for snapshot in bound])

    def bound_clusters(self) -> set[str]:
        """Ids of the clusters that some snapshot is bound to."""
        return {snapshot.bound_to for snapshot in self.readable()[0]} - {""}

    def pins(self) -> dict[str, list[str]]:
        """Digest of an image or base disk → the snapshots that rest on it, in words; those being made included.

        Raises ConflictError while a snapshot's record cannot be read: it may rest on any.
        """
        pinned: dict[str, list[str]] = {}
        for folder in self._folders():
            staged = folder.name.startswith(PLACEHOLDER)
            if not staged and not _ID.fullmatch(folder.name):
                continue
            try:
                snapshot = read_record(folder / RECORD, Snapshot) if staged else self._read(folder)
            except NotFoundError:
                continue
            except RecordError as e:
                if staged:  # half written: its maker has not begun to rely on it
                    continue
                raise ConflictError("whether a snapshot rests on it cannot be told", why=e.message, hint=e.hint) from e
            for blob in snapshot.blobs:
                pinned.setdefault(blob.digest, []).append(f"the snapshot {snapshot.name or snapshot.id}")
        return pinned

    def verify(self, snapshot: Snapshot, stop: Stop | None = None, meter: Meter | None = None) -> None:
        """Check that every base disk of the snapshot is here with the content that its digest says. Blocks.

        A file that has been found right is not read again until its inode changes. Raises DiskError.
        """
        for blob in snapshot.blobs:
            path = blob_path(blob)
            try:
                stamp = _stamp(path)
            except FileNotFoundError:
                raise DiskError(
                    f"the snapshot {snapshot.name or snapshot.id} has lost a base disk",
                    why=f"{path} is gone",
                    hint="bring that file back, or import the snapshot again",
                ) from None
            known = paths.verified_dir() / blob.digest
            with contextlib.suppress(OSError):
                if known.read_text() == stamp:
                    continue
            with disk_errors(f"the base disk {path} cannot be read"):
                found = digest_file(path, stop or Stop(), meter)
            if found != blob.digest:
                raise DiskError(
                    f"the base disk {path} is damaged",
                    why=f"its sha256 is {found[:12]}…",
                    hint=f"the snapshot {snapshot.name or snapshot.id} cannot be used without the right one",
                )
            with contextlib.suppress(OSError):
                known.parent.mkdir(parents=True, exist_ok=True)
                known.write_text(stamp)

    def sweep(self, *, dry_run: bool = False) -> list[str]:
        """Remove what makers that crashed have left, and return the folders' names."""
        if not self._root.is_dir():
            return []
        with self._landing.locked():
            return self._landing.collect(dry_run=dry_run)


def _unreadable(folder: Path, why: str) -> RecordError:
    return RecordError(
        f"the snapshot {folder.name} cannot be read",
        why=why,
        hint=f"it is kept as it is; repair {folder / RECORD}, or move the folder away to give it up",
    )


def _files(folder: Path) -> Iterator[SnapshotFile]:
    for path in sorted(folder.glob("*/*")):
        info = path.lstat()
        yield SnapshotFile(str(path.relative_to(folder)), info.st_size, info.st_blocks * 512)


def _stamp(path: Path) -> str:
    info = path.stat()
    return f"{info.st_dev} {info.st_ino} {info.st_size} {info.st_mtime_ns} {info.st_ctime_ns}"


def _encode(snapshot: Snapshot) -> bytes:
    return msgspec.json.format(msgspec.json.encode(snapshot), indent=1)
