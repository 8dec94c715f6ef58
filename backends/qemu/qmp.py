"""The QMP connection to one machine: commands, events, and its end, on the `qemu.qmp` library.

Protocol: QEMU's "QMP specification" and "QMP reference manual" (docs/interop).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qemu.qmp import ExecuteError, Message, QMPClient, QMPError, Runstate

from fleetbox.errors import MachineError

# The library logs every end of a connection as an error, with tracebacks; ends are told to users in our own words.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

OnQMPEvent = Callable[[str, Mapping[str, Any]], None]


def listen(path: Path) -> socket.socket:
    """A listening unix socket at `path`, mode 0600, for QEMU to inherit.

    Bound before QEMU starts, so there is no moment at which it is not there or open to others. Raises OSError.
    """
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        path.chmod(0o600)  # the folder is 0700: nobody came in before
        sock.listen(1)
    except BaseException:
        sock.close()
        raise
    return sock


class Monitor:
    """One connection.

    `on_event(name, data)` is called in the event loop for every event, before anything queued after.
    """

    def __init__(self, on_event: OnQMPEvent) -> None:
        self._client = QMPClient()

        def heard(event: Message) -> bool:
            data = event.get("data")
            on_event(str(event["event"]), data if isinstance(data, dict) else {})
            return False  # nothing is queued: a guest that resets for hours must not fill our memory

        self._client.events.event_filter = heard

    @property
    def connected(self) -> bool:
        return bool(self._client.runstate == Runstate.RUNNING)

    async def connect(self, path: Path, timeout_s: float) -> None:
        """Connect and negotiate. Raises MachineError."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._client.connect(str(path))
        except TimeoutError:
            raise MachineError("QEMU does not answer", why=f"no QMP greeting in {timeout_s:.0f} s") from None
        except (QMPError, OSError, EOFError) as e:
            raise MachineError("QEMU cannot be talked to", why=str(e)) from e

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, timeout_s: float = 30.0
    ) -> dict[str, Any]:
        """Run a command and return its answer. Raises MachineError, also when the connection has ended."""
        answer = await self._execute(command, arguments, timeout_s)
        return answer if isinstance(answer, dict) else {}

    async def execute_list(self, command: str, timeout_s: float = 30.0) -> list[Any]:
        """Run a command that answers with a list. Raises as `execute` does."""
        answer = await self._execute(command, None, timeout_s)
        return answer if isinstance(answer, list) else []

    async def _execute(self, command: str, arguments: Mapping[str, object] | None, timeout_s: float) -> object:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._client.execute(command, arguments)
        except TimeoutError:
            raise MachineError(f"QEMU did not answer {command}", why=f"waited {timeout_s:.0f} s") from None
        except ExecuteError as e:
            raise MachineError(f"QEMU refused {command}", why=str(e)) from e
        except (QMPError, OSError, EOFError) as e:
            raise MachineError(f"QEMU did not answer {command}", why="the connection to it has ended") from e

    async def give(self, fd: int, name: str) -> None:
        """Hand a copy of a descriptor over; commands that take one know it as `name`. Raises MachineError."""
        try:
            self._client.send_fd_scm(fd)
        except (QMPError, OSError, AssertionError) as e:  # asserts that it is connected
            raise MachineError("QEMU cannot be given a file", why=str(e)) from e
        await self.execute("getfd", {"fdname": name})

    async def drained(self, timeout_s: float) -> None:
        """Once the process has ended: return when everything that it had said is heard, or after `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.connected:
                    await self._client.runstate_changed()

    async def close(self) -> None:
        """Disconnect; the machine stays as it is."""
        if self._client.runstate != Runstate.IDLE:
            with contextlib.suppress(QMPError, OSError, EOFError):
                await self._client.disconnect()
