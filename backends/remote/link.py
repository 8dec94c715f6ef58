"""The way to the helper: HTTP over its unix socket, without blocking, and with files in both directions.

Every request is a connection of its own, so the loss of one is noticed by exactly the call that it carries. Whatever
goes wrong with the way itself is a HolderError: nothing is known then of what the other side did.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h11
import msgspec

from fleetbox import wire
from fleetbox.backends.base import timeout_scale
from fleetbox.backends.host.disk import disk_errors
from fleetbox.backends.host.extents import Landing, frames
from fleetbox.backends.remote.wire import Heard
from fleetbox.errors import FleetboxError, HolderError, OperationInterrupted, ProtocolError, from_wire

log = logging.getLogger(__name__)

CONNECT_S = 10.0
# The helper sends a blank line at least every 15 s, so silence means that it hangs or is cut off.
SILENCE_S = 60.0
UNDO_S = 60.0
_READ_BYTES = 1 << 18

_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(wire.AnyEvent | Heard)


class Link:
    """Requests to the helper that listens at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def order(self, operation: str, request: wire.Request) -> None:
        """`call` an operation that answers nothing."""
        await self.call(operation, request, Any)

    async def call(
        self, operation: str, request: wire.Request, kind: Any, on_heard: Callable[[Heard], None] | None = None
    ) -> Any:
        """Run an operation and return its result, of the type `kind` (which may be a union).

        Cancelled, the operation is cancelled too, and has undone itself when this returns. Raises its error,
        HolderError when the link is lost, ProtocolError when the helper is of another version.
        """
        async with self._exchange() as exchange:
            await exchange.send("POST", f"/v1/ops/{operation}", msgspec.json.encode(request))
            headers = await exchange.answer()
            try:
                result = await exchange.follow(on_heard)
            except asyncio.CancelledError:
                with contextlib.suppress(FleetboxError, TimeoutError):
                    async with asyncio.timeout(UNDO_S * timeout_scale()):
                        await self._cancel(headers.get("fleetbox-operation", ""))
                        await exchange.follow(None)
                raise
            except OperationInterrupted as e:
                raise self.lost("it ended the operation") from e
            try:
                return msgspec.convert(result, kind)
            except msgspec.ValidationError as e:
                raise self._nonsense(e) from e

    async def _cancel(self, operation: str) -> None:
        async with self._exchange() as exchange:
            await exchange.send("POST", f"/v1/ops/{operation}/cancel", b"")
            await exchange.answer()

    async def send_file(self, digest: str, path: Path, start: int) -> None:
        """Send a file's content from offset `start` on.

        Raises HolderError, DiskError for the file, UsageError when its content is not what its digest says.
        """
        async with self._exchange() as exchange:
            await exchange.send("PUT", f"/v1/blobs/{digest}?from={start}", None)
            with disk_errors(f"{path} cannot be read"):
                file = path.open("rb")
            with file:
                pieces = frames(file.fileno(), start)
                while piece := await asyncio.to_thread(_next_piece, pieces, path):
                    await exchange.send_data(piece)
            await exchange.end()
            await exchange.answer()

    async def fetch_file(self, resource: str, target: Path) -> None:
        """Make the new file `target` of what `resource` holds, whole and on disk, or not at all.

        Raises HolderError, DiskError for the file, and what the helper says.
        """
        try:
            async with self._exchange() as exchange:
                await exchange.send("GET", resource, b"")
                await exchange.answer()
                with disk_errors(f"{target} cannot be made"):
                    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    landing = Landing(fd)
                    async for data in exchange.data():
                        await asyncio.to_thread(_land, landing, data, target)
                    if not landing.whole:
                        raise self.lost("a file came in part only")
                    with disk_errors(f"{target} cannot be written"):
                        await asyncio.to_thread(os.fsync, fd)
                finally:
                    os.close(fd)
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    @asynccontextmanager
    async def _exchange(self) -> AsyncIterator[_Exchange]:
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(CONNECT_S * timeout_scale()):
                reader, writer = await asyncio.open_unix_connection(os.fspath(self.path), limit=_READ_BYTES)
            yield _Exchange(self, reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, h11.ProtocolError) as e:
            raise self.lost((e.strerror if isinstance(e, OSError) else str(e)) or "it is silent") from e
        finally:
            if writer is not None:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    def lost(self, why: str) -> HolderError:
        """The error of a link that is lost."""
        return HolderError(
            f"the remote helper at {self.path} does not answer",
            why=why,
            hint="start it again with the same folder: its machines run on and are found again",
        )

    def _nonsense(self, error: Exception) -> HolderError:
        return HolderError(f"the remote helper at {self.path} sent what cannot be understood", why=str(error))


