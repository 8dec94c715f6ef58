"""A machine's serial log: the file that its hypervisor appends the guest's first console to."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

# The first lines that a kernel prints once its time stamp counter and APIC timers are calibrated, by age of kernel,
# and what follows where a kernel is told to be quiet: init's own greeting, a login prompt.
CALIBRATED = re.compile(
    rb"smp: Brought up|x86: Booted up|Brought up \d+ CPUs|smpboot: Total of \d+ processors"
    rb"|clocksource: Switched to clocksource|Switching to clocksource|Run /\S+ as init process|Freeing unused kernel"
    rb"|systemd\[1\]:|Welcome to |login: "
)

_OVERLAP_BYTES = 256
_CHUNK_BYTES = 1 << 16


def prepare(log: Path, *, keep: bool) -> None:
    """Make the log, readable by its owner only, and empty for a new boot; a restored machine goes on in it.

    Raises OSError.
    """
    log.touch(mode=0o600)
    if not keep:
        with log.open("wb"):
            pass


async def wait_for(log: Path, pattern: re.Pattern[bytes], interval_s: float = 0.1) -> None:
    """Return when the log holds a match; a log that is not there yet holds none.

    Never gives up: bound it by a time limit.
    """
    offset, text = 0, b""
    while True:
        try:
            with log.open("rb") as file:
                file.seek(offset)
                new = file.read(_CHUNK_BYTES)
        except FileNotFoundError:
            new = b""
        offset += len(new)
        text = text[-_OVERLAP_BYTES:] + new
        if new and pattern.search(text):
            return
        if len(new) < _CHUNK_BYTES:
            await asyncio.sleep(interval_s)
