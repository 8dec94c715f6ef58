"""What a job process does with snapshots: list, inspect, remove, export, import (see `fleetbox.holder.job`)."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fleetbox.backends import registry
from fleetbox.backends.base import BackendEnvironment, Restores
from fleetbox.backends.host.disk import disk_errors
from fleetbox.backends.host.files import worker
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import HostError, NotFoundError, UsageError
from fleetbox.holder.operations import Emit
from fleetbox.holder.snapshots import archive
from fleetbox.holder.snapshots.store import SnapshotStore
from fleetbox.snapshot import Snapshot
from fleetbox.wire import Notice


async def run(verb: str, request: dict[str, Any], emit: Emit) -> Any:
    """Do `snapshot.VERB`. Raises NotFoundError for an unknown one."""
    store = SnapshotStore()
    match verb:
        case "list":
            found, unreadable = store.readable()
            return {"snapshots": found, "unreadable": [error.to_wire() for error in unreadable]}
        case "inspect":
            return store.find(**request)
        case "remove":
            return store.remove(**request)
        case "export":
            return await _export(store, request, emit)
        case "import":
            return await _import(request, emit)
    raise NotFoundError(f"there is no operation 'snapshot.{verb}'")


async def _export(store: SnapshotStore, request: dict[str, Any], emit: Emit) -> Snapshot:
    snapshot = store.find(request["ref"])
    title = snapshot.name or snapshot.id
    with worker.step(emit, "export", title), _output(request) as fd:
        meter = worker.Meter(emit, "export", title)
        await worker.run(lambda stop: archive.export(snapshot, fd, stop, meter))
    return snapshot


@contextlib.contextmanager
def _output(request: dict[str, Any]) -> Iterator[int]:
    """Where the archive goes: an open file that was handed over, or a path, where it appears whole or not at all."""
    if "fd" in request:
        yield request["fd"]
        return
    path = Path(request["file"])
    with disk_errors(f"{path} cannot be written"):
        if path.exists() and not path.is_file():  # a pipe or a device, which cannot be replaced
            with path.open("wb", buffering=0) as special:
                yield special.fileno()
            return
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:200]}.")
        try:
            with os.fdopen(fd, "wb", buffering=0) as file:
                yield fd
                os.fsync(fd)
                file.close()
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


async def _import(request: dict[str, Any], emit: Emit) -> Snapshot:
    with worker.step(emit, "import", request["name"]), _input(request) as fd:
        incoming = archive.Incoming(fd, request["max_bytes"])
        emit(Notice("the state of a machine's devices is to be trusted like a program: know where this comes from"))
        announced = await worker.run(incoming.inspect)
        identity = await _identity(announced.backend, emit)
        meter = worker.Meter(emit, "import", announced.name)
        snapshot = await worker.run(lambda stop: incoming.land(identity, request["name"], stop, meter))
    if snapshot.name != (request["name"] or announced.name):
        emit(Notice(f"there is a snapshot {announced.name!r} already: this one is called {snapshot.name!r}"))
    if any(member.spec.fixtures for member in snapshot.members.values()):
        emit(Notice("its fixtures are shown as they were packed: their folders are on the host that it came from"))
    return snapshot


@contextlib.contextmanager
def _input(request: dict[str, Any]) -> Iterator[int]:
    if "fd" in request:
        yield request["fd"]
        return
    path = Path(request["file"])
    try:
        file = path.open("rb", buffering=0)
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}") from None
    except OSError as e:
        raise UsageError(f"{path} cannot be read", why=e.strerror or str(e)) from e
    with file:
        yield file.fileno()


async def _identity(backend: str, emit: Emit) -> dict[str, str]:
    """What this host's backend of that name says of itself. Raises HostError when it has none."""
    if backend not in registry.names():
        raise HostError(
            "the snapshot cannot run here",
            why=f"it is of the hypervisor {backend[:80]!r}; here are {', '.join(registry.names())}",
        )
    with contextlib.closing(HostThread("import")) as host:
        made = registry.create(backend, BackendEnvironment(host, dict(os.environ), emit))
        await made.check()
        if not isinstance(made, Restores):
            raise HostError("the snapshot cannot run here", why=f"the backend {backend} restores none")
        return made.snapshot_identity()
