"""The life of the helper: one per folder, by a lock; it serves until it is told to end, and its machines run on.

The folder is a home of its own (`FLEETBOX_HOME`): what the backend writes down of networks and hypervisors is there,
beside the files of machines (`helper/`). A later helper on the same folder takes everything over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

from fleetbox import paths, wire
from fleetbox._version import __version__
from fleetbox.backends import registry
from fleetbox.backends.base import BackendEnvironment
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import ConflictError, FleetboxError, UsageError
from fleetbox.holder.lock import HolderLock
from fleetbox.holder.remote.blobs import Blobs
from fleetbox.holder.remote.machines import Machines
from fleetbox.holder.remote.networks import Networks
from fleetbox.holder.remote.service import HelperService
from fleetbox.holder.server import bind, make_server
from fleetbox.identity import identify
from fleetbox.records import HolderRecord

log = logging.getLogger(__name__)


async def run(folder: Path, socket_path: Path, backend_name: str, ready: Callable[[], None]) -> None:
    """Serve `backend_name` on `socket_path` until SIGTERM or SIGINT.

    Raises ConflictError when another helper has the folder, and what the backend lacks on this host.
    """
    paths.private_dir(folder)
    paths.private_dir(socket_path.parent)
    paths.checked_socket(socket_path)
    os.environ["FLEETBOX_HOME"] = str(folder)
    choice = registry.choose(backend_name)
    if choice.name == "remote":
        raise UsageError("a helper has a backend of its own", hint="name one with --backend, such as qemu")
    lock = HolderLock.take(folder / "helper.lock")
    if lock is None:
        raise ConflictError(f"another helper has the folder {folder}", hint="end it, or give this one another folder")
    host = HostThread("host")
    try:
        root = paths.private_dir(folder / "helper")
        environment = BackendEnvironment(host, dict(os.environ))
        backend = registry.create(choice.name, environment)
        try:
            await backend.check()
        except FleetboxError:
            if not choice.otherwise:
                raise
            backend = registry.create(choice.otherwise, environment)
            await backend.check()
        blobs = Blobs(root)
        networks = Networks(backend, root / "networks")
        machines = Machines(backend, networks, blobs, root / "machines")
        await networks.take_over()
        await machines.take_over()
        networks.bind(machines.kill_all)
        await asyncio.to_thread(blobs.sweep, machines.needed())
        service = HelperService(backend, networks, machines, blobs, root)
        with contextlib.closing(bind(socket_path)) as listening:
            process = identify(os.getpid())
            assert process is not None
            lock.announce(HolderRecord(process, str(socket_path), __version__, wire.PROTOCOL))
            ending = asyncio.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, ending.set)
            server = make_server(service, service.routes())
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            log.info("serving %s at %s (%s)", backend.name, socket_path, choice.reason)
            ready()
            await ending.wait()
            service.end()
            server.should_exit = True
            await serving
        socket_path.unlink(missing_ok=True)
        log.info("the helper ends; its machines run on")
    finally:
        host.close()
        lock.release()
