"""Whoever wants the same thing made takes turns: one makes it, the others wait and find it there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import filelock

from fleetbox.backends.host.files.worker import OnEvent
from fleetbox.wire import Notice

_POLL_S = 0.2


@contextlib.asynccontextmanager
async def one_at_a_time(lock_file: Path, what: str, on_event: OnEvent) -> AsyncIterator[bool]:
    """Hold the lock of `what`, among all processes of this host; tells whether we waited for somebody else.

    Raises OSError when there can be no lock file.
    """
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(lock_file)
    waited = False
    while True:
        try:
            lock.acquire(blocking=False)
            break
        except filelock.Timeout:
            if not waited:
                on_event(Notice(message=f"{what}: another fleetbox is getting it; waiting for that"))
            waited = True
            await asyncio.sleep(_POLL_S)
    try:
        yield waited
    finally:
        lock.release()
