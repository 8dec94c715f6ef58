"""Saving a machine's state into a file and loading it: QEMU's live migration, with a file for the other side.

Capability `x-ignore-shared`: RAM that is a shared mapping of a file is not in the stream; it is the file. It is set on
both sides, always, as it changes the stream's format; memory that is private is streamed all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from fleetbox.backends.base import timeout_scale
from fleetbox.backends.qemu.qmp import Monitor
from fleetbox.errors import MachineError

_POLL_S = 0.01
_CANCEL_S = 10.0
# While QEMU loads a state it answers nothing: a minute or more for many GiB from a slow disk.
_LOAD_S = 600.0
# Bytes a second; the default would make a snapshot of some 100 MiB take seconds, and nobody else needs this line.
_BANDWIDTH = 1 << 50
_UNDER_WAY = frozenset({"none", "setup", "wait-unplug", "pre-switchover", "active", "device", "cancelling"})
_FD = "fleetbox-state"
# `file:` came with 8.2; from 9.1 on, `fd:` with a plain file is deprecated in its favour.
_FILE_URI = (8, 2)


async def save(monitor: Monitor, version: tuple[int, int, int], state: Path) -> None:
    """Write the paused machine's state into a new file; the machine's disks are flushed to their files on the way.

    Raises MachineError and OSError. Failed or cancelled, the migration is over, the machine as it was; the file is left
    for the caller to remove.
    """
    await _prepare(monitor)
    await monitor.execute("migrate-set-parameters", {"max-bandwidth": _BANDWIDTH})
    fd = os.open(state, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        uri = await _uri(monitor, version, state, fd)
        try:
            await monitor.execute("migrate", {"uri": uri})
            status, why = await _outcome(monitor)
        except BaseException:
            await _cancel(monitor)
            raise
        if status != "completed":
            if _full(fd):
                why = f"the file system of {state.parent} is full"
            raise MachineError("its state could not be saved", why=why or f"the migration is {status}")
    finally:
        os.close(fd)


async def load(monitor: Monitor, version: tuple[int, int, int], state: Path) -> None:
    """Load a state into a machine that was started with `-incoming defer`; it is paused afterwards.

    Raises MachineError and OSError; QEMU ends itself when the state does not fit.
    """
    await _prepare(monitor)
    fd = os.open(state, os.O_RDONLY | os.O_CLOEXEC)
    try:
        await monitor.execute("migrate-incoming", {"uri": await _uri(monitor, version, state, fd)})
        status, why = await _outcome(monitor)
    finally:
        os.close(fd)
    if status != "completed":
        raise MachineError("its state could not be loaded", why=why or f"the migration is {status}")


async def _prepare(monitor: Monitor) -> None:
    capabilities = [{"capability": "x-ignore-shared", "state": True}]
    await monitor.execute("migrate-set-capabilities", {"capabilities": capabilities})


async def _uri(monitor: Monitor, version: tuple[int, int, int], state: Path, fd: int) -> str:
    if version >= _FILE_URI:
        return f"file:{state}"
    await monitor.give(fd, _FD)
    return f"fd:{_FD}"


async def _outcome(monitor: Monitor) -> tuple[str, str]:
    """How the migration has ended, and why when it failed."""
    while True:
        answer = await monitor.execute("query-migrate", timeout_s=_LOAD_S * timeout_scale())
        status = str(answer.get("status", "none"))
        if status not in _UNDER_WAY:
            return status, str(answer.get("error-desc", ""))
        await asyncio.sleep(_POLL_S)


async def _cancel(monitor: Monitor) -> None:
    """End a migration that may be under way; nothing when the machine is gone."""
    with contextlib.suppress(MachineError, TimeoutError):
        async with asyncio.timeout(_CANCEL_S * timeout_scale()):
            await monitor.execute("migrate_cancel")
            if (await monitor.execute("query-migrate")).get("status"):
                await _outcome(monitor)


def _full(fd: int) -> bool:
    found = os.fstatvfs(fd)
    return found.f_bavail * found.f_frsize < 1 << 20
