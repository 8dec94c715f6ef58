"""The control socket: HTTP/JSON for one cluster, or of a remote helper, to its owner alone (see `fleetbox.wire`)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from typing import Any, Protocol, TypeVar

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from fleetbox import wire
from fleetbox._version import __version__
from fleetbox.errors import FleetboxError, HolderEnding, NotFoundError, ProtocolError, UsageError
from fleetbox.holder.operations import Operation, Work
from fleetbox.shapes import UNDECODABLE

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 1 << 20
ENDING_LIMIT_S = 5
_STATUS = {UsageError.code: 400, NotFoundError.code: 404, ProtocolError.code: 426, HolderEnding.code: 503}

T = TypeVar("T")


class Service(Protocol):
    """What the server serves."""

    cluster: str

    def status(self) -> msgspec.Struct: ...

    def work(self, operation: str, body: bytes) -> Work:
        """The work of an operation. Raises UsageError for a request that cannot be understood, NotFoundError."""

    def begun(self, operation: Operation) -> None:
        """An operation has begun; raises HolderEnding when the holder is about to end."""


class ClusterService(Service, Protocol):
    """What the server of a cluster serves."""

    async def statistics(self) -> wire.ClusterStatistics:
        """What the running members use."""

    def console(self, member: str) -> wire.ConsoleFile:
        """Where that member's console is opened. Raises NotFoundError, MachineError."""

    def events(self, since: int, *, follow: bool) -> AsyncIterator[bytes]:
        """The cluster's events after number `since` as JSON lines; with `follow`, to the holder's end."""


def decode(body: bytes, kind: type[T]) -> T:
    """A request's body. Raises UsageError."""
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except UNDECODABLE as e:
        raise UsageError("the request cannot be understood", why=str(e)) from e


class OwnerOnlyProtocol(H11Protocol):
    """HTTP to processes of our own uid; every other is hung up on before a byte is read (SO_PEERCRED, unix(7))."""

    def connection_made(self, transport: Any) -> None:
        peer: socket.socket = transport.get_extra_info("socket")
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", credentials)
        if uid != os.geteuid():
            log.warning("refused a connection of uid %d (pid %d)", uid, pid)
            transport.abort()
            return
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.transport is not None:
            super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP. When it comes in the middle of a request, that one gets no second answer."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
                return
        super().send_400_response(msg)


class Server(uvicorn.Server):
    """uvicorn on a socket of ours; signals are the daemon's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def make_server(service: Service, routes: Sequence[Route]) -> Server:
    """The server, with the further `routes` of its service; run `serve(sockets=[listening])`."""
    config = uvicorn.Config(
        _application(service, routes),
        http=OwnerOnlyProtocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=ENDING_LIMIT_S,  # a client that has stopped reading keeps no holder alive
    )
    return Server(config)


def answer(value: Any, status: int = 200) -> Response:
    """A JSON document."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def guarded(handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
    """Check the protocol's version, and answer errors as JSON."""

    async def checked(request: Request) -> Response:
        try:
            spoken = request.headers.get(wire.PROTOCOL_HEADER, "")
            if spoken != str(wire.PROTOCOL):
                raise ProtocolError(
                    "client and holder are of different versions",
                    why=f"the holder is fleetbox {__version__} (protocol {wire.PROTOCOL}), not {spoken or 'unknown'}",
                    hint="`fleetbox holder restart` puts one of your version in its place; machines run on",
                )
            response: Response = await handler(request)
            return response
        except FleetboxError as e:
            return answer(e.to_wire(), _STATUS.get(e.code, 500))
        except ClientDisconnect:
            return Response(status_code=400)  # to nobody

    return checked


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise UsageError("the request is too long")
    return bytes(body)


def _application(service: Service, routes: Sequence[Route]) -> Starlette:
    running: dict[str, Operation] = {}

    async def ping(request: Request) -> Response:
        return answer(wire.Ping(service.cluster, __version__, wire.PROTOCOL, os.getpid()))

    async def status(request: Request) -> Response:
        return answer(service.status())

    async def operate(request: Request) -> Response:
        name = request.path_params["name"]
        work = service.work(name, await _body(request))
        operation = Operation(name, work)
        try:
            service.begun(operation)
        except HolderEnding:
            operation.cancel()
            raise
        running[operation.id] = operation
        operation.task.add_done_callback(lambda _: running.pop(operation.id, None))

        async def stream() -> AsyncIterator[bytes]:
            try:
                async for line in operation.lines():
                    yield line
            except (asyncio.CancelledError, GeneratorExit):
                operation.cancel()  # the client went away
                raise

        return StreamingResponse(
            stream(), media_type="application/x-ndjson", headers={"Fleetbox-Operation": operation.id}
        )

    async def cancel(request: Request) -> Response:
        operation = running.get(request.path_params["id"])
        if operation is None:
            raise NotFoundError("there is no such operation under way")
        operation.cancel()
        return answer({"cancelled": operation.id})

    return Starlette(
        routes=[
            Route("/v1/ping", guarded(ping), methods=["GET"]),
            Route("/v1/status", guarded(status), methods=["GET"]),
            Route("/v1/ops/{name}", guarded(operate), methods=["POST"]),
            Route("/v1/ops/{id}/cancel", guarded(cancel), methods=["POST"]),
            *routes,
        ]
    )


def cluster_routes(service: ClusterService) -> list[Route]:
    """What the server of a cluster serves besides."""

    async def statistics(request: Request) -> Response:
        return answer(await service.statistics())

    async def console(request: Request) -> Response:
        return answer(service.console(request.path_params["member"]))

    async def events(request: Request) -> Response:
        query = request.query_params
        since = query.get("since", "0")
        if not since.isascii() or not since.isdigit() or len(since) > 15:
            raise UsageError("since is not the number of an event", why=f"it is {since[:40]!r}")
        lines = service.events(int(since), follow=query.get("follow", "1") != "0")
        return StreamingResponse(lines, media_type="application/x-ndjson")

    return [
        Route("/v1/statistics", guarded(statistics), methods=["GET"]),
        Route("/v1/consoles/{member}", guarded(console), methods=["GET"]),
        Route("/v1/events", guarded(events), methods=["GET"]),
    ]


def bind(path: os.PathLike[str]) -> socket.socket:
    """A listening unix socket at `path`, mode 0600 from its first moment on."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108
        os.fchmod(listening.fileno(), 0o600)  # bind(2) gives the file the socket inode's mode
        listening.bind(os.fspath(path))
        listening.listen(128)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening
