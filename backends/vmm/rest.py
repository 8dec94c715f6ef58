"""A hypervisor's REST API: HTTP/1.1 with JSON over a unix socket.

A request is a connection of its own, on asyncio and `h11`, so that cancelling or giving up on one leaves no thread
behind (ADR 13). Answers are a hypervisor's, which a guest may have taken over: they are read with limits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h11
import msgspec

from fleetbox.backends.base import timeout_scale
from fleetbox.backends.host import process
from fleetbox.errors import MachineError
from fleetbox.shapes import UNDECODABLE

ANSWER_S = 30.0
_READY_POLL_S = 0.005
MAX_ANSWER_BYTES = 4 << 20
_CHUNK = 1 << 16


class Refused(MachineError):
    """The hypervisor answered with an error; `status` is the HTTP code."""

    def __init__(self, message: str, *, status: int, why: str) -> None:
        super().__init__(message, why=why)
        self.status = status


class NoAnswer(MachineError):
    """The hypervisor did not answer, or not in HTTP and JSON: whether it did what was asked is not known."""


class Api:
    """The API of one machine's process.

    `program` is what users know the hypervisor as; `log` is its output, whose end is in the error when it is silent.
    """

    def __init__(self, program: str, socket: Path, log: Path, base: str = "") -> None:
        self.socket = socket
        self._program = program
        self._log = log
        self._base = base

    async def get(self, path: str, *, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """GET a document. Raises Refused and NoAnswer."""
        answer = await self.request("GET", path, timeout_s=timeout_s)
        if not isinstance(answer, dict):
            raise self._silent("GET", path, "its answer is not a JSON object")
        return answer

    async def ready(self, path: str, timeout_s: float) -> None:
        """Return when a process that has just been launched answers GET on its API; `timeout_s` is scaled.

        Nothing tells when a program that makes its own socket listens on it. The caller watches the process. Raises
        Refused, and NoAnswer after that time.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s * timeout_scale()
        while True:
            try:
                await self.get(path, timeout_s=timeout_s)
                return
            except NoAnswer as e:
                absent = isinstance(e.__cause__, (FileNotFoundError, ConnectionError))
                if not absent or loop.time() > deadline:
                    raise
            await asyncio.sleep(_READY_POLL_S)

    async def put(self, path: str, body: object = None, *, timeout_s: float = ANSWER_S) -> Any:
        """PUT `body` as JSON (None: no body); the answer's JSON, None when it has none. Raises Refused and NoAnswer."""
        return await self.request("PUT", path, body, timeout_s=timeout_s)

    async def request(self, method: str, path: str, body: object = None, *, timeout_s: float = ANSWER_S) -> Any:
        """Ask once; `timeout_s` is for all of it and is scaled. Raises Refused and NoAnswer."""
        limit_s = timeout_s * timeout_scale()
        try:
            async with asyncio.timeout(limit_s):
                status, data = await self._exchange(method, self._base + path, body)
        except TimeoutError:
            raise self._silent(method, path, f"no answer in {limit_s:.0f} s") from None
        except OSError as e:
            raise self._silent(method, path, e.strerror or str(e)) from e
        except h11.RemoteProtocolError as e:
            raise self._silent(method, path, f"its answer is no HTTP: {e}") from e
        if not 200 <= status < 300:
            raise Refused(
                f"{self._program} refused {method} {path}", status=status, why=_fault(data) or f"HTTP {status}"
            )
        if not data.strip():
            return None
        try:
            return msgspec.json.decode(data)
        except UNDECODABLE as e:
            raise self._silent(method, path, f"its answer is no JSON: {e}") from e

    def _silent(self, method: str, path: str, why: str) -> NoAnswer:
        return NoAnswer(f"{self._program} did not answer {method} {path}", why=why, details=process.tail(self._log))

    async def _exchange(self, method: str, target: str, body: object) -> tuple[int, bytes]:
        data = b"" if body is None else msgspec.json.encode(body)
        headers = {"Host": "localhost", "Accept": "application/json"}
        if data:
            headers |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        try:
            connection = h11.Connection(h11.CLIENT)
            request = h11.Request(method=method, target=target, headers=list(headers.items()))
            writer.write(connection.send(request) or b"")
            if data:
                writer.write(connection.send(h11.Data(data)) or b"")
            writer.write(connection.send(h11.EndOfMessage()) or b"")
            return await _receive(connection, reader)
        finally:
            writer.transport.abort()  # nothing of ours is unsent once it has answered


async def _receive(connection: h11.Connection, reader: asyncio.StreamReader) -> tuple[int, bytes]:
    status, data = 0, bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_CHUNK))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            data += event.data
            if len(data) > MAX_ANSWER_BYTES:
                raise h11.RemoteProtocolError(f"more than {MAX_ANSWER_BYTES} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return status, bytes(data)
        elif isinstance(event, h11.ConnectionClosed):
            raise h11.RemoteProtocolError("the connection was closed")


def _fault(data: bytes) -> str:
    """The reason in an error's body, in one line: firecracker's object, cloud-hypervisor's chain, or plain text."""
    try:
        said = msgspec.json.decode(data)
    except UNDECODABLE:
        said = data.decode(errors="replace")
    if isinstance(said, Mapping):
        said = said.get("fault_message") or said.get("error") or str(said)
    elif isinstance(said, list):
        said = ": ".join(str(part) for part in said)
    words = " ".join(str(said).split())
    return "".join(c for c in words if c.isprintable())[:500]
