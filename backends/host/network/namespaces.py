"""Whether a network namespace still exists (namespaces(7))."""

from __future__ import annotations

import contextlib
from pathlib import Path


def exists(inode: int) -> bool:
    """Whether a process is in the namespace, or a mount such as /run/netns/NAME keeps it."""
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
