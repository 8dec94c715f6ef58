"""How a lasting child lives: for how long beside its parent, as whom, and with which rights.

All of it is set by setpriv(1) before the program begins, never by code of ours in the forked child of a process that
has threads.

* **Bound**: the child gets SIGKILL when the thread that started it ends (PR_SET_PDEATHSIG, prctl(2)). A parent that
  ends before that is set is noticed by a shell that compares its parent afterwards, so there is no gap. What clears
  the signal (changing uid, gaining capabilities) must happen before: a program that would drop its rights by itself is
  started without them.
* **Rights**: no capability but those that are named, and no way to gain any (`no_new_privs`).
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from fleetbox.backends.host import capabilities, programs
from fleetbox.errors import HostError
from fleetbox.network import effective_capabilities

# A bit in /proc/PID/status (capabilities(7)).
_BITS = {"dac_read_search": 2, "net_bind_service": 10, "net_admin": 12, "net_raw": 13, "sys_admin": 21}

_STILL_THERE = '[ "$PPID" = "$0" ] || exit 1; exec "$@"'


@dataclass(frozen=True)
class Confinement:
    """What a lasting child is given. `keeps` are capabilities that it may have where we have them; None: all of ours.

    `user` is who it becomes where we are root; empty: who we are.
    """

    bound: bool = False
    keeps: tuple[str, ...] | None = None
    user: str = ""


FREE = Confinement()
"""As its parent, and for as long as it likes."""


def confined(argv: Sequence[str], confinement: Confinement) -> list[str]:
    """The argv that starts `argv` like that, from the calling process. Raises HostError when that cannot be done.

    Rights that cannot be dropped, as setpriv is not installed, are kept; a child that cannot be bound is an error.
    """
    setpriv = programs.find("setpriv")
    if confinement == FREE or (setpriv is None and not confinement.bound):
        return list(argv)
    if setpriv is None:
        raise programs.missing("setpriv")
    how: list[str] = []
    if confinement.keeps is not None:
        how += _rights(confinement.keeps, confinement.user)
    if not confinement.bound:
        return [str(setpriv), *how, "--", *argv]
    shell = ["/bin/sh", "-c", _STILL_THERE, str(os.getpid())]
    return [str(setpriv), *how, "--pdeathsig", "KILL", "--", *shell, *argv]


# What lets root's programs read its users' files; a user's own need no more than the user may.
_OF_ROOT = {"dac_read_search"}


def _kept(keeps: Collection[str]) -> list[str]:
    return [name for name in keeps if os.geteuid() == 0 or name not in _OF_ROOT]


def passed_on(confinement: Confinement) -> contextlib.AbstractContextManager[None]:
    """Within it, the calling thread can start what keeps capabilities although it is not root's."""
    return capabilities.passed_on(*(_BITS[name] for name in _kept(confinement.keeps or ())))


def _rights(keeps: Collection[str], user: str) -> list[str]:
    # A user's own are those of its user namespace; elsewhere it has none.
    mine = _bounding() if os.geteuid() == 0 else effective_capabilities()
    only = ",".join(["-all", *(f"+{name}" for name in _kept(keeps) if mine >> _BITS[name] & 1)])
    how = ["--no-new-privs"]
    if os.geteuid() != 0:
        return [*how, f"--inh-caps={only}", f"--ambient-caps={only}"]
    if user:
        found = _user(user)
        # Only ambient capabilities survive the exec of one who is not root.
        how += [f"--reuid={found.pw_uid}", f"--regid={found.pw_gid}", "--clear-groups"]
        return [*how, f"--inh-caps={only}", f"--ambient-caps={only}", f"--bounding-set={only}"]
    return [*how, "--inh-caps=-all", "--ambient-caps=-all", f"--bounding-set={only}"]


def _bounding() -> int:
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapBnd:"):
            return int(line.split()[1], 16)
    return 0


def _user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise HostError(f"there is no user {name!r} on this host") from None
