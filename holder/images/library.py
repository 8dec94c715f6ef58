"""Getting images: the local store first, then the pinned cloud image, then a build from the distribution's archive."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fleetbox import paths
from fleetbox.backends.host.files import worker
from fleetbox.backends.host.files.download import Unreachable, discard, download, key_of, shown
from fleetbox.backends.host.files.sparse import digest_file
from fleetbox.backends.host.files.turns import one_at_a_time
from fleetbox.backends.host.files.worker import OnEvent
from fleetbox.errors import FleetboxError, ImageError, NotFoundError, UsageError
from fleetbox.faultpoint import arrive
from fleetbox.holder.images import archive, catalog, convert, kernel
from fleetbox.holder.images.catalog import CloudImage
from fleetbox.holder.images.store import ImageRecord, ImageStore
from fleetbox.image import Image
from fleetbox.wire import Event, Notice

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_HEX = re.compile(r"[0-9a-f]{8,64}")
_URL = re.compile(r"https?://", re.IGNORECASE)


@dataclass(frozen=True)
class _Origin:
    """Where an image comes from and what it shall be called; see `ImageRecord` for the fields."""

    source: str
    names: tuple[str, ...] = ()
    sha256: str = ""
    stamp: str = ""


def _ignore(event: Event) -> None:
    del event


class ImageLibrary:
    """The images of this installation and where more come from. Any number of processes may use it at once."""

    def __init__(self) -> None:
        self.store = ImageStore()

    async def ensure(self, ref: str, on_event: OnEvent = _ignore) -> Image:
        """The image that `ref` names: a name or digest that is here, an alias of the catalog, a URL, or a file.

        What is not here is fetched, built or imported, once however many ask. Notices tell where it came from and why.
        Raises NotFoundError, AmbiguousError, ImageError or HostError.
        """
        record = self.store.find(ref)
        if record is not None:
            return self.store.image(record)
        if _URL.match(ref):
            return await self._from_url(CloudImage(ref, ""), (), on_event)
        if ref in catalog.entries():
            return await self._from_catalog(ref, on_event)
        if "/" in ref or ref.startswith(("~", ".")) or Path(ref).is_file():
            return await self.import_(ref, on_event=on_event)
        raise _unknown(ref)

    async def pull(self, ref: str, sha256: str = "", on_event: OnEvent = _ignore) -> Image:
        """Fetch an alias of the catalog or a URL, also when an image of that name is here already.

        What has the digest that is asked for is not fetched again. Raises as `ensure` does.
        """
        if _URL.match(ref):
            return await self._from_url(CloudImage(ref, _checked_sha256(sha256)), (), on_event, refresh=True)
        if ref not in catalog.entries():
            raise _unknown(ref)
        if sha256:
            raise UsageError(f"{ref} is pinned by the catalog", hint="give --sha256 with a URL only")
        return await self._from_catalog(ref, on_event, refresh=True)

    async def build(
        self,
        release: str,
        name: str = "",
        include: Sequence[str] = (),
        scripts: Sequence[str] = (),
        on_event: OnEvent = _ignore,
    ) -> Image:
        """Build a Debian release from the archive, with further packages, and scripts of this host run inside.

        Without a `name`, the plain release gets its alias as name, and one with additions none.
        Raises NotFoundError for a release that cannot be built, and as `archive.build` does.
        """
        entry = catalog.entries().get(release)
        if entry is None or not entry.suite:
            able = ", ".join(alias for alias, e in catalog.entries().items() if e.suite)
            raise NotFoundError(f"{release!r} cannot be built from the archive", hint=f"these can: {able}")
        names = (_checked_name(name),) if name else () if include or scripts else (release,)
        source = f"archive build of {release}"
        source += f" with {', '.join(include)}" if include else ""
        source += f" after {', '.join(scripts)}" if scripts else ""
        with self.store.staging() as folder:
            disk = await archive.build(entry.suite, folder, include, scripts, on_event)
            digest = await worker.run(lambda stop: digest_file(disk, stop))
            return await self._publish(folder, disk, digest, _Origin(source, names))

    async def import_(self, source: str, name: str = "", sha256: str = "", on_event: OnEvent = _ignore) -> Image:
        """Take a raw or qcow2 file, or a URL, into the store. `sha256` is the digest of the file as it comes.

        Raises ImageError for whatever is no usable image; the store is as before then.
        """
        sha256 = _checked_sha256(sha256)
        names = (_checked_name(name),) if name else ()
        if _URL.match(source):
            return await self._from_url(CloudImage(source, sha256), names, on_event)
        path = Path(source).expanduser().absolute()
        origin = _Origin(str(path), names, sha256, _stamp(path))
        async with _only_one(hashlib.sha256(os.fsencode(path)).hexdigest(), str(path), on_event):
            present = self.store.find(source=origin.source, stamp=origin.stamp) if origin.stamp else None
            if present is not None and sha256 in ("", present.source_sha256):
                return self.store.name(msgspec.structs.replace(present, names=names))
            return await self._add(path, origin, on_event)

    def inspect(self, ref: str) -> Image:
        """The image here that `ref` names. Raises NotFoundError or AmbiguousError."""
        return self.store.inspect(ref)

    def remove(self, refs: Sequence[str]) -> list[Image]:
        """Remove images that no member uses. Raises as `ImageStore.remove` does."""
        return self.store.remove(refs)

    def sweep(self, dry_run: bool = False) -> list[str]:
        """Remove what crashed makers of images left; returns it in words."""
        return self.store.sweep(dry_run)

    async def _from_catalog(self, alias: str, on_event: OnEvent, refresh: bool = False) -> Image:
        entry = catalog.entries()[alias]
        async with _only_one(f"alias-{alias}", f"image {alias}", on_event) as waited:
            present = self.store.find(alias) if waited or not refresh else None
            if present is not None:  # another process has got it meanwhile
                return self.store.image(present)
            cloud = entry.images.get(catalog.host_architecture())
            if cloud is None:
                reason = f"there is none for {catalog.host_architecture()}"
            else:
                try:
                    image = await self._from_url(cloud, (alias,), on_event, refresh=True)
                except Unreachable as e:
                    reason = e.why
                else:
                    on_event(Notice(message=f"image {alias}: the cloud image {entry.snapshot}, as its digest pins it"))
                    return image
            if not entry.suite:
                raise ImageError(
                    f"the image {alias} cannot be had", why=reason, hint="see `fleetbox image import --help`"
                )
            on_event(
                Notice(message=f"image {alias}: building it from the distribution's archive (cloud image: {reason})")
            )
            try:
                return await self.build(alias, on_event=on_event)
            except FleetboxError as e:
                raise type(e)(
                    f"the image {alias} cannot be had",
                    why=f"cloud image: {reason}; archive build: {e}",
                    hint=e.hint,
                    details=e.details,
                ) from e

    async def _from_url(
        self, cloud: CloudImage, names: tuple[str, ...], on_event: OnEvent, refresh: bool = False
    ) -> Image:
        origin = _Origin(shown(cloud.url), names, cloud.sha256)
        async with _only_one(key_of(cloud.url, cloud.sha256), origin.source, on_event) as waited:
            present = None
            if cloud.sha256:
                present = self.store.find(source_sha256=cloud.sha256)
            elif waited or not refresh:
                present = self.store.find(source=origin.source)
            if present is not None:
                return self.store.name(msgspec.structs.replace(present, names=names))
            await arrive("image.download")
            file = await download(cloud.url, cloud.sha256, on_event)
            await arrive("image.downloaded")
            try:
                # The digest is checked already: what is imported need not be hashed again for it.
                image = await self._add(file, origin, on_event, check=False)
            except convert.StoringFailed:
                raise  # the next attempt need not download it again
            except ImageError:
                discard(file)
                raise
            await arrive("image.published")
            discard(file)
            return image

    async def _add(self, file: Path, origin: _Origin, on_event: OnEvent, check: bool = True) -> Image:
        with worker.step(on_event, "import", origin.source), self.store.staging() as folder:
            await arrive("image.staged")
            disk = folder / "disk.raw"
            sha256 = origin.sha256 if check else ""
            digest = await convert.to_raw(file, disk, origin.source, sha256, on_event)
            await arrive("image.converted")
            return await self._publish(folder, disk, digest, origin)

    async def _publish(self, folder: Path, disk: Path, digest: str, origin: _Origin) -> Image:
        boot = await worker.run(lambda _: kernel.extract(disk, folder))
        record = ImageRecord(
            digest=digest,
            source=origin.source,
            architecture=boot.architecture or catalog.host_architecture(),
            size_bytes=disk.stat().st_size,
            created_at=time.time(),
            boot="firmware" if boot.reason else "direct",
            root=boot.root,
            boot_reason=boot.reason,
            has_systemd=boot.has_systemd,
            names=origin.names,
            source_sha256=origin.sha256,
            source_stamp=origin.stamp,
        )
        try:
            await arrive("image.publish")
            return await worker.run(lambda _: self.store.publish(folder, disk, record))
        except OSError as e:
            raise convert.storing_failed(e, origin.source, folder.parent) from e

    def list(self) -> list[Image]:
        """All images that are here, the newest last."""
        return self.store.images()


@contextlib.asynccontextmanager
async def _only_one(key: str, what: str, on_event: OnEvent) -> AsyncIterator[bool]:
    """Of all processes that get the same image one does, the others wait here; tells whether we waited."""
    folder = paths.downloads_dir()
    async with contextlib.AsyncExitStack() as held:
        try:
            waited = await held.enter_async_context(one_at_a_time(folder / f"{key}.lock", what, on_event))
        except OSError as e:
            raise convert.storing_failed(e, what, folder) from e
        await arrive("image.lock")
        yield waited


def _stamp(path: Path) -> str:
    """What changes when the file does: size, inode, modification time. Empty for a file that is not there."""
    try:
        info = path.stat()
    except OSError:
        return ""
    return f"{info.st_size}:{info.st_ino}:{info.st_mtime_ns}"


def _checked_name(name: str) -> str:
    if _NAME.fullmatch(name) and not _HEX.fullmatch(name):
        return name
    raise UsageError(
        f"{name!r} is not a name for an image",
        why="it has 1 to 63 of a-z, 0-9, '.', '_' and '-', begins and ends with a letter or digit, and is no digest",
        hint="for example --name my-debian",
    )


def _checked_sha256(sha256: str) -> str:
    sha256 = sha256.lower()
    if not sha256 or (len(sha256) == 64 and _HEX.fullmatch(sha256)):
        return sha256
    raise UsageError(
        f"{sha256!r} is not a sha256", hint="it has 64 hexadecimal digits, as `sha256sum FILE` prints them"
    )


def _unknown(ref: str) -> NotFoundError:
    return NotFoundError(
        f"there is no image {ref!r}",
        why="it is no name or digest of an image here, no alias of the catalog, no URL and no file",
        hint=f"`fleetbox image ls` lists the images that are here; the catalog has {', '.join(catalog.entries())}",
    )
