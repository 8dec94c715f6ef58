"""The `cloud-hypervisor` backend: machines on KVM, a process of cloud-hypervisor each."""

from __future__ import annotations

import asyncio
import os
import platform
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path

from fleetbox.backends.base import BackendEnvironment, Capabilities, FirmwareBoot, Network, NetworkSpec, VMConfig
from fleetbox.backends.cloud_hypervisor.memory import HugePages
from fleetbox.backends.cloud_hypervisor.vm import NAME, CloudHypervisorVM
from fleetbox.backends.host import saved
from fleetbox.backends.qemu.accelerator import host_cpu
from fleetbox.backends.vmm import kvm, pinned
from fleetbox.backends.vmm.pinned import Binary
from fleetbox.errors import HostError
from fleetbox.records import MachineHandle

FIRMWARE = "rust-hypervisor-firmware"
FIRMWARE_OVERRIDE = "FLEETBOX_HYPERVISOR_FIRMWARE"


class CloudHypervisorBackend:
    """A backend of the contract (`fleetbox.backends.base.Backend`), `Adopts` and `Restores`.

    `FLEETBOX_CLOUD_HYPERVISOR` names another program, `FLEETBOX_HYPERVISOR_FIRMWARE` another firmware.
    """

    name = NAME

    def __init__(self, environment: BackendEnvironment) -> None:
        self._host = environment.host
        self._environ: Mapping[str, str] = ChainMap(dict(environment.settings), dict(os.environ))
        self._report = environment.report
        self._binary: Binary | None = None
        self._hugepages = HugePages()

    @property
    def accelerator(self) -> str:
        return kvm.accelerator(self._environ)

    @property
    def notes(self) -> tuple[str, ...]:
        return (f"machines are emulated: {kvm.OVERRIDE} says so",) if self.accelerator == "tcg" else ()

    def capabilities(self) -> Capabilities:
        return Capabilities(
            # Not qcow2: v53 keeps its metadata in memory while a machine stands still, when disks are copied (ADR 11).
            disk_formats=("raw",),
            firmware_boot=True,
            adoption=True,
            emulated=self.accelerator == "tcg",
            snapshots=True,
            control_line="hvc0",
            console=True,
            statistics=True,
        )

    async def check(self) -> None:
        await asyncio.to_thread(kvm.require, self.name, self._environ)
        await self._program()

    async def _program(self) -> Binary:
        if self._binary is None:
            self._binary = await pinned.ensure(self.name, self._report, self._environ)
        return self._binary

    async def create_network(self, spec: NetworkSpec) -> Network:
        from fleetbox.backends.host.network.network import open_network

        return await open_network(self._host, spec)

    async def create(self, config: VMConfig, network: Network) -> CloudHypervisorVM:
        return await self._machine(config, network)

    async def restore(self, config: VMConfig, network: Network, folder: Path) -> CloudHypervisorVM:
        vm = await self._machine(config, network, folder)
        saved.require_fit(saved.read(folder), config, self.snapshot_identity())
        return vm

    async def _machine(self, config: VMConfig, network: Network, snapshot: Path | None = None) -> CloudHypervisorVM:
        await self.check()
        program = await self._program()
        firmware = None
        if isinstance(config.boot, FirmwareBoot) and config.boot.firmware is None and snapshot is None:
            firmware = await self._firmware()
        identity = self.snapshot_identity()
        return CloudHypervisorVM(
            config, network, self._host, program.path, firmware, self._hugepages, identity, snapshot
        )

    async def _firmware(self) -> Path:
        if named := self._environ.get(FIRMWARE_OVERRIDE):
            if not Path(named).is_file():
                raise HostError(
                    f"there is no firmware {named}",
                    why=f"{FIRMWARE_OVERRIDE} names it",
                    hint=f"correct or unset {FIRMWARE_OVERRIDE}",
                )
            return Path(named)
        return await pinned.ensure_file(FIRMWARE, self._report)

    def snapshot_identity(self) -> dict[str, str]:
        found = self._binary or pinned.find(self.name, self._environ)
        accelerator = self.accelerator
        return {
            "backend": self.name,
            "version": found.version if found else pinned.pins()[self.name].version,
            "accelerator": accelerator,
            "cpu": host_cpu() if accelerator == "kvm" else accelerator,
            "machine": "",
            "architecture": platform.machine(),
        }

    async def adopt(self, config: VMConfig, network: Network, handle: MachineHandle) -> CloudHypervisorVM | None:
        vm = await self._machine(config, network)
        return vm if await vm.adopt(handle) else None

    def nested_virt_supported(self) -> bool:
        return self.accelerator == "kvm" and kvm.nested()

    def supports_clustering(self) -> bool:
        return True

    async def reconcile(self) -> list[str]:
        from fleetbox.backends.host.network.reconcile import reconcile

        return await reconcile(self._host)
