"""Folders that land whole or not at all: images, snapshots and templates, each made and removed under one lock.

What is being made stands in a placeholder, a hidden folder beside its place, and is finalised by one rename (`land`) or
rolled back. A placeholder is locked by its maker (flock(2) on the folder itself, which the kernel frees with the
process) and names it besides. Once that process is provably dead it is collected at once; when that cannot be known,
after a day. What is removed is taken out of sight by one rename as well, and then deleted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import msgspec

from fleetbox.backends.host.disk import disk_errors
from fleetbox.errors import ConflictError
from fleetbox.holder.lock import DYING_S, lock_descriptor
from fleetbox.identity import UNKNOWN_MAKER_S, Maker, this_maker

PLACEHOLDER = ".new-"
_GONE = ".gone-"
_MAKER = ".maker"
_LOCK_TIMEOUT_S = 60.0


class Placeholder:
    """A folder that its maker fills; `Landing.reserve` makes it."""

    def __init__(self, folder: Path, fd: int) -> None:
        self.folder = folder
        self._fd = fd

    def roll_back(self) -> None:
        """Delete it, or what is left of it when its content has landed. Blocks."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._fd)


class Landing:
    """The folders of one store below `root`; `what` it holds is for errors. `lock_file` is elsewhere when the root may
    vanish.
    """

    def __init__(self, root: Path, what: str, lock_file: Path | None = None) -> None:
        self.root = root
        self._what = what
        self._lock_file = lock_file or root / ".lock"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one, of all processes, who changes the store. Raises DiskError, ConflictError after a minute."""
        with disk_errors(f"the {self._what}s cannot be changed"):
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock_file.parent.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self._lock_file, timeout=_LOCK_TIMEOUT_S)
            try:
                lock.acquire()
            except filelock.Timeout:
                raise ConflictError(
                    f"the {self._what} store is locked",
                    why=f"another process has held it for {_LOCK_TIMEOUT_S:.0f} s",
                    hint=f"see who has {self._lock_file} open",
                ) from None
        try:
            yield
        finally:
            lock.release()

    def reserve(self) -> Placeholder:
        """A placeholder of ours; those of the dead are collected. Blocks."""
        with self.locked():
            self.collect(dry_run=False)
            with disk_errors(f"no {self._what} can be made in {self.root}"):
                folder = Path(tempfile.mkdtemp(prefix=PLACEHOLDER, dir=self.root))
                fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                placeholder = Placeholder(folder, fd)
                try:
                    lock_descriptor(fd)
                    (folder / _MAKER).write_bytes(msgspec.json.encode(this_maker()))
                except BaseException:
                    placeholder.roll_back()
                    raise
        return placeholder

    @contextlib.contextmanager
    def placeholder(self) -> Iterator[Path]:
        """The folder of a placeholder, rolled back at the end: land it, or a folder in it, before."""
        placeholder = self.reserve()
        try:
            yield placeholder.folder
        finally:
            placeholder.roll_back()

    def land(self, folder: Path, name: str) -> None:
        """Finalise: move a placeholder, or a folder in one, into place under `name`. With the lock held."""
        place = folder.rename(self.root / name)
        (place / _MAKER).unlink(missing_ok=True)
        sync(self.root)

    def take_out(self, name: str) -> Path | None:
        """Take what stands under `name` out of sight in one step, to be deleted then; None when nothing does."""
        gone = self.root / f"{_GONE}{name[:16]}-{time.time_ns()}"
        try:
            (self.root / name).rename(gone)
        except FileNotFoundError:
            return None
        return gone

    def collect(self, *, dry_run: bool) -> list[str]:
        """Delete the placeholders of the dead, and what was taken out and not deleted; returns their names. With the
        lock held.
        """
        found = []
        for folder in sorted(self.root.iterdir()) if self.root.is_dir() else ():
            if folder.name.startswith(_GONE) or (folder.name.startswith(PLACEHOLDER) and _is_abandoned(folder)):
                found.append(folder.name)
                if not dry_run:
                    shutil.rmtree(folder, ignore_errors=True)
        return found


def _is_abandoned(folder: Path) -> bool:
    """Whether nobody makes anything in a placeholder any more."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        try:
            maker = msgspec.json.decode((folder / _MAKER).read_bytes(), type=Maker)
        except (OSError, msgspec.DecodeError):
            maker = None
        gone = maker.is_gone() if maker is not None else None
        # A killed process may hold its lock for a moment. With the lock, nothing is left to doubt but other hosts.
        if gone is False or not lock_descriptor(fd, DYING_S if gone else 0.0):
            return False
        # Whoever makes one has the store's lock until its name stands in it: an empty one has been given up.
        return gone or not any(folder.iterdir()) or time.time() - folder.stat().st_mtime > UNKNOWN_MAKER_S
    finally:
        os.close(fd)


def sync(path: Path) -> None:
    """Put a file, or a folder's list of names, on disk (fsync(2))."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
