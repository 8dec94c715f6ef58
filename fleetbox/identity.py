"""Which process is meant: pid, start and boot, never a pid alone.

A pid is reused, and a pidfile outlives its process. A process is therefore named by its pid **and** its start in clock
ticks since boot (field 22 of `/proc/PID/stat`, proc(5)) **and** the boot id, with its argv as a further check before
it is signalled. Wall-clock start times are not used: they move with the clock.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import msgspec

from fleetbox.shapes import Pid, Word


class ProcessIdentity(msgspec.Struct, frozen=True):
    """A process of this boot. `start_ticks` is since boot; `program` is the base name of argv[0].

    An empty `program` stands for any: a process that is only watched may call itself what it likes.
    """

    pid: Pid
    start_ticks: int
    boot_id: Word
    program: str


@functools.cache
def boot_id() -> str:
    """The kernel's random id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> tuple[str, int] | None:
    """(state letter, start ticks) of a process, None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(b")")[2].split()  # the command name may hold spaces, parentheses and any byte
    return fields[0].decode(), int(fields[19])


def _program(pid: int) -> str:
    try:
        argv0 = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0", 1)[0]
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""
    return os.path.basename(os.fsdecode(argv0))  # noqa: PTH119 - bytes of another process, not a path of ours


def identify(pid: int, program: str | None = None) -> ProcessIdentity | None:
    """The identity of a running process, None when it has ended (a zombie has ended).

    `program` overrides the name that is read, for a child that has not yet called exec.
    """
    found = _stat(pid)
    if found is None or found[0] in "ZX":
        return None
    return ProcessIdentity(pid, found[1], boot_id(), program if program is not None else _program(pid))


def this_process() -> ProcessIdentity:
    """Who a bound cluster belongs to: the calling process, whatever it calls itself meanwhile."""
    identity = identify(os.getpid(), program="")
    assert identity is not None
    return identity


def is_alive(identity: ProcessIdentity | None) -> bool:
    """Whether exactly this process still runs."""
    if identity is None or identity.boot_id != boot_id():
        return False
    found = _stat(identity.pid)
    return found is not None and found[0] not in "ZX" and found[1] == identity.start_ticks


UNKNOWN_MAKER_S = 24 * 3600.0
"""How old what is half made must be when it cannot be known whether its maker lives."""


class Maker(msgspec.Struct, frozen=True):
    """Who is making something: a process, and the host that it is on, as a home may be shared by several."""

    process: ProcessIdentity
    host: str

    def is_gone(self) -> bool | None:
        """Whether it has ended; None when that cannot be known from here."""
        if self.host != _host():
            return None
        return not is_alive(self.process)


def this_maker() -> Maker:
    """This process as a maker."""
    process = identify(os.getpid())
    assert process is not None
    return Maker(process, _host())


def _host() -> str:
    return os.uname().nodename


def open_pidfd(identity: ProcessIdentity) -> int | None:
    """A pidfd of exactly this process, None when it has ended.

    The identity is checked *after* the descriptor is open, so the pid cannot be reused in between; signals then go
    through the descriptor (pidfd_send_signal(2)).
    """
    try:
        fd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    if is_alive(identity) and (not identity.program or _program(identity.pid) in (identity.program, "")):
        return fd
    os.close(fd)
    return None
