"""What only the `remote` backend has to bear: a helper that is of another version, refuses, is slow, or vanishes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fleetbox import wire
from fleetbox.backends.base import VM, BackendEnvironment, KeepsDisks, NetworkSpec, State, VMConfig
from fleetbox.backends.host.thread import HostThread
from fleetbox.backends.remote import RemoteBackend, away, link
from fleetbox.errors import ConflictError, DiskError, HolderError, HostError, ProtocolError
from fleetbox.identity import is_alive
from fleetbox.records import MachineHandle
from tests.remotehelper import Helper

from .conftest import CLUSTER, LIMIT_S, Bench, Holder, end_from_outside


@pytest.fixture
def remote(fleetbox_home: Path) -> Iterator[Bench]:
    """A bench with a helper that has the fake backend."""
    folder = fleetbox_home / "bench"
    (folder / "run").mkdir(mode=0o700, parents=True)
    with Helper(fleetbox_home / "helper", "fake") as helper:
        yield Bench("remote", fleetbox_home, folder, helper)


def helper_of(bench: Bench) -> Helper:
    assert bench.helper is not None
    return bench.helper


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.01)


def backend_at(path: Path) -> RemoteBackend:
    return RemoteBackend(BackendEnvironment(HostThread(), {"FLEETBOX_REMOTE": str(path)}))


# Versions, refusal, silence


def test_helper_of_another_version_is_refused_by_name(remote: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with remote.holder() as holder:
            vm = await holder.machine()
            with monkeypatch.context() as other:
                other.setattr(wire, "PROTOCOL", 999)
                with pytest.raises(ProtocolError, match="different versions") as failure:
                    await vm.start()
                assert "999" in failure.value.why
                with pytest.raises(ProtocolError):
                    await backend_at(helper_of(remote).socket).check()
            assert vm.state() is State.STOPPED
            await vm.start()

    remote.run(scenario)


def test_without_a_helper_the_error_says_how_to_get_one(fleetbox_home: Path) -> None:
    with pytest.raises(HostError, match="no remote helper") as failure:
        asyncio.run(backend_at(fleetbox_home / "none.sock").check())
    assert "FLEETBOX_REMOTE" in failure.value.hint


def test_socket_that_nobody_listens_on_is_an_error(fleetbox_home: Path) -> None:
    path = fleetbox_home / "left.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with pytest.raises(HolderError):
        asyncio.run(backend_at(path).check())
    path.unlink()


@contextlib.contextmanager
def answering(path: Path, answer: bytes) -> Iterator[None]:
    """Somebody at `path` who answers the same to everything and then says nothing more."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        kept: list[socket.socket] = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = listening.accept()
                    kept.append(peer)
                    peer.recv(1 << 16)
                    peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
            for peer in kept:
                peer.close()
    path.unlink()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"])
def test_silent_helper_is_an_error_after_a_while(
    fleetbox_home: Path, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "SILENCE_S", 0.2)
    with answering(path := fleetbox_home / "slow.sock", answer), pytest.raises(HolderError, match="silent"):
        asyncio.run(link.Link(path).order("check", wire.TargetsRequest()))


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\nwhat",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nnot json\n",
        b'HTTP/1.1 200 OK\r\nContent-Length: 24\r\n\r\n{"event":"result"}\n\n\n\n\n\n\n',
    ],
)
def test_nonsense_is_an_error(fleetbox_home: Path, answer: bytes) -> None:
    with answering(path := fleetbox_home / "odd.sock", answer), pytest.raises(HolderError):
        asyncio.run(link.Link(path).call("attach", wire.TargetsRequest(), str))


