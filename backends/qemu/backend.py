"""The `qemu` backend: machines by QEMU, on KVM where it works and emulated where not."""

from __future__ import annotations

import asyncio
import os
import platform
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path

from fleetbox.backends.base import BackendEnvironment, Capabilities, Network, NetworkSpec, VMConfig
from fleetbox.backends.host import saved
from fleetbox.backends.qemu import accelerator, binary, command
from fleetbox.backends.qemu.accelerator import Accelerator, host_cpu
from fleetbox.backends.qemu.vm import QemuVM
from fleetbox.backends.vmm import kvm
from fleetbox.backends.vmm.kvm import NESTED
from fleetbox.records import MachineHandle


class QemuBackend:
    """A backend of the contract (`fleetbox.backends.base.Backend`), `Adopts` and `Restores`.

    `FLEETBOX_QEMU` names another QEMU, `FLEETBOX_ACCELERATOR` forces kvm or tcg.
    """

    name = "qemu"

    def __init__(self, environment: BackendEnvironment) -> None:
        self._host = environment.host
        self._environ: Mapping[str, str] = ChainMap(dict(environment.settings), dict(os.environ))

    def _accelerator(self) -> Accelerator:
        return accelerator.probe(self._environ)  # kept in memory after the first time

    @property
    def accelerator(self) -> str:
        return self._accelerator().name

    @property
    def notes(self) -> tuple[str, ...]:
        chosen = self._accelerator()
        return () if chosen.name == "kvm" else (f"machines are emulated (tcg): {chosen.reason}",)

    def capabilities(self) -> Capabilities:
        return Capabilities(
            disk_formats=("qcow2", "raw"),
            firmware_boot=True,
            adoption=True,
            emulated=self.accelerator == "tcg",
            snapshots=True,
            control_line="ttyS1" if command.HAS_CONTROL_LINE else "",
            console=True,
            statistics=True,
        )

    async def check(self) -> None:
        await asyncio.to_thread(binary.require, self._environ)
        await asyncio.to_thread(self._accelerator)

    async def create_network(self, spec: NetworkSpec) -> Network:
        from fleetbox.backends.host.network.network import open_network

        return await open_network(self._host, spec)

    async def create(self, config: VMConfig, network: Network) -> QemuVM:
        return await self._machine(config, network)

    async def restore(self, config: VMConfig, network: Network, folder: Path) -> QemuVM:
        vm = await self._machine(config, network, folder)
        saved.require_fit(saved.read(folder), config, self.snapshot_identity())
        return vm

    async def _machine(self, config: VMConfig, network: Network, snapshot: Path | None = None) -> QemuVM:
        await self.check()
        qemu, identity = binary.require(self._environ), self.snapshot_identity()  # known by now
        return QemuVM(config, network, self._host, qemu, self.accelerator, identity, snapshot)

    def snapshot_identity(self) -> dict[str, str]:
        accelerator = self.accelerator
        cpu = command.cpu(accelerator)
        return {
            "backend": self.name,
            "version": binary.require(self._environ).version_text,
            "accelerator": accelerator,
            "cpu": host_cpu() if cpu == "host" else cpu,
            "machine": binary.MACHINE,
            "architecture": platform.machine(),
        }

    async def adopt(self, config: VMConfig, network: Network, handle: MachineHandle) -> QemuVM | None:
        vm = await self._machine(config, network)
        return vm if await vm.adopt(handle) else None

    def nested_virt_supported(self) -> bool:
        return self.accelerator == "kvm" and kvm.nested(NESTED)

    def supports_clustering(self) -> bool:
        return True

    async def reconcile(self) -> list[str]:
        from fleetbox.backends.host.network.reconcile import reconcile

        return await reconcile(self._host)
