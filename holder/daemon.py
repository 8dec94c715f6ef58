"""The life of a holder process: lock, record, socket, service, end.

It starts by taking the cluster's lock, takes over what an earlier holder left, listens, and says so on its ready pipe.
It ends when nothing of its cluster runs any more, when nobody asks anything of it after its start, on SIGTERM (machines
are then stopped gently), or on SIGHUP, when it leaves its machines to the next holder. At its end it removes its socket
and pidfile, and with the last member the cluster's folders.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Callable

from fleetbox import paths, wire
from fleetbox._version import __version__
from fleetbox.backends.base import timeout_scale
from fleetbox.backends.host.isolation import Isolation
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import HolderEnding
from fleetbox.faultpoint import reach
from fleetbox.holder import observation, runtime
from fleetbox.holder.dial import DialServer
from fleetbox.holder.eventlog import EventLog
from fleetbox.holder.lock import HolderLock
from fleetbox.holder.operations import Operation, Work
from fleetbox.holder.orchestrator import Orchestrator
from fleetbox.holder.server import bind, cluster_routes, make_server
from fleetbox.holder.store import ClusterStore
from fleetbox.identity import identify
from fleetbox.records import HolderRecord

log = logging.getLogger(__name__)

FIRST_REQUEST_LIMIT_S = 30.0

Ready = Callable[[dict[str, object]], None]


class Daemon:
    """One cluster's holder, as the server sees it."""

    def __init__(self, cluster: str, isolation: Isolation | None = None) -> None:
        self.cluster = cluster
        self._running: set[Operation] = set()
        self.handed_over = False
        self._asked = False
        self._handing_over: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._host = HostThread("host", isolation)
        self._events = EventLog(cluster)
        self._store = ClusterStore(paths.cluster_record(cluster), self._events)
        self._orchestrator = Orchestrator(cluster, self._store, self._host, self._ending.set)

    # --- ClusterService

    def status(self) -> wire.ClusterStatus:
        return self._orchestrator.status()

    async def statistics(self) -> wire.ClusterStatistics:
        return await observation.statistics(self._orchestrator.machines)

    def console(self, member: str) -> wire.ConsoleFile:
        return observation.console(self.cluster, self._orchestrator.machines, member)

    def work(self, operation: str, body: bytes) -> Work:
        return self._orchestrator.work(operation, body)

    def events(self, since: int, *, follow: bool) -> AsyncIterator[bytes]:
        return self._events.lines(since, follow=follow)

    def begun(self, operation: Operation) -> None:
        if self._orchestrator.closing:
            raise HolderEnding("the holder is about to end", hint="try again")
        self._asked = True
        self._events.follow(operation)
        self._running.add(operation)
        operation.task.add_done_callback(lambda _: self._running.discard(operation))

    # --- life

    async def run(self, ready: Ready) -> None:
        """Serve until the end. `ready` tells the starter `{"ready": true}`, or `{"held": true}` when another holds the
        lock. When `handed_over` is True afterwards, the process is to end without another word to its machines.

        Raises RecordError for an unreadable record, HostError, NetworkError when live machines cannot be taken over.
        """
        lock = HolderLock.take(paths.holder_lock(self.cluster))
        if lock is None:
            ready({"held": True})
            return
        try:
            reach("holder.locked")
            socket_path = paths.holder_socket(self.cluster)
            dial_path = paths.dial_socket(socket_path)
            self._store.load()
            self._events.open()
            self._events.catch_up(self._store.record)
            self._events.holder("started")
            reach("holder.loaded")
            await self._orchestrator.take_over()
            await asyncio.to_thread(self._clear)
            paths.private_dir(paths.cluster_runtime_dir(self.cluster))
            try:
                with contextlib.closing(bind(socket_path)) as listening:
                    reach("holder.bound")
                    process = identify(os.getpid())
                    assert process is not None
                    paths.holder_pidfile(self.cluster).write_text(f"{process.pid}\n")
                    lock.announce(HolderRecord(process, str(socket_path), __version__, wire.PROTOCOL))
                    reach("holder.announced")
                    dial = DialServer(bind(dial_path), self._host)
                    try:
                        await self._serve(listening, ready)
                    finally:
                        await dial.close()
                reach("holder.silent")
            finally:
                for path in (dial_path, socket_path, paths.holder_pidfile(self.cluster)):
                    path.unlink(missing_ok=True)
                await asyncio.to_thread(self._clear)
            reach("holder.left")
        finally:
            self._host.close()
            if not paths.cluster_record(self.cluster).exists():
                shutil.rmtree(paths.cluster_state_dir(self.cluster), ignore_errors=True)
                with contextlib.suppress(OSError):
                    paths.cluster_data_dir(self.cluster).rmdir()
            lock.release()

    def _clear(self) -> None:
        runtime.clear(paths.cluster_runtime_dir(self.cluster), self._store.record)

    async def _serve(self, listening: socket.socket, ready: Ready) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_end, number)
        loop.add_signal_handler(signal.SIGHUP, self._asked_to_hand_over)
        server = make_server(self, cluster_routes(self))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        idle = loop.call_later(FIRST_REQUEST_LIMIT_S * timeout_scale(), self._end_if_unasked)
        ready({"ready": True})
        log.info("serving %s", self.cluster)
        await self._ending.wait()
        idle.cancel()
        for operation in list(self._running):
            operation.cancel() if self._orchestrator.abandoned or not self._orchestrator.closing else None
        if not self.handed_over or self._orchestrator.abandoned:
            await self._orchestrator.close()
        self._events.holder("ended")
        self._events.close()
        reach("holder.ending")
        server.should_exit = True
        await serving
        log.info("the holder of %s ends", self.cluster)

    def _asked_to_end(self, number: int) -> None:
        log.info("%s: machines are stopped", signal.Signals(number).name)
        for operation in list(self._running):
            operation.cancel()
        self._ending.set()

    def _asked_to_hand_over(self) -> None:
        if self._store.record is not None and self._store.record.bound:
            log.warning("SIGHUP is ignored: the machines of a bound cluster would end with their holder")
        elif self._handing_over is None and not self._ending.is_set():
            self._handing_over = asyncio.create_task(self._hand_over(), name="hand over")

    async def _hand_over(self) -> None:
        log.info("SIGHUP: the machines are left to the next holder")
        self._events.holder("restarting")
        self.handed_over = await self._orchestrator.drain()
        self._ending.set()

    def _end_if_unasked(self) -> None:
        if not self._asked and not self._orchestrator.busy:
            self._orchestrator.closing = True
            self._ending.set()
