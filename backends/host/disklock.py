"""One machine per writable disk, whatever becomes of the holder.

The lock is flock(2) on `<disk>.lock`, taken by the holder and inherited by the machine's process. It belongs to the
open file, not to a process, so it is held exactly as long as the machine lives: it survives the holder's death, and no
end of the machine, however violent, leaves it behind. The lock file stays beside its disk and means nothing by itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

import psutil

from fleetbox.backends.base import Disk
from fleetbox.backends.host.disk import disk_errors
from fleetbox.errors import DiskError
from fleetbox.faultpoint import reach

DYING_S = 2.0
"""How long a killed process may go on holding a lock."""


def lock_file(disk: Path) -> Path:
    """The lock file of a disk."""
    return disk.with_name(f"{disk.name}.lock")


def lock_disk(disk: Path) -> int:
    """Lock a disk; returns the descriptor that holds the lock, for the machine's process to inherit (`pass_fds`).

    Close it once that process has it. The last threads of a machine that was killed may hold on to it for a moment:
    that is waited for. Raises DiskError, naming the process that uses the disk, when it is locked.
    """
    path = lock_file(disk)
    deadline = time.monotonic() + DYING_S
    with disk_errors(f"the disk {disk} cannot be locked"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not _locked(fd):
                users = lock_holders(disk)  # a process that is ending has no open files any more
                if users or time.monotonic() >= deadline:
                    raise _in_use(disk, users)
                time.sleep(0.02)
        except BaseException:
            os.close(fd)
            raise
    return fd


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _in_use(disk: Path, users: Iterable[int]) -> DiskError:
    return DiskError(
        f"the disk {disk} is in use",
        why="process " + ", ".join(f"{pid} ({_name(pid)})" for pid in users) + " runs on it"
        if users
        else "another process runs on it",
        hint="two machines on one disk would destroy it; stop the one that uses it first",
    )


@contextlib.contextmanager
def locked_disks(disks: Iterable[Disk]) -> Iterator[tuple[int, ...]]:
    """Lock the writable ones of `disks` while a machine is launched: yields the descriptors to pass to its process.

    Afterwards the process alone holds the locks; when there is none, they are free again. Raises as `lock_disk` does.
    """
    with contextlib.ExitStack() as stack:
        fds = []
        for disk in disks:
            if not disk.read_only:
                fds.append(lock_disk(disk.path))
                stack.callback(os.close, fds[-1])
        reach("machine.lock")
        yield tuple(fds)


def lock_holders(*disks: Path) -> tuple[int, ...]:
    """The pids that hold the lock of one of the disks, as far as this user may see them; none when all are free.

    Found by their open files: the pid in /proc/locks is that of the process that took the lock and may be long gone.
    """
    wanted = _files(disks)
    return tuple(pid for pid in psutil.pids() if _holds(pid, wanted)) if wanted else ()


def _files(disks: Iterable[Path]) -> set[tuple[int, int]]:
    """The lock files that are there, by device and inode."""
    found = set()
    for disk in disks:
        with contextlib.suppress(OSError):
            info = lock_file(disk).stat()
            found.add((info.st_dev, info.st_ino))
    return found


def runs_on(pid: int, *disks: Path) -> bool:
    """Whether the process holds the lock of one of the disks."""
    return _holds(pid, _files(disks))


def processes_on(folder: Path) -> Iterator[tuple[int, Path]]:
    """Every process that holds the lock of a disk below `folder`, as far as this user may see it: pid and disk.

    A disk that was deleted under its machine counts as well. One pass over all processes, for some ms.
    """
    root = f"{folder.resolve()}/"
    here = Path("/proc/self/ns/mnt").stat()
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    target = str(fd.readlink())
                    disk = Path(target.removesuffix(" (deleted)").removesuffix(".lock"))
                    # The same path in another mount namespace is another file.
                    if (
                        target.startswith(root)
                        and ".lock" in target
                        and os.path.samestat(Path(f"/proc/{pid}/ns/mnt").stat(), here)
                        and _has_flock(fd)
                    ):
                        yield pid, folder / disk.relative_to(folder.resolve())


def _holds(pid: int, wanted: Container[tuple[int, int]]) -> bool:
    with contextlib.suppress(OSError):  # the process ended meanwhile, or is another user's
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found = fd.stat()
                if (found.st_dev, found.st_ino) in wanted and _has_flock(fd):
                    return True
    return False


def _has_flock(fd: Path) -> bool:
    """Whether an open file of a process (`/proc/PID/fd/N`) holds a lock: fdinfo lists those of just this open file
    (proc(5)), so one that merely tries is not named.
    """
    return "FLOCK" in (fd.parents[1] / "fdinfo" / fd.name).read_text()


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "?"
