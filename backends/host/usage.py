"""What a process costs the host."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fleetbox.errors import MachineError
from fleetbox.identity import ProcessIdentity, is_alive


class Usage(NamedTuple):
    """Processor seconds of all its threads since it began, and the resident memory that it has now, in bytes."""

    cpu_seconds: float
    memory_bytes: int


def usage(process: ProcessIdentity) -> Usage:
    """What exactly that process uses. Raises MachineError when it has ended."""
    import psutil

    try:
        found = psutil.Process(process.pid)
        with found.oneshot():
            times, memory = found.cpu_times(), found.memory_info()
    except psutil.Error as e:
        raise MachineError("the machine has ended", why=str(e)) from None
    if not is_alive(process):  # the pid may be another's by now
        raise MachineError("the machine has ended", why=f"process {process.pid} is gone")
    return Usage(times.user + times.system, memory.rss)


def transferred(process: ProcessIdentity) -> tuple[int, int]:
    """Bytes that the process has read and written (proc_pid_io(5)). Raises MachineError when it has ended."""
    try:
        lines = dict(line.split(": ") for line in Path(f"/proc/{process.pid}/io").read_text().splitlines())
    except OSError as e:
        raise MachineError("the machine has ended", why=str(e)) from None
    return int(lines["rchar"]), int(lines["wchar"])
