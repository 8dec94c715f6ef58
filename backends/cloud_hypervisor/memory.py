"""The host's memory as cloud-hypervisor uses it: huge pages, and faults that are served in user space."""

from __future__ import annotations

import asyncio
import ctypes
import os
from contextlib import AsyncExitStack
from pathlib import Path

MEMINFO = Path("/proc/meminfo")

_UFFD_SYSCALL = {"x86_64": 323, "aarch64": 282}


class HugePages:
    """Who takes the host's free huge pages: one machine at a time, from looking until they are its own."""

    def __init__(self, meminfo: Path = MEMINFO) -> None:
        self._meminfo = meminfo
        self._turn = asyncio.Lock()

    async def take(self, size_bytes: int, coming_up: AsyncExitStack) -> bool:
        """Whether the host has free huge pages for all of a machine's memory.

        When it has, nobody else is told so until `coming_up` ends: by then the machine has populated its memory.
        """
        if not self._free_bytes() >= size_bytes > 0:
            return False
        await coming_up.enter_async_context(self._turn)
        return self._free_bytes() >= size_bytes

    def _free_bytes(self) -> int:
        found = {}
        for line in self._meminfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.startswith("Huge"):
                found[name] = int(value.split()[0])
        free = found.get("HugePages_Free", 0) - found.get("HugePages_Rsvd", 0)
        return free * found.get("Hugepagesize", 0) * 1024


def may_fault_in_user_space() -> bool:
    """Whether this user may make a userfaultfd that the kernel's own accesses fault through, too (userfaultfd(2)).

    A restore on demand needs one, and does not fall back to anything: it is tried here, as the hypervisor would.
    """
    try:
        os.close(os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        number = _UFFD_SYSCALL.get(os.uname().machine)
        if number is None:
            return False
        fd = ctypes.CDLL(None, use_errno=True).syscall(number, os.O_CLOEXEC | os.O_NONBLOCK)
        if fd < 0:
            return False
        os.close(fd)
    return True
