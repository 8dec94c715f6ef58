"""The bench that the contract suite runs on: one backend, a folder with an awkward name, holders that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from fleetbox.backends import registry
from fleetbox.backends.base import (
    VM,
    Adopts,
    Backend,
    BackendEnvironment,
    DirectBoot,
    Disk,
    ExitStatus,
    FirmwareBoot,
    Network,
    NetworkSpec,
    VMConfig,
    timeout_scale,
)
from fleetbox.backends.host.thread import HostThread
from fleetbox.identity import ProcessIdentity, is_alive
from fleetbox.records import MachineHandle
from tests import tinykernel
from tests.remotehelper import Helper
from tests.simulators import stand_in

_T = TypeVar("_T")

CLUSTER = "bench"
LIMIT_S = 60.0 * timeout_scale()

# A guest that neither answers nor listens: QEMU's firmware without a system is one, the fake needs to be told.
DEAF = {"fake": {"FLEETBOX_FAKE_FAULTS": "stop=hang,address=hang"}}


NEEDS_KERNEL = {"firecracker"}  # boots no firmware


@dataclass
class Holder:
    """What a holder has of a backend while it lives."""

    bench: Bench
    backend: Backend
    network: Network
    machines: list[VM] = field(default_factory=list)

    async def machine(self, name: str = "node-1", config: VMConfig | None = None) -> VM:
        """A machine with a lease, not started; this holder kills it in the end."""
        vm = await self.backend.create(config or await self.config(name), self.network)
        self.machines.append(vm)
        return vm

    async def running(self, name: str = "node-1") -> VM:
        vm = await self.machine(name)
        await vm.start()
        return vm

    async def config(self, name: str = "node-1") -> VMConfig:
        lease = await self.network.reserve(name)
        return self.bench.config(name, mac=lease.mac, ip=lease.ip)

    async def adopt(self, config: VMConfig, handle: MachineHandle) -> VM | None:
        assert isinstance(self.backend, Adopts)
        await self.network.reserve(config.member, config.assigned_ip)
        vm = await self.backend.adopt(config, self.network, handle)
        if vm is not None:
            self.machines.append(vm)
        return vm


@dataclass
class Bench:
    """One backend under test. `folder` has a space, a comma and an equals sign in its name."""

    backend_name: str
    home: Path
    folder: Path
    helper: Helper | None = None  # of the remote backend

    @property
    def hypervisor(self) -> str:
        """The backend that runs the machines."""
        return self.helper.backend if self.helper else self.backend_name

    def tells_right_code(self, adopted: ExitStatus) -> bool:
        """Whether an adopted machine has an exit code where one is known: the helper is its parent, we are not."""
        return (adopted.code is not None) == (self.helper is not None)

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def config(self, name: str, *, mac: str, ip: str) -> VMConfig:
        """A small machine without an operating system: firmware that finds nothing to boot, or a kernel that halts."""
        disk = self.folder / f"{name}, disk=1.img"
        with disk.open("ab") as file:
            file.truncate(1 << 20)
        return VMConfig(
            name=f"{CLUSTER}/{name}",
            run_dir=self.run_dir,
            disks=(Disk(disk, "raw"),),
            seed=None,
            boot=self.boot(),
            mac=mac,
            cpus=1,
            memory_bytes=64 << 20,
            serial_log=self.folder / f"{name}, serial.log",
            assigned_ip=ip,
        )

    def boot(self) -> DirectBoot | FirmwareBoot:
        if self.backend_name not in NEEDS_KERNEL:
            return FirmwareBoot()
        return DirectBoot(tinykernel.write(self.folder / "kernel, tiny"), None, "")

    @contextlib.asynccontextmanager
    async def holder(
        self, *, deaf: bool = False, faults: str = "", subnet: str = "", leases: dict[str, str] | None = None
    ) -> AsyncIterator[Holder]:
        """A holder with a network; `faults` are the fake's. In its end it kills its machines and closes the network."""
        host = HostThread()
        settings = {k: v for k, v in os.environ.items() if k.startswith("FLEETBOX_")}
        settings |= stand_in(self.backend_name)
        settings |= DEAF.get(self.hypervisor, {}) if deaf else {}
        settings |= {"FLEETBOX_FAKE_FAULTS": faults} if faults else {}
        if self.helper:
            self.helper.faults(settings.get("FLEETBOX_FAKE_FAULTS", ""))
            settings["FLEETBOX_REMOTE"] = str(self.helper.socket)
        backend = registry.create(self.backend_name, BackendEnvironment(host, settings))
        try:
            network = await backend.create_network(NetworkSpec(CLUSTER, "host", subnet=subnet, leases=leases or {}))
            holder = Holder(self, backend, network)
            try:
                yield holder
            finally:
                for vm in holder.machines:
                    await vm.kill()
                await network.close()
        finally:
            host.close()

    def run(self, scenario: Callable[[], Awaitable[None]]) -> None:
        """Run a coroutine in an event loop of its own, with a limit."""

        async def limited() -> None:
            async with asyncio.timeout(LIMIT_S):
                await scenario()

        asyncio.run(limited())

    def leave_behind(self, scenario: Callable[[Holder], Awaitable[_T]], **kwargs: Any) -> _T:
        """Run a scenario in a holder process of its own, which dies by SIGKILL with it; returns its (picklable) result.

        What it has started is nobody's child then, as its holder's death leaves it in real life.
        """
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:

                async def first() -> None:
                    async with self.holder(**kwargs) as holder:
                        os.write(writer, pickle.dumps(await scenario(holder)))
                        os.kill(os.getpid(), signal.SIGKILL)

                self.run(first)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            said = pipe.read()
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, "the first holder failed, see its output"
        result: _T = pickle.loads(said)
        return result

    def processes(self) -> list[int]:
        """Running processes that were started on this bench, without the network's name server."""
        homes = [self.home, *([self.helper.folder] if self.helper else [])]
        needles = [b"FLEETBOX_HOME=" + os.fsencode(home) + b"\0" for home in homes]
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                environ = (entry / "environ").read_bytes()  # a zombie's is empty
                named = any(needle in environ for needle in needles)
                if named and (entry / "comm").read_text() != "dnsmasq\n":
                    found.append(int(entry.name))
        return [pid for pid in found if pid not in (os.getpid(), self.helper.pid if self.helper else 0)]

    def assert_nothing_runs(self) -> None:
        """No process, pidfile, socket or FIFO of a machine is left; a log may be."""
        assert self.processes() == []
        assert sorted(p.name for p in self.run_dir.iterdir() if p.suffix == ".pid" or not p.is_file()) == []

    def pidfile(self) -> str:
        """The text of the only pidfile."""
        [path] = self.run_dir.glob("*.pid")
        return path.read_text()


REAL = ("qemu", "cloud-hypervisor", "firecracker")
REMOTE = "remote-"
# What a real hypervisor adds behind the remote backend: files, memory and processes that are the helper's.
REMOTE_QEMU = ("test_adoption_contract", "test_snapshot_contract")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test over every backend; over `remote` with real machines where that makes a difference."""
    if "bench" in metafunc.fixturenames:
        more = (f"{REMOTE}qemu",) if metafunc.module.__name__.rpartition(".")[2] in REMOTE_QEMU else ()
        names = ("fake", *REAL, f"{REMOTE}fake", *more)
        params = [n if n.endswith("fake") else pytest.param(n, marks=pytest.mark.netns) for n in names]
        metafunc.parametrize("bench", params, indirect=True)


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """The backend under test, in a network namespace of its own where it makes a real network.

    `remote` drives a helper, which has one of the others.
    """
    hypervisor = request.param.removeprefix(REMOTE)
    if hypervisor != "fake":
        request.getfixturevalue("own_network")  # first, so that what is left behind is looked for inside
    home: Path = request.getfixturevalue("fleetbox_home")
    folder = home / "a, b=c"
    (folder / "run").mkdir(mode=0o700, parents=True)
    if hypervisor == request.param:
        yield Bench(hypervisor, home, folder)
        return
    with Helper(home / "helper", hypervisor) as helper:
        yield Bench("remote", home, folder, helper)


def end_from_outside(handle: MachineHandle | None) -> ProcessIdentity:
    """SIGKILL a machine behind its backend's back."""
    assert handle is not None
    assert is_alive(handle.process)
    os.kill(handle.process.pid, signal.SIGKILL)
    return handle.process
