"""The templates that are here: `templates/<key>/{template.json,state,…}`, each disk as `blobs/<digest>.qcow2`.

A template lands whole or not at all (`fleetbox.holder.landing`), and is made by whoever holds its key's lock. It is a
cache: what cannot be read or lacks a part is no template, and goes. Its disk does not go while anything stands on it
(`pinned`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from fleetbox import paths
from fleetbox.backends.base import Disk
from fleetbox.backends.host.disk import disk_errors
from fleetbox.backends.host.files.sparse import digest_file
from fleetbox.backends.host.files.worker import Stop
from fleetbox.errors import ConflictError, NotFoundError, RecordError
from fleetbox.faultpoint import arrive, reach
from fleetbox.holder.landing import Landing, sync
from fleetbox.holder.lock import HolderLock
from fleetbox.holder.operations import Emit
from fleetbox.holder.refs import each_of, the_one
from fleetbox.holder.snapshots.store import SnapshotStore
from fleetbox.host import PruneItem
from fleetbox.records import read_clusters, read_record
from fleetbox.template import Template
from fleetbox.wire import Notice

log = logging.getLogger(__name__)

RECORD = "template.json"
SAVED = "saved"
_KEY = re.compile(r"[0-9a-f]{64}")
_POLL_S = 0.1


class TemplateStore:
    """Reads and changes the templates of this installation; every method is safe beside other processes."""

    def __init__(self) -> None:
        self._root = paths.templates_dir()
        self._blobs = paths.blobs_dir()
        self._landing = Landing(self._root, "template", lock_file=self._blobs / ".templates.lock")

    def folder(self, template: Template) -> Path:
        """Where the saved machine is, as the backend wrote it."""
        return self._root / template.key / SAVED

    def disk(self, template: Template) -> Disk:
        """The template's disk, which nobody writes to any more."""
        if template.base:
            return Disk(self._blobs / f"{template.base}.qcow2", "qcow2", read_only=True)
        return Disk(self._root / template.key / f"disk.{template.disk_format}", template.disk_format, read_only=True)

    def find(self, key: str) -> Template | None:
        """The template of that key; None when there is none, or one that lacks a part."""
        try:
            template = read_record(self._root / key / RECORD, Template)
        except NotFoundError:
            return None
        except RecordError as e:
            log.warning("%s", e)
            return None
        whole = template.key == key and self.folder(template).is_dir() and self.disk(template).path.is_file()
        return template if whole else None

    def templates(self) -> list[Template]:
        """All templates, the newest last."""
        found = []
        for key in self._keys():
            template = self.find(key)
            if template is not None:
                with contextlib.suppress(OSError):
                    template = msgspec.structs.replace(template, used_at=(self._root / key / RECORD).stat().st_mtime)
                found.append(template)
        return sorted(found, key=lambda t: t.created_at)

    def used(self, template: Template) -> None:
        """Note that a member is cloned from it now."""
        with contextlib.suppress(OSError):
            os.utime(self._root / template.key / RECORD)

    def _keys(self) -> list[str]:
        return sorted(p.name for p in self._root.glob("*") if _KEY.fullmatch(p.name)) if self._root.is_dir() else []

    # Making

    @asynccontextmanager
    async def making(self, key: str, emit: Emit) -> AsyncIterator[Path]:
        """Be the only one, of all processes, who makes the template of that key; yields an empty folder to do it in.

        Others wait here, and say so: look for the template again once inside.
        """
        waited = False
        with disk_errors(f"no template can be made in {self._root}"):
            while (lock := HolderLock.take(self._lock_of(key))) is None:
                if not waited:
                    emit(Notice("another fleetbox is making the template of these members; waiting for it"))
                    waited = True
                await asyncio.sleep(_POLL_S)
        try:
            placeholder = await asyncio.to_thread(self._landing.reserve)
            try:
                (placeholder.folder / SAVED).mkdir(mode=0o700)
                await arrive("template.lock")
                yield placeholder.folder
            finally:
                await asyncio.shield(asyncio.to_thread(placeholder.roll_back))
        finally:
            lock.release(remove=True)

    def publish(self, staging: Path, disk: Disk, template: Template, stop: Stop) -> Template:
        """Move the saved machine of `staging`, and its `disk`, into place as `template`. Blocks while it syncs.

        A qcow2 disk becomes a blob; a raw one, which clones copy whole, stays with the template. Raises DiskError.
        """
        landing = staging / "landing"
        with disk_errors(f"the template in {staging} cannot be stored"):
            landing.mkdir(mode=0o700)
            disk.path.chmod(0o444)
            sync(disk.path)
            for path in (staging / SAVED).iterdir():
                sync(path)
            (staging / SAVED).rename(landing / SAVED)
            stored = sum(p.stat().st_blocks * 512 for p in (disk.path, *(landing / SAVED).iterdir()))
            place = str(self._root / template.key)
            template = msgspec.structs.replace(template, stored_bytes=stored, disk_format=disk.format, folder=place)
            if disk.format == "qcow2":
                template = msgspec.structs.replace(template, base=digest_file(disk.path, stop))
            else:
                disk.path.rename(landing / f"disk.{disk.format}")
            (landing / RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(template), indent=1))
            sync(landing / RECORD)
            sync(landing)
            reach("template.land")
            stop.check()
            with self._landing.locked():
                if template.base:
                    disk.path.rename(self.disk(template).path)
                    sync(self._blobs)
                reach("template.disk")
                if (self._root / template.key).exists():
                    self._put_away(template.key)
                self._landing.land(landing, template.key)
                reach("template.landed")
        return template

    # Removing

    def discard(self, template: Template) -> None:
        """Remove exactly this template, when it is still the one of its key."""
        with self._landing.locked():
            self._discard(template)

    def _discard(self, template: Template) -> None:
        present = self.find(template.key)
        if present is None or present.created_at == template.created_at:
            reach("template.remove")
            self._put_away(template.key)
            reach("template.removed")
            self._drop_blob(template.base)

    def remove(self, refs: Sequence[str]) -> list[Template]:
        """Remove templates by key or prefix and return them. Their disks go with the last member that stands on them.

        Raises the error of a single ref, or PartialError after the others of several are done.
        """
        with self._landing.locked():
            return each_of(refs, self._remove, "template", "removed")

    def _remove(self, ref: str) -> Template:
        template = the_one(ref, self.templates(), "template", lambda t: t.key)
        if template is None:
            raise NotFoundError(f"there is no template {ref!r}", hint="`fleetbox template ls` lists the templates")
        self._discard(template)
        return template

    def forget_image(self, digest: str) -> None:
        """Remove the templates of an image that has been removed."""
        for template in self.templates():
            if template.image_digest == digest:
                self.discard(template)

    def prune(self, *, unused_for_s: float, dry_run: bool) -> list[PruneItem]:
        """Remove templates that no member was cloned from for so long, and all that `sweep` removes."""
        limit = time.time() - unused_for_s
        unused = [t for t in self.templates() if not unused_for_s or t.used_at <= limit]
        if not dry_run:
            for template in unused:
                self.discard(template)
        items = [PruneItem("template", t.key[:12], "it has not been used", not dry_run) for t in unused]
        return items + self.sweep(dry_run=dry_run)

    def sweep(self, *, dry_run: bool) -> list[PruneItem]:
        """Remove what crashed makers left, templates that lack a part, and disks that nothing stands on."""
        items = []
        with self._landing.locked():
            interrupted = self._landing.collect(dry_run=dry_run)
            items += [PruneItem("template", name, "its making was interrupted", not dry_run) for name in interrupted]
            for key in self._keys():
                reason = self._fault(key)
                if reason:
                    items.append(PruneItem("template", key[:12], reason, not dry_run))
                    if not dry_run:
                        self._put_away(key)
            items += self._sweep_blobs(dry_run)
            self._sweep_locks()
        return items

    def _sweep_locks(self) -> None:
        """Remove the locks of makers that are gone."""
        for path in self._root.glob(".*.lock"):
            lock = HolderLock.take(path)
            if lock is not None:
                lock.release(remove=True)

    def _fault(self, key: str) -> str:
        """Why the template of that key is none, empty when it is one."""
        template = self.find(key)
        if template is None:
            return "it lacks a part"
        if template.image_digest and not (paths.images_dir() / template.image_digest).is_dir():
            return "its image is gone"
        return ""

    def _sweep_blobs(self, dry_run: bool) -> list[PruneItem]:
        try:
            pins = self._pinned()
        except ConflictError as e:
            log.warning("%s: no base disk is removed", e)
            return []
        free = [p for p in sorted(self._blobs.glob("*.qcow2")) if _KEY.fullmatch(p.stem) and p.stem not in pins]
        if not dry_run:
            for blob in free:
                blob.unlink()
        return [PruneItem("disk", blob.name, "nothing stands on it", not dry_run) for blob in free]

    def _put_away(self, key: str) -> None:
        """Take a template out of sight in one step, then delete it."""
        gone = self._landing.take_out(key)
        if gone is not None:
            shutil.rmtree(gone, ignore_errors=True)

    def _drop_blob(self, digest: str) -> None:
        if not digest:
            return
        try:
            if digest not in self._pinned():
                (self._blobs / f"{digest}.qcow2").unlink(missing_ok=True)
        except ConflictError as e:
            log.warning("%s: the base disk %s stays", e, digest[:12])

    def _pinned(self) -> set[str]:
        """Digests of the base disks that a member, a snapshot or a template stands on.

        A member is recorded before its disk is made, and then looks whether its template is still there; so when the
        template has gone first, whoever stands on its disk is known here. Raises ConflictError while a record cannot
        be read: it may stand on any.
        """
        pins = set(SnapshotStore().pins())
        for cluster in read_clusters():
            if isinstance(cluster, RecordError):
                raise ConflictError("whether a member stands on it cannot be told", why=str(cluster), hint=cluster.hint)
            pins |= {member.base for member in cluster.members.values()}
        return pins | {template.base for template in self.templates()}

    # Locks

    def _lock_of(self, key: str) -> Path:
        return self._root / f".{key}.lock"
