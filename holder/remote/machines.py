"""The machines that the helper runs for others.

A machine that has ended stays until its owner says `forget`: its disk may be the only copy.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from fleetbox.backends.base import (
    VM,
    Adopts,
    Backend,
    HasStatistics,
    Pauses,
    Restores,
    Snapshots,
    VMConfig,
)
from fleetbox.backends.host.disk import disk_errors
from fleetbox.backends.host.disklock import lock_holders
from fleetbox.backends.remote.wire import Act, End, Start, Told
from fleetbox.errors import ConflictError, DiskError, FleetboxError, HostError, MachineError, NotFoundError
from fleetbox.holder.orphans import end_process
from fleetbox.holder.remote.blobs import Blobs, digest_of
from fleetbox.holder.remote.configuration import SAVED, configuration, place, restore_folder
from fleetbox.holder.remote.machine import Machine, Record
from fleetbox.holder.remote.networks import Networks
from fleetbox.identity import identify
from fleetbox.names import check_label
from fleetbox.usage import Statistics

log = logging.getLogger(__name__)

_ID = re.compile(r"[0-9a-f]{16}")


class Machines:
    """All machines of a helper, by id."""

    def __init__(self, backend: Backend, networks: Networks, blobs: Blobs, root: Path) -> None:
        self._backend = backend
        self._networks = networks
        self._blobs = blobs
        self._root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._all: dict[str, Machine] = {}

    # Finding

    def find(self, machine: str) -> Told | None:
        found = self._all.get(machine)
        return found.told() if found else None

    def held(self, owner: str) -> list[Told]:
        return [machine.told() for machine in self._all.values() if machine.start.owner == owner]

    def in_use(self, cluster: str) -> set[str]:
        """Members of a cluster that have a machine here."""
        return {m.start.member for m in self._all.values() if m.start.cluster == cluster and m.record.end is None}

    def launch(self, act: Act) -> Machine | None:
        """The launch that is meant, None when it is not known any more."""
        machine = self._all.get(act.machine)
        return machine if machine is not None and machine.start.generation == act.generation else None

    def running(self, act: Act) -> tuple[Machine, VM]:
        """The same, running. Raises MachineError."""
        machine = self.launch(act)
        if machine is None or machine.vm is None:
            raise MachineError("the machine does not run", why="the helper has ended it, or never knew it")
        return machine, machine.vm

    def by_id(self, machine: str) -> Machine:
        """Raises NotFoundError."""
        if not _ID.fullmatch(machine) or machine not in self._all:
            raise NotFoundError("there is no such machine")
        return self._all[machine]

    # Launch and adoption

    async def start(self, start: Start) -> Told:
        """Launch a machine; failed or cancelled, nothing of it stays. Raises the backend's errors, ConflictError."""
        check_label(start.cluster, "cluster name")
        check_label(start.member, "member name")
        before = self._all.get(start.machine)
        if before is not None:
            name = f"{start.cluster}/{start.member}"
            if before.record.end is None:
                raise MachineError(f"{name} already runs", why="the helper runs it")
            raise ConflictError(f"{name} cannot be started", why="the disk of its last launch was not fetched yet")
        self._check_disks_are_free(start)
        machine = Machine(Record(start), self._root / start.machine)
        self._all[start.machine] = machine
        async with AsyncExitStack() as undo:
            undo.callback(self._all.pop, start.machine)
            undo.push_async_callback(asyncio.to_thread, shutil.rmtree, machine.folder, ignore_errors=True)
            with disk_errors(f"{machine.folder} cannot be made"):
                shutil.rmtree(machine.folder, ignore_errors=True)
                machine.folder.mkdir(mode=0o700)
                await asyncio.to_thread(machine.write)  # first: after a crash its process is found by its disk
            await place(machine, self._blobs)
            config = configuration(machine, self._blobs)
            vm = await self._vm(machine, config)
            undo.push_async_callback(vm.kill)
            await vm.start()
            machine.vm = vm
            machine.record = msgspec.structs.replace(machine.record, handle=vm.handle)
            with disk_errors(f"the record of {config.name} cannot be written"):
                await asyncio.to_thread(machine.write)
            undo.pop_all()
        self._watch(machine, vm)
        self._drop_copied(start)
        return machine.told()

    def _check_disks_are_free(self, start: Start) -> None:
        wanted = {disk.origin for disk in start.disks if disk.origin}
        for other in self._all.values():
            if other.start.owner == start.owner and wanted & {disk.origin for disk in other.start.disks}:
                raise DiskError(
                    f"a disk of {start.cluster}/{start.member} is in use",
                    why=f"{other.start.cluster}/{other.start.member} has it with the helper",
                    hint="two machines on one disk would destroy it; stop the one that uses it first",
                )

    async def _vm(self, machine: Machine, config: VMConfig) -> VM:
        network = self._networks.live(machine.start.cluster)
        if not machine.start.saved:
            return await self._backend.create(config, network)
        if not isinstance(self._backend, Restores):
            raise HostError("this backend cannot restore machines")
        return await self._backend.restore(config, network, restore_folder(machine))

    def _drop_copied(self, start: Start) -> None:
        """Remove what only this launch had need of: its disks' own files, of which it has copies, and its claim."""
        self._blobs.claims.pop(start.machine, None)
        for disk in start.disks:
            if not disk.read_only:
                self._blobs.drop(disk.layers[0].digest, self.needed())

    def needed(self) -> set[str]:
        """Digests of the files that a machine here stands on."""
        needed: set[str] = set()
        for machine in self._all.values():
            own = {disk.layers[0].digest for disk in machine.start.disks if not disk.read_only}
            needed |= machine.start.digests() - own
        return needed

    async def take_over(self) -> None:
        """Adopt what an earlier helper left running; what ended meanwhile waits for its owner."""
        for folder in sorted(p for p in self._root.iterdir() if _ID.fullmatch(p.name)):
            try:
                record = msgspec.json.decode((folder / "record.json").read_bytes(), type=Record)
            except FileNotFoundError:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)  # it was not begun
                continue
            except msgspec.DecodeError as e:
                log.error("%s cannot be understood, it is left alone: %s", folder / "record.json", e)  # noqa: TRY400
                continue
            machine = Machine(record, folder)
            self._all[folder.name] = machine
            if record.end is None:
                await self._adopt(machine)
            else:
                machine.ended.set()

    async def _adopt(self, machine: Machine) -> None:
        start, handle = machine.start, machine.record.handle
        vm = None
        if handle is not None and isinstance(self._backend, Adopts):
            vm = await self._backend.adopt(
                configuration(machine, self._blobs), self._networks.live(start.cluster), handle
            )
        if vm is not None:
            machine.vm = vm
            self._watch(machine, vm)
            return
        for number, disk in enumerate(start.disks):
            for pid in lock_holders(machine.disk_path(number)) if not disk.read_only else ():
                if (orphan := identify(pid)) is not None:
                    await end_process(orphan)
        await self._has_ended(machine, End(None, "it ended while no helper was there"))

    def _watch(self, machine: Machine, vm: VM) -> None:
        async def until_it_ends() -> None:
            status = await vm.wait()
            await self._has_ended(machine, End(status.code, status.reason))

        machine.ending = asyncio.create_task(until_it_ends(), name=f"watch {machine.start.machine}")

    async def _has_ended(self, machine: Machine, end: End) -> None:
        log.info("%s/%s has ended: %s", machine.start.cluster, machine.start.member, end.reason)
        machine.record, machine.vm = msgspec.structs.replace(machine.record, end=end), None
        try:
            await asyncio.to_thread(machine.write)
        except OSError as e:
            log.error("the record of %s is behind: %s", machine.start.machine, e)  # noqa: TRY400
        machine.ended.set()

    # Orders

    async def switch(self, order: str, act: Act) -> Told:
        """Pause or resume a machine."""
        machine, vm = self.running(act)
        if not isinstance(vm, Pauses):
            raise HostError("this backend cannot pause machines")
        await (vm.pause() if order == "pause" else vm.resume())
        return machine.told()

    async def save(self, act: Act) -> list[str]:
        """Save a paused machine; returns the files' names, which are there until it is saved again or forgotten."""
        machine, vm = self.running(act)
        if not isinstance(vm, Snapshots):
            raise HostError("this backend cannot save machines")
        folder = machine.folder / "saved"
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        with disk_errors(f"{folder} cannot be made"):
            folder.mkdir(mode=0o700)
        await vm.snapshot(folder)
        return sorted(path.name for path in folder.iterdir())

    async def statistics(self, act: Act) -> Statistics:
        """What a machine uses. Raises MachineError when it has ended."""
        _, vm = self.running(act)
        if not isinstance(vm, HasStatistics):
            raise HostError("this backend has no statistics")
        return await vm.statistics()

    async def end(self, order: str, act: Act) -> None:
        """Stop or kill a launch; one that is not known or has ended: nothing."""
        machine = self.launch(act)
        if machine is None or machine.vm is None:
            return
        await (machine.vm.stop(act.timeout_s) if order == "stop" else machine.vm.kill())
        await machine.ended.wait()

    async def kill_all(self, cluster: str) -> None:
        """End all machines of a cluster: the holder that they were bound to has ended."""
        running = [m for m in self._all.values() if m.start.cluster == cluster and m.vm is not None]
        await asyncio.gather(*(m.vm.kill() for m in running if m.vm), return_exceptions=True)

    async def forget(self, act: Act) -> None:
        """Delete what a launch that has ended has left; what a template saved stays as blobs, as its clones ask for it.

        Raises ConflictError while it runs.
        """
        machine = self.launch(act)
        if machine is None:
            return
        if machine.record.end is None:
            raise ConflictError("a machine that runs cannot be forgotten", hint="end it first")
        del self._all[act.machine]
        if machine.start.memory_file:
            await asyncio.to_thread(self._keep_saved, machine.folder / "saved")
        await asyncio.to_thread(shutil.rmtree, machine.folder, ignore_errors=True)
        await asyncio.to_thread(self._blobs.sweep, self.needed())

    def _keep_saved(self, folder: Path) -> None:
        for name in SAVED:
            try:
                self._blobs.adopt(folder / name, digest_of(folder / name))
            except (OSError, FleetboxError):
                continue  # there is none; or they are sent again