class _Exchange:
    """One request and its answer."""

    def __init__(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._link = link
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT)
        self._rest = b""  # the beginning of a line

    async def send(self, method: str, target: str, body: bytes | None) -> None:
        """Send the request; with `body` None its data follows by `send_data`."""
        length = ("Transfer-Encoding", "chunked") if body is None else ("Content-Length", str(len(body)))
        headers = [("Host", "fleetbox"), (wire.PROTOCOL_HEADER, str(wire.PROTOCOL)), length]
        self._put(h11.Request(method=method, target=target, headers=headers))
        if body is not None:
            self._put(h11.Data(data=body))
            self._put(h11.EndOfMessage())
        await self._writer.drain()

    async def send_data(self, data: bytes) -> None:
        self._put(h11.Data(data=data))
        async with asyncio.timeout(SILENCE_S * timeout_scale()):
            await self._writer.drain()

    async def end(self) -> None:
        self._put(h11.EndOfMessage())
        await self._writer.drain()

    def _put(self, event: h11.Request | h11.Data | h11.EndOfMessage) -> None:
        self._writer.write(self._http.send(event) or b"")

    async def answer(self) -> dict[str, str]:
        """The answer's headers. Raises the helper's error."""
        event = await self._next()
        while isinstance(event, h11.InformationalResponse):
            event = await self._next()
        if not isinstance(event, h11.Response):
            raise self._link.lost("it hung up")
        if event.status_code != 200:
            raise self._error(event.status_code, b"".join([data async for data in self.data()]))
        return {name.decode().lower(): value.decode() for name, value in event.headers}

    def _error(self, status: int, body: bytes) -> FleetboxError:
        try:
            error = from_wire(msgspec.json.decode(body, type=dict[str, Any]))
        except (msgspec.DecodeError, ValueError):
            return HolderError(
                f"the remote helper at {self._link.path} refuses", why=f"it answered {status}: {body[:200]!r}"
            )
        if isinstance(error, ProtocolError):
            return other_version(error)
        return error

    async def data(self) -> AsyncIterator[bytes]:
        """The answer's data as it comes."""
        while True:
            event = await self._next()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            else:
                raise self._link.lost("it hung up")

    async def follow(self, on_heard: Callable[[Heard], None] | None) -> Any:
        """Read an operation's events to its result. Raises its error."""
        async for data in self.data():
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in filter(None, lines):
                try:
                    event = _decoder.decode(line)
                except msgspec.DecodeError as e:
                    raise self._link._nonsense(e) from e
                match event:
                    case wire.Result():
                        return event.value
                    case wire.Error():
                        raise event.exception()
                    case Heard() if on_heard is not None:
                        on_heard(event)
        raise self._link.lost("it ended in the middle of an operation")

    async def _next(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            async with asyncio.timeout(SILENCE_S * timeout_scale()):
                data = await self._reader.read(_READ_BYTES)
            self._http.receive_data(data)
        return event


def other_version(error: ProtocolError) -> ProtocolError:
    """The helper's refusal in words that fit it."""
    return ProtocolError(
        "this fleetbox and its remote helper are of different versions",
        why=f"this one speaks protocol {wire.PROTOCOL}; {error.why}",
        hint="end the helper with SIGTERM and start this version's on the same folder; machines run on",
    )


def _next_piece(pieces: Iterator[bytes], path: Path) -> bytes:
    with disk_errors(f"{path} cannot be read"):
        return next(pieces, b"")


def _land(landing: Landing, data: bytes, target: Path) -> None:
    with disk_errors(f"{target} cannot be written"):
        landing.write(data)
