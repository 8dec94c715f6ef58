"""The dial socket: connections into the cluster's network, handed over to their user alone (see `fleetbox.reach`)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import socket
import struct
from pathlib import Path

import msgspec

from fleetbox.backends.base import timeout_scale
from fleetbox.backends.host import reach
from fleetbox.backends.host.thread import HostThread

log = logging.getLogger(__name__)

_REQUEST_LIMIT = 4096
_REQUEST_LIMIT_S = 10.0
_CONNECT_LIMIT_S = 20.0


class Dial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One request: a TCP connection to `host`'s `port`, or the namespaces."""

    host: str = ""
    port: int = 0
    namespaces: bool = False


class DialServer:
    """Serves one listening socket until it is closed; every connection is one request."""

    def __init__(self, listening: socket.socket, host: HostThread) -> None:
        self._listening = listening
        self._host = host
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.create_task(self._accept(), name="dial")

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listening)
            except OSError as e:  # out of descriptors: the next one may find some
                log.warning("a dial connection was not taken: %s", e)
                await asyncio.sleep(0.1)
                continue
            task = asyncio.create_task(self._serve(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket) -> None:
        with connection:
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            pid, uid, _ = struct.unpack("3i", credentials)
            if uid != os.geteuid():
                log.warning("refused a dial of uid %d (pid %d)", uid, pid)
                return
            connection.setblocking(False)
            given: list[int] = []
            answer: dict[str, object] = {}
            try:
                async with asyncio.timeout(_REQUEST_LIMIT_S * timeout_scale()):
                    request = msgspec.json.decode(await _line(connection), type=Dial)
                given = await self._given(request)
            except (msgspec.DecodeError, ValueError, OverflowError) as e:
                answer = {"errno": errno.EINVAL, "error": f"the request cannot be understood: {e}"}
            except OSError as e:  # a TimeoutError of ours is one without a number
                number = e.errno or errno.ETIMEDOUT
                answer = {"errno": number, "error": os.strerror(number)}  # asyncio has words of its own
            try:
                with contextlib.suppress(OSError):
                    socket.send_fds(connection, [msgspec.json.encode(answer) + b"\n"], given)
            finally:
                for descriptor in given:
                    os.close(descriptor)

    async def _given(self, request: Dial) -> list[int]:
        if request.namespaces:
            return await self._host.run(_namespaces)
        address = str(ipaddress.ip_address(request.host))  # nothing is looked up: not by name, not outside
        connected = await reach.connect(self._host, address, request.port, _CONNECT_LIMIT_S * timeout_scale())
        connected.setblocking(True)
        return [connected.detach()]

    async def close(self) -> None:
        """Stop serving; connections that were handed over go on."""
        for task in (self._accepting, *self._tasks):
            task.cancel()
        await asyncio.gather(self._accepting, *self._tasks, return_exceptions=True)
        self._listening.close()


async def _line(connection: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    line = bytearray()
    while b"\n" not in line:
        more = await loop.sock_recv(connection, _REQUEST_LIMIT)
        if not more or len(line) > _REQUEST_LIMIT:
            break
        line += more
    return bytes(line)


def _namespaces() -> list[int]:
    """Files of the host thread's namespaces: the user's where it is not root's own, and the network's."""
    names = ["net"] if os.geteuid() == 0 else ["user", "net"]
    return [os.open(Path("/proc/thread-self/ns", name), os.O_RDONLY | os.O_CLOEXEC) for name in names]
