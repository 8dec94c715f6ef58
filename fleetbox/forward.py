"""Ports of members on this host's loopback, for as long as somebody wants them: `Member.forward`.

Every connection that comes in on the local port is carried to the member's, the same way on every network (see
`fleetbox.reach`). Other users of the host can reach loopback ports, as with `ssh -L`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from fleetbox.errors import ConflictError, FleetboxError

log = logging.getLogger(__name__)

_CHUNK = 1 << 16

Connect = Callable[[], socket.socket]


class Forward:
    """A listening port on 127.0.0.1 whose connections `connect` carries on; `close` ends it and all of them.

    `port` is the local one (0 asks for any free port). A context manager. Raises ConflictError when it is taken.
    """

    def __init__(self, connect: Connect, port: int = 0) -> None:
        self._connect = connect
        self._listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listening.bind(("127.0.0.1", port))
            self._listening.listen(64)
        except OSError as e:
            self._listening.close()
            raise ConflictError(
                f"the port {port} of this host cannot be used", why=e.strerror or str(e), hint="choose another one"
            ) from e
        self.port: int = self._listening.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._serving = self._loop.create_task(self._serve())
        self._thread = threading.Thread(target=self._run, name=f"forward {self.port}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError), contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serving)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._carry, sock=self._listening)
        carried = asyncio.current_task()
        try:
            await server.serve_forever()
        finally:
            others = asyncio.all_tasks() - {carried}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            connected = await asyncio.to_thread(self._connect)
        except (FleetboxError, OSError) as e:
            log.warning("%s", e)
            # Closed with a reset, as the member's own refusal would be (socket(7), SO_LINGER).
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return
        there_reader, there_writer = await asyncio.open_connection(sock=connected)
        try:
            await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))
        finally:
            for end in (writer, there_writer):
                end.transport.abort() if end.transport.is_closing() else end.close()

    def close(self) -> None:
        """Close the port and the connections through it; repeatable."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # it has just ended
                self._loop.call_soon_threadsafe(self._serving.cancel)
            self._thread.join()
        self._listening.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry one direction until its end, which is passed on; the other direction may go on."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
