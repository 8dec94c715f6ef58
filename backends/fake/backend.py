"""The fake hypervisor adapter."""

from __future__ import annotations

from pathlib import Path

from fleetbox.backends.base import VM, Capabilities, Network, NetworkSpec, VMConfig
from fleetbox.backends.fake import machine
from fleetbox.backends.fake.faults import Faults
from fleetbox.backends.fake.machine import FakeVM
from fleetbox.backends.fake.network import FakeNetwork
from fleetbox.backends.host import process, saved
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import MachineError
from fleetbox.records import MachineHandle


class FakeBackend:
    """See `fleetbox.backends.base.Backend`, `Adopts` and `Restores`. `faults` may be changed at any time."""

    name = "fake"
    accelerator = ""

    def __init__(self, host: HostThread, faults: Faults) -> None:
        self._host = host
        self.faults = faults

    @property
    def notes(self) -> tuple[str, ...]:
        return (f"the fake backend has scripted faults: {self.faults.text}",) if self.faults.text else ()

    def capabilities(self) -> Capabilities:
        return Capabilities(
            disk_formats=("raw", "qcow2"),
            firmware_boot=True,
            adoption=True,
            ssh=False,
            needs_images=False,
            snapshots=True,
            console=True,
            statistics=True,
        )

    async def check(self) -> None:
        """A shell is everywhere."""

    async def create_network(self, spec: NetworkSpec) -> FakeNetwork:
        await self.faults.reach("network", spec.cluster)
        return FakeNetwork(spec)

    async def create(self, config: VMConfig, network: Network) -> VM:
        return await self._machine(config, network)

    async def restore(self, config: VMConfig, network: Network, folder: Path) -> VM:
        saved.require_fit(saved.read(folder), config, self.snapshot_identity())
        return await self._machine(config, network, folder)

    def snapshot_identity(self) -> dict[str, str]:
        return machine.IDENTITY

    async def _machine(self, config: VMConfig, network: Network, snapshot: Path | None = None) -> VM:
        await self.faults.reach("create", config.name)
        if not isinstance(network, FakeNetwork) or not network.holds(config.member):
            raise MachineError(
                f"the machine {config.name} cannot be made", why="it has no address on the fake backend's network"
            )
        return FakeVM(config, network, self._host, self.faults, snapshot)

    async def adopt(self, config: VMConfig, network: Network, handle: MachineHandle) -> VM | None:
        fault = await self.faults.reach("adopt", config.name)
        child = process.adopt(handle.process)
        if child is None:
            return None
        if fault and fault.action == "die":
            await child.kill()
            child.close()
            return None
        await network.attach(config.member, slot=config.slot)
        vm = FakeVM(config, network, self._host, self.faults)
        await vm.terminal.open()
        vm.take_over(child)
        return vm

    def nested_virt_supported(self) -> bool:
        return False

    def supports_clustering(self) -> bool:
        return True

    async def reconcile(self) -> list[str]:
        return []
