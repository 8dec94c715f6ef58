"""Namespaces (namespaces(7), user_namespaces(7)): making, joining and finding them.

An ordinary user gets a user namespace of its own first, which must happen before the process has threads; in it, one
thread makes or joins a network namespace while the others stay in the host's. The user keeps its uid inside (an
identity map): programs that it starts there have no capability, and a socket's peer still sees who it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from pathlib import Path

from fleetbox.errors import HostError

_NEW_USER = 0x10000000  # linux/sched.h
_NEW_NET = 0x40000000

APPARMOR = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")


def exists(inode: int) -> bool:
    """Whether a process is in the network namespace, or a mount such as /run/netns/NAME keeps it."""
    link = f"net:[{inode}]"
    with contextlib.suppress(OSError):
        # Field 4 is the mount's root within its file system: for namespaces, their name (proc(5)).
        if any(line.split()[3] == link for line in Path("/proc/self/mountinfo").read_text().splitlines()):
            return True
    for process in Path("/proc").glob("[0-9]*/ns/net"):
        with contextlib.suppress(OSError):
            if str(process.readlink()) == link:
                return True
    return False


def network_inode() -> int:
    """The network namespace of the calling thread."""
    return Path("/proc/thread-self/ns/net").stat().st_ino


def _call(function: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def new_network() -> None:
    """Put the calling thread into a new, empty network namespace. Raises OSError."""
    _call("unshare", _NEW_NET)


def join_network(descriptor: int) -> None:
    """Put the calling thread into the network namespace of that descriptor (a namespace's file, or a pidfd)."""
    _call("setns", descriptor, _NEW_NET)


def join_user(descriptor: int) -> None:
    """Put the process, which must have one thread, into the user namespace of that descriptor. Raises OSError."""
    _call("setns", descriptor, _NEW_USER)


def new_user() -> None:
    """Put the process, which must have one thread, into a new user namespace where it has the same uid and gid.

    Raises HostError, with what to do, where ordinary users may not make one.
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        _call("unshare", _NEW_USER)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            Path("/proc/self", name).write_text(text)
    except OSError as e:
        raise HostError("a private network cannot be made", why=_why(e), hint=_hint(e)) from e


def _why(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EUSERS):
        return "this host allows no (further) user namespaces: user.max_user_namespaces"
    if error.errno in (errno.EPERM, errno.EACCES):
        return "this host lets ordinary users make no user namespaces" + (" (AppArmor)" if _restricted() else "")
    return error.strerror or str(error)


def _hint(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EUSERS):
        return "run: sudo sysctl user.max_user_namespaces=15000"
    if _restricted():
        return "install fleetbox's AppArmor profile (docs/how-to/without-root.md), or run fleetbox as root"
    return "run: sudo sysctl kernel.unprivileged_userns_clone=1; or run fleetbox as root"


def _restricted() -> bool:
    with contextlib.suppress(OSError):
        return APPARMOR.read_text().strip() == "1"
    return False
