"""The `remote` backend: the contract, kept by a helper that has the hypervisor and the right to use it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from pathlib import Path

from fleetbox import paths
from fleetbox.backends.base import BackendEnvironment, Capabilities, Disk, Network, NetworkSpec, VMConfig
from fleetbox.backends.host import saved
from fleetbox.backends.remote import homecoming
from fleetbox.backends.remote.files import Sender
from fleetbox.backends.remote.link import Link, other_version
from fleetbox.backends.remote.machine import RemoteVM, Session
from fleetbox.backends.remote.network import RemoteNetwork
from fleetbox.backends.remote.wire import Facts, NetworkAnswer, NetworkRequest, Owner, Told, Which
from fleetbox.control import ControlSocket
from fleetbox.errors import HolderError, HostError, MachineError, ProtocolError
from fleetbox.identity import identify
from fleetbox.records import MachineHandle

SETTING = "FLEETBOX_REMOTE"


class RemoteBackend:
    """See `fleetbox.backends.base.Backend`, `Adopts`, `Restores` and `KeepsDisks`.

    `FLEETBOX_REMOTE` is the helper's socket; by default `helper.sock` in this user's runtime folder.
    """

    name = "remote"

    def __init__(self, environment: BackendEnvironment) -> None:
        self.path = Path(environment.settings.get(SETTING) or paths.helper_socket())
        self._link = Link(self.path)
        self._owner = str(paths.state_dir().absolute())
        self._session = Session(self._link, Sender(self._link), self._owner)
        self._facts: Facts | None = None

    @property
    def facts(self) -> Facts:
        """What the helper says of itself; blocks for a moment when it was not asked before.

        Raises HostError when there is no helper, HolderError, ProtocolError.
        """
        if self._facts is None:
            self._facts = self._ask_facts()
        return self._facts

    def _ask_facts(self) -> Facts:
        if not self.path.exists():
            raise HostError(
                "there is no remote helper",
                why=f"nothing is at {self.path}",
                hint=f"start one (docs/reference/remote.md), or name its socket with {SETTING}",
            )
        try:
            return ControlSocket(self.path).get("/v1/status", Facts)
        except ProtocolError as e:
            raise other_version(e) from e
        except HolderError as e:
            raise self._link.lost(e.why) from e

    @property
    def accelerator(self) -> str:
        return self.facts.accelerator

    @property
    def notes(self) -> tuple[str, ...]:
        return (f"machines run with the remote helper at {self.path} ({self.facts.backend})", *self.facts.notes)

    def capabilities(self) -> Capabilities:
        # A console and a control line are sockets in a folder: those of the helper are not ours.
        return dataclasses.replace(self.facts.capabilities, console=False, control_line="", private_network=False)

    async def check(self) -> None:
        self._facts = await asyncio.to_thread(self._ask_facts)
        await self._link.order("check", Owner(self._owner))

    async def create_network(self, spec: NetworkSpec) -> RemoteNetwork:
        await asyncio.to_thread(lambda: self.facts)
        await self._discard_destroyed()
        request = NetworkRequest(self._owner, spec, identify(os.getpid()) if spec.bound else None)
        answer = await self._link.call("network", request, NetworkAnswer)
        return RemoteNetwork(self._link, self._owner, spec.cluster, answer)

    async def create(self, config: VMConfig, network: Network) -> RemoteVM:
        return self._machine(config, network)

    async def restore(self, config: VMConfig, network: Network, folder: Path) -> RemoteVM:
        identity = await asyncio.to_thread(self.snapshot_identity)
        saved.require_fit(saved.read(folder), config, identity, self.capabilities().change_on_restore)
        return self._machine(config, network, folder)

    def _machine(self, config: VMConfig, network: Network, folder: Path | None = None) -> RemoteVM:
        if not isinstance(network, RemoteNetwork) or not network.holds(config.member):
            raise MachineError(
                f"the machine {config.name} cannot be made", why="it has no address on the remote backend's network"
            )
        return RemoteVM(config, self._session, folder)

    def snapshot_identity(self) -> dict[str, str]:
        return self.facts.identity

    async def adopt(self, config: VMConfig, network: Network, handle: MachineHandle) -> RemoteVM | None:
        vm = self._machine(config, network)
        told = await self._link.call("find", Which(vm.id), Told | None)
        if told is None or told.handle != handle or told.end is not None:
            return None
        vm.take_over(told)
        return vm

    async def bring_home(self, disk: Disk) -> None:
        await homecoming.settle(self._link, [disk], self._session.running)

    def nested_virt_supported(self) -> bool:
        return self.facts.nested_virt

    def supports_clustering(self) -> bool:
        return self.facts.clustering

    async def reconcile(self) -> list[str]:
        await self._discard_destroyed()
        removed: list[str] = await self._link.call("reconcile", Owner(self._owner), list[str])
        return removed

    async def _discard_destroyed(self) -> None:
        """End and forget what the helper has of members that were destroyed while nobody could tell it.

        Only where our data folder is there: a home that is not mounted has lost no members.
        """
        data = paths.data_dir().absolute()
        for told in await self._link.call("held", Owner(self._owner), list[Told]):
            ours = data.is_dir() and all(Path(origin).is_relative_to(data) for origin in told.origins)
            if told.origins and ours and homecoming.is_abandoned(told):
                await homecoming.discard(self._link, told)
