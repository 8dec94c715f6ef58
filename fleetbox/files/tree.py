"""A tree of files that is copied from or to, and the one of this host."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

BLOCK_BYTES = 1 << 20

Kind = Literal["file", "folder", "link", "other"]


@dataclass(frozen=True)
class Entry:
    """What a path is. `mode` is its permission bits, times are Unix seconds; `target` is where a link leads."""

    kind: Kind
    size_bytes: int
    mode: int
    accessed_at: float
    modified_at: float
    target: str = ""

    @property
    def times(self) -> tuple[float, float]:
        return self.accessed_at, self.modified_at


def kind_of(mode: int) -> Kind:
    """The kind of file that a mode (inode(7)) says."""
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "link" if stat.S_ISLNK(mode) else "other"


class Tree(Protocol):
    """The files of this host or of a member. Everything raises OSError for what that side refuses."""

    name: str
    """The member's ref, empty here."""

    def find(self, path: str, *, follow: bool = False) -> Entry | None:
        """What is there, None for nothing. With `follow`, what a link leads to."""

    def entries(self, path: str) -> Iterator[tuple[str, Entry]]:
        """What stands in a folder, by name, as that side says: the names are not checked here."""

    def matches(self, pattern: str) -> list[str]:
        """The paths that a shell pattern matches, sorted."""

    def resolved(self, path: str) -> str:
        """The path without links."""

    def read(self, path: str, size_bytes: int) -> Iterator[bytes]:
        """A file's content; `size_bytes` is what it seems to have."""

    def write(self, path: str, content: Iterable[bytes], mode: int | None, times: tuple[float, float] | None) -> None:
        """Make the file or replace it, at once when all of `content` is there. Whatever fails leaves what was.

        `mode` None keeps the mode of a file that is replaced; `times` None are now's.
        """

    def make_folder(self, path: str) -> None:
        """Make a folder that this user may write to."""

    def finish_folder(self, path: str, mode: int, times: tuple[float, float]) -> None:
        """Give a folder its mode and times, once its content is there."""

    def make_link(self, path: str, target: str) -> None:
        """Make a symbolic link, or replace one."""


class HostTree:
    """This host's files."""

    name = ""

    def find(self, path: str, *, follow: bool = False) -> Entry | None:
        try:
            info = os.stat(path, follow_symlinks=follow)  # noqa: PTH116 - one call for both
        except (FileNotFoundError, NotADirectoryError):
            return None
        return _entry(info, os.readlink(path) if stat.S_ISLNK(info.st_mode) else "")  # noqa: PTH115

    def entries(self, path: str) -> Iterator[tuple[str, Entry]]:
        for found in sorted(os.scandir(path), key=lambda e: e.name):
            target = os.readlink(found.path) if found.is_symlink() else ""  # noqa: PTH115
            yield found.name, _entry(found.stat(follow_symlinks=False), target)

    def matches(self, pattern: str) -> list[str]:
        return sorted(glob.glob(pattern))  # noqa: PTH207 - the pattern is a whole path

    def resolved(self, path: str) -> str:
        return os.path.realpath(path)

    def read(self, path: str, size_bytes: int) -> Iterator[bytes]:
        with Path(path).open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block

    def write(self, path: str, content: Iterable[bytes], mode: int | None, times: tuple[float, float] | None) -> None:
        folder, name = os.path.split(path)
        temporary = Path(folder or ".") / f".{name[:200]}.{secrets.token_hex(6)}"
        with contextlib.ExitStack() as undo:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            undo.callback(temporary.unlink, missing_ok=True)
            with os.fdopen(fd, "wb", buffering=0) as file:
                for block in content:
                    file.write(block)
                os.fchmod(fd, _mode_for(self, path) if mode is None else mode)
            if times is not None:
                os.utime(temporary, times)
            temporary.replace(path)
            undo.pop_all()

    def make_folder(self, path: str) -> None:
        Path(path).mkdir(mode=0o700)

    def finish_folder(self, path: str, mode: int, times: tuple[float, float]) -> None:
        Path(path).chmod(mode)
        os.utime(path, times)

    def make_link(self, path: str, target: str) -> None:
        link = Path(path)
        if link.is_symlink():
            link.unlink()
        link.symlink_to(target)


def _entry(info: os.stat_result, target: str) -> Entry:
    mode = stat.S_IMODE(info.st_mode)
    return Entry(kind_of(info.st_mode), info.st_size, mode, info.st_atime, info.st_mtime, target)


def _mode_for(tree: HostTree, path: str) -> int:
    """The mode of a file that is made without one: that of the file that it replaces, else as the umask has it."""
    before = tree.find(path)
    if before is not None and before.kind == "file":
        return before.mode
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask
