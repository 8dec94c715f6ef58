"""A cluster's runtime folder: which of its sockets and pidfiles belong to nobody any more."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from fleetbox.identity import is_alive
from fleetbox.records import ClusterRecord


def clear(folder: Path, record: ClusterRecord | None) -> None:
    """Remove what belongs to nobody, and without a live machine the whole folder. Blocks."""
    live = live_pids(record)
    if not live:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path in stale_files(folder, live):
        path.unlink(missing_ok=True)


def live_pids(record: ClusterRecord | None) -> set[int]:
    """The pids of the cluster's machines that run."""
    handles = [m.handle for m in record.members.values() if m.handle] if record else []
    return {handle.process.pid for handle in handles if is_alive(handle.process)}


def stale_files(folder: Path, live: Collection[int]) -> list[Path]:
    """Sockets that nobody is bound to, and pidfiles that name none of the `live` pids. Blocks.

    Only the kernel's list is read: connecting would disturb a machine. It has one for each network namespace, so those
    of the live processes are read besides our own. The masters of OpenSSH, bound under another name, are left alone.
    """
    bound: set[Path] = set()
    for pid in {os.getpid(), *live}:
        bound |= _bound(pid)
    return [path for path in sorted(folder.iterdir()) if _is_stale(path, bound, live)] if folder.is_dir() else []


def _bound(pid: int) -> set[Path]:
    """Where the unix sockets of a process's network namespace are bound (proc_net(5))."""
    found = set()
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/net/unix").read_text(errors="replace").splitlines()[1:]:
            fields = line.split(None, 7)
            if len(fields) == 8:
                found.add(Path(fields[7]))
    return found


def _is_stale(path: Path, bound: Collection[Path], live: Collection[int]) -> bool:
    if path.suffix == ".pid":
        return pid_in(path) not in live
    if ".ssh" in path.name or not path.is_socket():
        return False
    # One that was bound by a relative path may be this one.
    return not any(
        other.name == path.name and (not other.is_absolute() or other.resolve() == path.resolve()) for other in bound
    )


def pid_in(pidfile: Path) -> int:
    """The pid in a file, 0 when there is none."""
    with contextlib.suppress(OSError, ValueError):
        return int(pidfile.read_text())
    return 0