def test_another_uid_is_hung_up_on(remote: Bench) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to be somebody else")
    path = helper_of(remote).socket
    for folder in (remote.home, path.parent):
        folder.chmod(0o711)
    path.chmod(0o666)
    code = f"""
    import os, socket
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    line = socket.socket(socket.AF_UNIX)
    line.connect({str(path)!r})
    try:
        line.sendall(b"GET /v1/status HTTP/1.1\\r\\nHost: x\\r\\nFleetbox-Protocol: 1\\r\\n\\r\\n")
        print(line.recv(100))
    except (BrokenPipeError, ConnectionResetError):
        print(b"")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout == "b''\n"
    assert "refused a connection of uid 65534" in helper_of(remote).log.read_text()


def test_other_fleetbox_with_a_cluster_of_that_name_is_refused(
    remote: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with remote.holder():
            with monkeypatch.context() as other:
                other.setenv("FLEETBOX_HOME", str(tmp_path))
                backend = backend_at(helper_of(remote).socket)
                with pytest.raises(ConflictError, match="another cluster"):
                    await backend.create_network(NetworkSpec(CLUSTER, "host"))

    remote.run(scenario)


# A helper that vanishes


async def vanished(holder: Holder, vm: VM, call: asyncio.Task[object], state: State) -> None:
    """Kill the helper while `call` is under way: an error with the last known state; nothing is called stopped."""
    helper_of(holder.bench).kill()
    with pytest.raises(HolderError) as failure:
        await call
    assert f"it was {state} when last heard of" in failure.value.why
    await until(lambda: vm.state() is State.UNKNOWN)
    with pytest.raises(HolderError, match="cannot be reached"):
        await vm.stop(0.1)
    assert vm.state() is State.UNKNOWN
    assert vm.handle is not None
    assert is_alive(vm.handle.process)


def test_vanishing_while_the_guest_boots_is_an_error_and_the_machine_is_found_again(remote: Bench) -> None:
    async def scenario() -> None:
        async with remote.holder(faults="address=hang") as holder:
            vm = await holder.running()
            waiting = asyncio.create_task(vm.wait())
            asking = asyncio.create_task(vm.wait_for_ip(10 * LIMIT_S))
            await asyncio.sleep(0.1)
            await vanished(holder, vm, asking, State.RUNNING)
            helper_of(remote).faults("")
            helper_of(remote).start()
            await until(lambda: vm.state() is State.RUNNING)
            assert await vm.wait_for_ip(LIMIT_S) == vm.config.assigned_ip
            assert not waiting.done()
            await vm.stop(LIMIT_S)
            assert vm.state() is State.STOPPED
            assert (await waiting).reason
            remote.assert_nothing_runs()

    remote.run(scenario)


def test_vanishing_while_the_machine_stops_is_an_error_and_it_can_be_stopped_later(remote: Bench) -> None:
    async def scenario() -> None:
        async with remote.holder(deaf=True) as holder:
            vm = await holder.running()
            stopping = asyncio.create_task(vm.stop(10 * LIMIT_S))
            await until(lambda: vm.state() is State.STOPPING)
            await asyncio.sleep(0.1)
            await vanished(holder, vm, stopping, State.STOPPING)
            helper_of(remote).start()
            await until(lambda: vm.state() is State.RUNNING)
            await vm.stop(0.1)
            assert vm.state() is State.STOPPED
            remote.assert_nothing_runs()

    remote.run(scenario)


def test_vanishing_in_the_middle_of_a_launch_leaves_nothing_that_blocks_the_next(remote: Bench) -> None:
    async def scenario() -> None:
        async with remote.holder(faults="start=slow:1000") as holder:
            vm = await holder.machine()
            starting = asyncio.create_task(vm.start())
            await until(lambda: "/bin/sh" in _programs(remote))
            helper_of(remote).kill()
            with pytest.raises(HolderError):
                await starting
            assert vm.state() is State.STOPPED
            with pytest.raises(HolderError):
                await vm.start()
            helper_of(remote).faults("")
            helper_of(remote).start()
            remote.assert_nothing_runs()  # the half launched machine was ended by the next helper
            await vm.start()
            assert vm.state() is State.RUNNING

    remote.run(scenario)


def _programs(bench: Bench) -> list[str]:
    found = []
    for pid in bench.processes():
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode())
    return found


def test_machine_that_ends_while_the_helper_is_away_has_ended_when_the_link_is_back(remote: Bench) -> None:
    async def scenario() -> None:
        async with remote.holder() as holder:
            vm = await holder.running()
            helper_of(remote).kill()
            await until(lambda: vm.state() is State.UNKNOWN)
            end_from_outside(vm.handle)
            helper_of(remote).start()
            status = await vm.wait()
            assert status.code is None
            assert "no helper" in status.reason
            assert vm.state() is State.STOPPED
            remote.assert_nothing_runs()
            await vm.start()

    remote.run(scenario)


def test_helper_that_is_told_to_end_leaves_its_machines_to_the_next(remote: Bench) -> None:
    async def scenario() -> None:
        async with remote.holder() as holder:
            vm = await holder.running()
            assert vm.handle is not None
            lease = await holder.network.reserve("node-1")
            helper_of(remote).end()
            await until(lambda: vm.state() is State.UNKNOWN)
            assert is_alive(vm.handle.process)
            helper_of(remote).start()
            await until(lambda: vm.state() is State.RUNNING)
            assert await holder.network.reserve("node-1") == lease
            assert await holder.network.reserve("node-2") != lease

    remote.run(scenario)


def test_helper_with_another_folder_never_passes_for_a_stopped_machine(remote: Bench) -> None:
    async def scenario() -> None:
        async with remote.holder() as holder:
            vm = await holder.running()
            disk = vm.config.disks[0]
            helper = helper_of(remote)
            own, aside = helper.folder / "helper", helper.folder / "aside"
            helper.kill()
            own.rename(aside)
            helper.start()
            assert "does not know" in (await vm.wait()).reason
            with pytest.raises(DiskError, match="newest state"):
                await vm.start()
            assert away.read(disk.path) is not None
            helper.end()
            shutil.rmtree(own)
            aside.rename(own)
            helper.start()
            await vm.start()
            assert vm.state() is State.RUNNING

    remote.run(scenario)


# A holder that is gone


def test_bound_machines_and_their_network_end_with_the_holder(remote: Bench) -> None:
    async def first(holder: Holder) -> tuple[VMConfig, MachineHandle]:
        network = await holder.backend.create_network(NetworkSpec("bound", "host", bound=True))
        lease = await network.reserve("node-1")
        config = remote.config("node-1", mac=lease.mac, ip=lease.ip)
        vm = await holder.backend.create(replace(config, name="bound/node-1", bound=True), network)
        await vm.start()
        assert vm.handle is not None
        return vm.config, vm.handle

    config, handle = remote.leave_behind(first)
    networks = helper_of(remote).folder / "helper/networks"

    async def second() -> None:
        await until(lambda: not is_alive(handle.process))
        await until(lambda: len(list(networks.iterdir())) == 1)  # the other cluster's, which is not bound
        async with remote.holder() as holder:
            assert isinstance(holder.backend, KeepsDisks)
            await holder.backend.bring_home(config.disks[0])
            assert remote.processes() == []

    remote.run(second)


def test_bound_machine_ends_with_the_holder_also_when_the_helper_was_away(remote: Bench) -> None:
    async def first(holder: Holder) -> tuple[VMConfig, MachineHandle]:
        network = await holder.backend.create_network(NetworkSpec("bound", "host", bound=True))
        lease = await network.reserve("node-1")
        config = remote.config("node-1", mac=lease.mac, ip=lease.ip)
        # Not bound to the helper itself: it is to be there when the next one comes.
        vm = await holder.backend.create(replace(config, name="bound/node-1"), network)
        await vm.start()
        assert vm.handle is not None
        helper_of(remote).signal(signal.SIGKILL)
        return vm.config, vm.handle

    config, handle = remote.leave_behind(first)
    assert is_alive(handle.process)
    helper_of(remote).wait()
    helper_of(remote).start()

    async def second() -> None:
        await until(lambda: not is_alive(handle.process))
        async with remote.holder() as holder:
            assert isinstance(holder.backend, KeepsDisks)
            await holder.backend.bring_home(config.disks[0])
            assert remote.processes() == []

    remote.run(second)
