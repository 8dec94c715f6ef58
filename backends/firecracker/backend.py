"""The firecracker adapter."""

from __future__ import annotations

import asyncio
import os
import platform
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path

from fleetbox.backends.base import BackendEnvironment, Capabilities, Network, NetworkSpec, VMConfig
from fleetbox.backends.firecracker.vm import FirecrackerVM
from fleetbox.backends.host import saved
from fleetbox.backends.qemu.accelerator import host_cpu
from fleetbox.backends.vmm import kvm, pinned
from fleetbox.errors import MachineError
from fleetbox.records import MachineHandle

MAX_CPUS = 32


class FirecrackerBackend:
    """A backend of the contract (`fleetbox.backends.base.Backend`), `Adopts` and `Restores`.

    `FLEETBOX_FIRECRACKER` names another firecracker. `FLEETBOX_ACCELERATOR=tcg` says that what it names emulates, as
    the tests' simulator does: KVM is not asked for then.
    """

    name = "firecracker"

    def __init__(self, environment: BackendEnvironment) -> None:
        self._host = environment.host
        self._report = environment.report
        self._environ: Mapping[str, str] = ChainMap(dict(environment.settings), dict(os.environ))
        self._binary: pinned.Binary | None = None

    @property
    def accelerator(self) -> str:
        return kvm.accelerator(self._environ)

    @property
    def notes(self) -> tuple[str, ...]:
        if self.accelerator == "tcg":
            return (f"machines are emulated: {kvm.OVERRIDE} says so",)
        passed_over = pinned.passed_over(self.name)
        used = self._binary is None or self._binary.source == "cache"
        return (f"the firecracker on PATH is not used: {passed_over}",) if passed_over and used else ()

    def capabilities(self) -> Capabilities:
        return Capabilities(
            disk_formats=("raw",),
            adoption=True,
            emulated=self.accelerator == "tcg",
            max_cpus=MAX_CPUS,
            snapshots=True,
            statistics=True,
            hotplug=False,
        )

    async def check(self) -> None:
        await asyncio.to_thread(kvm.require, self.name, self._environ)
        await self._program()

    async def _program(self) -> pinned.Binary:
        if self._binary is None:
            self._binary = await pinned.ensure(self.name, self._report, self._environ)
        return self._binary

    async def create_network(self, spec: NetworkSpec) -> Network:
        from fleetbox.backends.host.network.network import open_network

        return await open_network(self._host, spec)

    async def create(self, config: VMConfig, network: Network) -> FirecrackerVM:
        return await self._machine(config, network)

    async def restore(self, config: VMConfig, network: Network, folder: Path) -> FirecrackerVM:
        vm = await self._machine(config, network, folder)
        was = saved.read(folder)
        saved.require_fit(was, config, self.snapshot_identity())
        if len(config.fixtures) != was.fixtures:
            raise MachineError(
                f"{config.name} cannot be restored",
                why=f"the saved machine has {was.fixtures} fixtures, and firecracker plugs no more in",
            )
        if not (folder / saved.MEMORY).is_file():
            raise MachineError(f"{folder} cannot be restored", why=f"there is no {saved.MEMORY}")
        return vm

    async def _machine(self, config: VMConfig, network: Network, snapshot: Path | None = None) -> FirecrackerVM:
        binary = await self._program()
        return FirecrackerVM(config, network, self._host, binary.path, self.snapshot_identity(), snapshot)

    def snapshot_identity(self) -> dict[str, str]:
        found = self._binary or pinned.find(self.name, self._environ)
        return {
            "backend": self.name,
            "version": found.version if found else pinned.pins()[self.name].version,
            "accelerator": self.accelerator,
            "cpu": host_cpu(),
            "machine": self.name,
            "architecture": platform.machine(),
        }

    async def adopt(self, config: VMConfig, network: Network, handle: MachineHandle) -> FirecrackerVM | None:
        vm = await self._machine(config, network)
        return vm if await vm.adopt(handle) else None

    def nested_virt_supported(self) -> bool:
        return False

    def supports_clustering(self) -> bool:
        return True

    async def reconcile(self) -> list[str]:
        from fleetbox.backends.host.network.reconcile import reconcile

        return await reconcile(self._host)
