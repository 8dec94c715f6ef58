"""Between the steps of saving and restoring: a holder in this process, so that each step can be made to fail."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fleetbox import paths
from fleetbox.backends.base import State
from fleetbox.backends.fake import FakeNetwork, FakeVM
from fleetbox.backends.host import disk
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import DiskError, FleetboxError, NetworkError
from fleetbox.holder import store as record_store
from fleetbox.holder.members import Members
from fleetbox.holder.orchestrator import Orchestrator
from fleetbox.holder.store import ClusterStore
from fleetbox.records import ClusterRecord, read_cluster

NAMES = ("node-1", "node-2", "node-3")
OLD = frozenset((name, 0) for name in NAMES)
NEW = frozenset((name, 1) for name in NAMES)


class Holder:
    """A holder of the cluster `web` with three members that run."""

    def __init__(self, orchestrator: Orchestrator) -> None:
        self._orchestrator = orchestrator
        self.snapshot = ""

    async def run(self, operation: str, **request: Any) -> Any:
        work = self._orchestrator.work(operation, msgspec.json.encode(request))
        return await work(lambda event: None)

    @property
    def members(self) -> Members:
        assert self._orchestrator._ground.members is not None
        return self._orchestrator._ground.members

    @property
    def on_bridge(self) -> frozenset[tuple[str, int]]:
        network = self.members.network
        assert isinstance(network, FakeNetwork)
        return network.members_on_bridge

    def states(self) -> dict[str, State]:
        return {name: machine.vm.state() for name, machine in self.members.machines.items()}

    def files(self) -> list[str]:
        """What stands in the data folder, but for the snapshots' own locks."""
        return sorted(str(p) for p in paths.data_dir().rglob("*") if p.is_file() and p.name != ".lock")


@asynccontextmanager
async def holder() -> AsyncIterator[Holder]:
    """With a snapshot of all members already taken."""
    paths.cluster_state_dir("web").mkdir(parents=True)
    host = HostThread("test")
    orchestrator = Orchestrator("web", ClusterStore(paths.cluster_record("web")), host, lambda: None)
    found = Holder(orchestrator)
    try:
        await found.run("up", members=3, cold=True)
        found.snapshot = (await found.run("save"))["snapshot"].id
        yield found
    finally:
        await found.run("destroy")
        host.close()


def play(home: Path, scene: Callable[[Holder], Awaitable[None]]) -> None:
    async def act() -> None:
        async with holder() as found:
            await scene(found)

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FLEETBOX_BACKEND", "fake")
        asyncio.run(act())


def test_no_old_machine_is_on_the_bridge_when_the_first_new_one_runs(
    fleetbox_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the future may enter a rewound socket; and by then the record is of the new ones."""
    seen: list[tuple[frozenset[tuple[str, int]], set[int]]] = []

    async def scene(found: Holder) -> None:
        resume = FakeVM.resume

        async def watched(vm: FakeVM) -> None:
            seen.append((found.on_bridge, {m.slot for m in read_cluster("web").members.values()}))
            await resume(vm)

        with monkeypatch.context() as patch:
            patch.setattr(FakeVM, "resume", watched)
            await found.run("restore", snapshot=found.snapshot)
        assert found.on_bridge == NEW

    play(fleetbox_home, scene)
    assert seen == [(NEW, {1})] * 3


def assert_as_before(found: Holder, record: ClusterRecord, files: list[str]) -> None:
    assert found.on_bridge == OLD
    assert found.states() == dict.fromkeys(NAMES, State.RUNNING)
    assert read_cluster("web") == record
    assert found.files() == files


@pytest.mark.parametrize("operation", ["save", "restore"])
@pytest.mark.parametrize("number", [1, 3])
def test_a_disk_that_is_full(fleetbox_home: Path, monkeypatch: pytest.MonkeyPatch, operation: str, number: int) -> None:
    async def scene(found: Holder) -> None:
        record, files, copy, calls = read_cluster("web"), found.files(), disk.copy_disk, 0

        async def full(source: Path, target: Path) -> None:
            nonlocal calls
            calls += 1
            if calls == number:
                raise DiskError("the disk cannot be copied", why="the disk is full")
            await copy(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(disk, "copy_disk", full)
            with pytest.raises(DiskError, match="full"):
                await found.run(operation, **({"snapshot": found.snapshot} if operation == "restore" else {}))
        assert_as_before(found, record, files)

    play(fleetbox_home, scene)


@pytest.mark.parametrize("operation", ["leave", "join"])
def test_an_exchange_that_fails_is_taken_back(
    fleetbox_home: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    async def scene(found: Holder) -> None:
        record, files, original = read_cluster("web"), found.files(), getattr(FakeNetwork, operation)
        failed = False

        async def fail(network: FakeNetwork, name: str, slot: int = 0) -> None:
            nonlocal failed
            if name == "node-2" and not failed:
                failed = True
                raise NetworkError("the kernel refused")
            await original(network, name, slot)

        with monkeypatch.context() as patch:
            patch.setattr(FakeNetwork, operation, fail)
            with pytest.raises(NetworkError):
                await found.run("restore", snapshot=found.snapshot)
        assert_as_before(found, record, files)
        await found.run("restore", snapshot=found.snapshot)
        assert found.on_bridge == NEW

    play(fleetbox_home, scene)


def test_a_record_that_cannot_be_written_is_taken_back(fleetbox_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(found: Holder) -> None:
        record, files, write = read_cluster("web"), found.files(), record_store.write_atomically

        def full(path: Path, data: bytes, mode: int = 0o600) -> None:
            if b'"slot": 1' in data:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(path, data, mode)

        with monkeypatch.context() as patch:
            patch.setattr(record_store, "write_atomically", full)
            with pytest.raises(FleetboxError, match="cannot be written"):
                await found.run("restore", snapshot=found.snapshot)
        assert_as_before(found, record, files)
        await found.run("restore", snapshot=found.snapshot)

    play(fleetbox_home, scene)


def test_cancelled_at_the_exchange_it_is_finished(fleetbox_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the point of no return on there is nothing to go back to."""

    async def scene(found: Holder) -> None:
        resume = FakeVM.resume
        restoring: asyncio.Task[Any]

        async def cancelled(vm: FakeVM) -> None:
            restoring.cancel()
            await asyncio.sleep(0)
            await resume(vm)

        with monkeypatch.context() as patch:
            patch.setattr(FakeVM, "resume", cancelled)
            restoring = asyncio.create_task(found.run("restore", snapshot=found.snapshot))
            await asyncio.wait({restoring})
        assert not restoring.cancelled()
        assert found.on_bridge == NEW
        assert found.states() == dict.fromkeys(NAMES, State.RUNNING)

    play(fleetbox_home, scene)
