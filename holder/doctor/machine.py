"""Folders, disk, memory, cores and clock of the host. Everything here blocks, for ever on a dead file system."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from fleetbox import paths
from fleetbox.host import Check
from fleetbox.sizes import GIB, format_size
from fleetbox.specs import MemberSpec

LOW_DISK_BYTES = 10 * GIB
TOO_LOW_DISK_BYTES = 2 * GIB


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    return next(p for p in (path, *path.parents) if p.exists())


def folder_problem(path: Path, private: bool) -> str:
    """What is wrong with one of fleetbox's folders, in words; empty when it is usable or can be made."""
    place = _existing(path)
    if not place.is_dir():
        return f"{place} is not a folder"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"{place} cannot be written to"
    if place == path:
        info = path.stat()
        if info.st_uid != os.geteuid():
            return f"{path} belongs to uid {info.st_uid}"
        if info.st_mode & (0o077 if private else 0o022):
            return f"{path} is open to others (mode {info.st_mode & 0o777:o})"
    return ""


def may_close(path: Path) -> bool:
    """Whether a folder is ours and merely open to others."""
    return path.is_dir() and not path.is_symlink() and path.stat().st_uid == os.geteuid()


def repair_order(path: Path) -> str:
    """The command that makes a folder ours and closes it; empty where that does not help."""
    if not path.is_dir():
        return ""
    mode = f"chmod go-rwx {shlex.quote(str(path))}"
    return mode if may_close(path) else f"sudo chown -R {os.geteuid()} {shlex.quote(str(path))} && {mode}"


def check_folders() -> Check:
    """Data, state, cache and runtime folders: writable, ours, not open to others."""
    folders = {
        paths.data_dir(): False,
        paths.state_dir(): False,
        paths.cache_dir(): False,
        paths.runtime_dir(): True,
    }
    problems = {path: problem for path, private in folders.items() if (problem := folder_problem(path, private))}
    if problems:
        orders = " && ".join(filter(None, (repair_order(path) for path in problems)))
        hint = (
            f"run: {orders}; or set FLEETBOX_HOME to a folder of yours" if orders else "set FLEETBOX_HOME to a folder"
        )
        fixable = all(may_close(path) for path in problems)
        return Check("folders", "fail", "; ".join(problems.values()), hint, fixable=fixable)
    return Check("folders", "ok", f"data {paths.data_dir()}, state {paths.state_dir()}, cache {paths.cache_dir()}")


def check_disk_space() -> Check:
    """Free space where images and disks go: an image takes about one GiB, a member what it writes."""
    place = _existing(paths.data_dir())
    free = shutil.disk_usage(place).free
    message = f"{format_size(free)} free in {place}"
    hint = "make room, or set FLEETBOX_HOME to a folder on a larger disk"
    if free < TOO_LOW_DISK_BYTES:
        return Check("disk space", "fail", message, hint)
    if free < LOW_DISK_BYTES:
        return Check("disk space", "warn", message, hint)
    return Check("disk space", "ok", message)


def check_memory() -> Check:
    """How many members of the default size fit into the memory that is free now."""
    available = psutil.virtual_memory().available
    member = MemberSpec().memory_bytes
    fitting = available // member
    message = f"{format_size(available)} available: room for {fitting} members of {format_size(member)}"
    if fitting < 1:
        return Check("memory", "warn", message, "give members less: fleetbox up NAME --memory 512M")
    return Check("memory", "ok", message)


def check_cores() -> Check:
    """Cores that this process may use."""
    cores = len(os.sched_getaffinity(0))
    message = f"{cores} of {os.cpu_count()} cores are usable"
    if cores < 2:
        return Check("cores", "warn", message, "machines will boot one after another, slowly")
    return Check("cores", "ok", message)


SKEW_S = 120.0


def check_clock(now: Callable[[], float] = time.time) -> Check:
    """Whether the clock stands before what fleetbox has written: then it was turned back, or is wrong."""
    written = [paths.clusters_dir(), paths.images_dir(), paths.keys_dir(), paths.data_dir(), paths.state_dir()]
    newest = max((path.stat().st_mtime for path in written if path.exists()), default=0.0)
    behind = newest - now()
    if behind > SKEW_S:
        hint = "run: sudo timedatectl set-ntp true (or set the clock)"
        return Check("clock", "warn", f"it is {behind:.0f} s behind what fleetbox wrote last", hint)
    return Check("clock", "ok", f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(now()))} UTC")
