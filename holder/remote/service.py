"""What the helper answers: the operations and files of `fleetbox.backends.remote.wire`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from fleetbox import wire
from fleetbox._version import __version__
from fleetbox.backends.base import Backend, Restores, State
from fleetbox.backends.host.extents import frames
from fleetbox.backends.remote.wire import (
    Act,
    End,
    Facts,
    Heard,
    Lacking,
    MemberRequest,
    NetworkRequest,
    Offer,
    Owner,
    Start,
    Watch,
    Which,
)
from fleetbox.errors import HolderEnding, NotFoundError, UsageError
from fleetbox.holder.operations import Emit, Operation, Work
from fleetbox.holder.remote.beneath import Beneath
from fleetbox.holder.remote.blobs import Blobs
from fleetbox.holder.remote.machine import Machine
from fleetbox.holder.remote.machines import Machines
from fleetbox.holder.remote.networks import Networks
from fleetbox.holder.server import answer, decode, guarded

T = TypeVar("T")

LOOK_S = 0.2  # between two looks at a machine's log and state
_SERIAL_BYTES = 1 << 16
_NETWORK = frozenset({"reserve", "release", "attach", "join", "leave", "detach", "traffic", "close"})


class HelperService:
    """A `fleetbox.holder.server.Service` over one backend."""

    cluster = ""

    def __init__(self, backend: Backend, networks: Networks, machines: Machines, blobs: Blobs, root: Path) -> None:
        self._backend = backend
        self._networks = networks
        self._machines = machines
        self._blobs = blobs
        self._beneath = Beneath(root)
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Leave those who watch machines: they go on with the next helper."""
        self._ending.set()

    def status(self) -> Facts:
        backend = self._backend
        return Facts(
            version=__version__,
            pid=os.getpid(),
            backend=backend.name,
            accelerator=backend.accelerator,
            notes=backend.notes,
            capabilities=backend.capabilities(),
            identity=backend.snapshot_identity() if isinstance(backend, Restores) else {},
            nested_virt=backend.nested_virt_supported(),
            clustering=backend.supports_clustering(),
        )

    def begun(self, operation: Operation) -> None:
        """See `fleetbox.holder.server.Service.begun`."""
        if self._ending.is_set():
            raise HolderEnding("the remote helper ends", hint="its machines run on; start it again")

    def work(self, operation: str, body: bytes) -> Work:
        """See `fleetbox.holder.server.Service.work`."""
        machines = self._machines
        if operation in _NETWORK:
            about = decode(body, MemberRequest)
            return _silent(lambda: self._networks.act(operation, about))
        match operation:
            case "network":
                network = decode(body, NetworkRequest)
                return _silent(lambda: self._networks.make(network, machines.in_use(network.spec.cluster)))
            case "offer":
                offer = decode(body, Offer)
                return _silent(lambda: self._offer(offer))
            case "start":
                start = decode(body, Start)
                return _silent(lambda: machines.start(start))
            case "find":
                which = decode(body, Which)
                return _at_once(lambda: machines.find(which.machine))
            case "held":
                owner = decode(body, Owner)
                return _at_once(lambda: machines.held(owner.owner))
            case "check":
                return _silent(self._backend.check)
            case "reconcile":
                return _silent(self._backend.reconcile)
            case "watch":
                watch = decode(body, Watch)
                return lambda emit: self._watch(watch, emit)
        return self._act(operation, decode(body, Act))

    def _act(self, operation: str, act: Act) -> Work:
        machines = self._machines
        match operation:
            case "pause" | "resume":
                return _silent(lambda: machines.switch(operation, act))
            case "stop" | "kill":
                return _silent(lambda: machines.end(operation, act))
            case "save":
                return _silent(lambda: machines.save(act))
            case "statistics":
                return _silent(lambda: machines.statistics(act))
            case "forget":
                return _silent(lambda: machines.forget(act))
            case "wait-for-ip":
                return _silent(lambda: machines.running(act)[1].wait_for_ip(act.timeout_s))
            case "calibrated":
                return _silent(lambda: machines.running(act)[1].booted_past_calibration(act.timeout_s))
        raise NotFoundError(f"there is no operation {operation!r}")

    async def _offer(self, offer: Offer) -> Lacking:
        return Lacking(self._blobs.lacking(offer.machine, offer.files))

    async def _watch(self, watch: Watch, emit: Emit) -> End:
        """Tell of a machine's state and serial log until it ends."""
        machine = self._machines.launch(Act(watch.machine, watch.generation))
        if machine is None:
            raise NotFoundError("the remote helper does not know the machine any more")
        machine.watchers += 1
        ended_or_ending = [asyncio.create_task(event.wait()) for event in (machine.ended, self._ending)]
        try:
            position, said = watch.serial_from, None
            while True:
                ended = machine.ended.is_set()
                now = asyncio.get_running_loop().time()
                state, news = machine.state, await asyncio.to_thread(self._read_serial, machine, position)
                if news or state is not said:
                    emit(Heard(now, state, news))
                    position, said = position + len(news), state
                if len(news) == _SERIAL_BYTES:
                    continue
                if ended and machine.record.end is not None:
                    return machine.record.end
                if self._ending.is_set():
                    raise HolderEnding("the remote helper ends")
                await asyncio.wait(ended_or_ending, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            machine.watchers -= 1
            for task in ended_or_ending:
                task.cancel()

    def _read_serial(self, machine: Machine, position: int) -> bytes:
        try:
            fd = self._beneath.open(f"machines/{machine.start.machine}/serial.log", os.O_RDONLY)
        except FileNotFoundError:
            return b""
        try:
            return os.pread(fd, _SERIAL_BYTES, position)
        finally:
            os.close(fd)

    # Files

    def routes(self) -> list[Route]:
        """What the helper serves beside operations."""
        return [
            Route("/v1/blobs/{digest}", guarded(self._receive), methods=["PUT"]),
            Route("/v1/machines/{machine}/disks/{number:int}", guarded(self._send_disk), methods=["GET"]),
            Route("/v1/machines/{machine}/saved/{name}", guarded(self._send_saved), methods=["GET"]),
        ]

    async def _receive(self, request: Request) -> Response:
        try:
            start = int(request.query_params.get("from", "0"))
        except ValueError:
            raise UsageError("the offset is no number") from None
        try:
            await self._blobs.receive(request.path_params["digest"], start, request.stream())
        except ClientDisconnect:
            return answer({})  # nobody reads it
        return answer({})

    async def _send_disk(self, request: Request) -> Response:
        machine = self._machines.by_id(request.path_params["machine"])
        path = machine.disk_path(request.path_params["number"])
        if machine.vm is not None and machine.state is not State.PAUSED:
            raise UsageError("the machine runs on its disk", hint="pause or end it first")
        return self._send(f"machines/{machine.start.machine}/{path.name}")

    async def _send_saved(self, request: Request) -> Response:
        machine = self._machines.by_id(request.path_params["machine"])
        return self._send(f"machines/{machine.start.machine}/saved/{request.path_params['name']}")

    def _send(self, name: str) -> Response:
        try:
            fd = self._beneath.open(name, os.O_RDONLY)
        except OSError as e:
            raise NotFoundError("there is no such file", why=e.strerror or "") from e

        async def stream() -> AsyncIterator[bytes]:
            try:
                pieces: Iterator[bytes] = frames(fd)
                while piece := await asyncio.to_thread(next, pieces, b""):
                    yield piece
            finally:
                os.close(fd)

        return StreamingResponse(stream(), media_type="application/octet-stream")


def _silent(run: Callable[[], Awaitable[T]]) -> Work:
    """The work of an operation that has nothing to tell but its result."""

    async def work(emit: Callable[[wire.Event], None]) -> T:
        return await run()

    return work


def _at_once(run: Callable[[], T]) -> Work:
    async def work(emit: Callable[[wire.Event], None]) -> Any:
        return run()

    return work
