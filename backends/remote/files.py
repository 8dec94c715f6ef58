"""A machine's files as the helper is told of them: by digest, sent when it lacks them, never by path."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fleetbox.backends.base import DirectBoot, Disk, DiskFormat, VMConfig
from fleetbox.backends.host.backing import backing_name
from fleetbox.backends.host.disk import disk_errors
from fleetbox.backends.remote.link import Link
from fleetbox.backends.remote.wire import Boot, DiskImage, File, Lacking, Layer, Offer
from fleetbox.errors import DiskError

_BLOB = re.compile(r"(?P<digest>[0-9a-f]{64})\.(?P<format>raw|qcow2)")
_READ_BYTES = 1 << 20
_CHAIN_MAX = 16


@dataclass
class Parcel:
    """What one launch is made of: the files by digest, with where they are here."""

    paths: dict[str, Path] = field(default_factory=dict)

    def add(self, path: Path) -> str:
        """Take a file in and return its digest. Blocks; raises OSError."""
        digest = digest_of(path)
        self.paths[digest] = path
        return digest

    def disk(self, disk: Disk) -> DiskImage:
        """Take a disk in with all that it stands on. Blocks; raises OSError, DiskError."""
        path, kind = disk.path, disk.format
        layers = [Layer(self.add(path), kind)]
        while kind == "qcow2" and (name := backing_name(path)):
            path = path.parent / name  # an absolute name replaces the folder
            blob = _BLOB.fullmatch(path.name)
            if blob is None:
                raise DiskError(
                    f"the disk {disk.path} stands on {path}",
                    why="only base disks of fleetbox can be sent to another holder",
                )
            kind = _format(blob["format"])
            self.paths[blob["digest"]] = path  # named by its digest, which the other side verifies
            layers.append(Layer(blob["digest"], kind))
            if len(layers) > _CHAIN_MAX:
                raise DiskError(f"the disk {disk.path} stands on too many others")
        return DiskImage(tuple(layers), disk.read_only, disk.serial, "" if disk.read_only else str(disk.path))

    def boot(self, config: VMConfig) -> Boot:
        """Take in what the machine boots from. Blocks; raises OSError."""
        boot = config.boot
        if isinstance(boot, DirectBoot):
            return Boot(
                "direct", self.add(boot.kernel), self.add(boot.initrd) if boot.initrd else "", cmdline=boot.cmdline
            )
        return Boot("firmware", self.add(boot.firmware) if boot.firmware else "")

    def folder(self, folder: Path | None, names: Iterable[str]) -> dict[str, str]:
        """Take in the files of a folder that are there, by name. Blocks; raises OSError."""
        return {name: self.add(folder / name) for name in names if folder and (folder / name).is_file()}


class Sender:
    """Sends what the helper lacks; of several machines that need the same file, one sends it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._turns: dict[str, asyncio.Lock] = {}

    async def send(self, machine: str, paths: Mapping[str, Path]) -> None:
        """Return when the helper has all of these files. Raises HolderError, DiskError."""
        with disk_errors("a disk cannot be read"):
            files = tuple(File(digest, path.stat().st_size) for digest, path in paths.items())
        offer = Offer(machine, files)
        for digest in (await self._link.call("offer", offer, Lacking)).files:
            async with self._turns.setdefault(digest, asyncio.Lock()):
                start = (await self._link.call("offer", offer, Lacking)).files.get(digest)
                if start is not None:
                    await self._link.send_file(digest, paths[digest], start)


_known: dict[Path, tuple[tuple[int, ...], str]] = {}


def digest_of(path: Path) -> str:
    """The sha256 of a file; read again only when it has changed. Blocks; raises OSError."""
    with path.open("rb", buffering=0) as file:
        found = os.fstat(file.fileno())
        stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if (known := _known.get(path)) is not None and known[0] == stamp:
            return known[1]
        digest = hashlib.sha256()
        while data := file.read(_READ_BYTES):
            digest.update(data)
    _known[path] = stamp, digest.hexdigest()
    return digest.hexdigest()


def _format(name: str) -> DiskFormat:
    return "qcow2" if name == "qcow2" else "raw"
