"""The life of members: made, started, stopped, destroyed, adopted.

Everything that a step makes is given back by an exit stack when a later step fails or is cancelled, so that exactly
what was done is undone; siblings are not touched. A member whose making fails leaves nothing; one whose *start* fails
stays, with its disk, as stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fleetbox import ssh
from fleetbox.backends.base import VM, Adopts, Backend, Network, Pauses, Restores, State, timeout_scale
from fleetbox.backends.host import process
from fleetbox.errors import FleetboxError, MachineError
from fleetbox.faultpoint import arrive
from fleetbox.holder.folders import make_folder, remove_folder, remove_run_files
from fleetbox.holder.gate import BootGate
from fleetbox.holder.guest import hostkeys
from fleetbox.holder.guest.keys import installation_key
from fleetbox.holder.operations import Steps, uninterrupted
from fleetbox.holder.orphans import end_machine
from fleetbox.holder.provision import Provisioner, packed_fixtures, remove_slot
from fleetbox.holder.readiness import wait_for_ssh
from fleetbox.holder.store import ClusterStore
from fleetbox.holder.warm.clones import become, mount_fixtures
from fleetbox.holder.warm.templates import TemplateStore
from fleetbox.image import Image
from fleetbox.records import MemberRecord, MemberState
from fleetbox.template import Template

if TYPE_CHECKING:
    from fleetbox.holder.warm.making import TemplateSource

log = logging.getLogger(__name__)

BOOT_LIMIT_S = 120.0
EMULATED_BOOT_LIMIT_S = 360.0
STOP_LIMIT_S = 60.0
SERIAL_TAIL_LINES = 15


@dataclass
class Machine:
    """A running member: its machine, and the task that notices its end."""

    vm: VM
    watcher: asyncio.Task[None]
    wanted_end: bool = False


class Members:
    """The members of one cluster on one backend and network."""

    def __init__(self, store: ClusterStore, backend: Backend, network: Network, on_end: Callable[[], None]) -> None:
        self.machines: dict[str, Machine] = {}
        self.network = network
        self._store = store
        self.backend = backend
        self._on_end = on_end
        self._capabilities = backend.capabilities()
        self.gate = BootGate(emulated=self._capabilities.emulated)
        self.provisioner = Provisioner(
            store.current.name, self._capabilities, installation_key().public_text, store.current.bound
        )

    def boot_limit(self, timeout_s: float) -> float:
        """The time limit of a boot: the user's, or by accelerator, scaled."""
        limit = EMULATED_BOOT_LIMIT_S if self._capabilities.emulated else BOOT_LIMIT_S
        return (timeout_s or limit) * timeout_scale()

    async def create(
        self,
        placeholder: MemberRecord,
        image: Image | None,
        steps: Steps,
        timeout_s: float,
        source: TemplateSource | None = None,
    ) -> None:
        """Make the member whose placeholder is reserved: a clone of the template of `source`, or booted where there is
        none. Raises after undoing all of it.
        """
        name = placeholder.name
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self.drop, name)
            async with self.gate.slot():
                await arrive("member.create")
                folder = Path(placeholder.folder)
                make_folder(folder)
                undo.push_async_callback(remove_folder, folder)
                await arrive("member.folder")
                lease = await self.network.reserve(name)
                undo.push_async_callback(self.network.release, name)
                await arrive("member.lease")
                record = msgspec.structs.replace(placeholder, ip=lease.ip, mac=lease.mac)
                undo.callback(hostkeys.remove_known_host, self._store.current.name, name)
                if source is None or not await self._clone(record, image, source, steps, timeout_s, undo):
                    self._store.put_member(record)
                    with steps.step("disk"):
                        await self.provisioner.make_disk(record, image)
                    await self.boot(record, image, steps, timeout_s, undo)
                await self._finish(name, undo)

    async def start(self, name: str, image: Image | None, steps: Steps, timeout_s: float) -> None:
        """Boot a stopped member from its disk. When that fails it is stopped again."""
        record = self._store.change_member(name, state=MemberState.STARTING, error="", handle=None)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._mark_stopped, name)
            async with self.gate.slot():
                await arrive("member.start")
                lease = await self.network.reserve(name, record.ip)
                record = self._store.change_member(name, ip=lease.ip, mac=lease.mac)
                await self.boot(record, image, steps, timeout_s, undo)
                await self._finish(name, undo)

    async def _finish(self, name: str, undo: AsyncExitStack) -> None:
        """Record that the member runs. From then on it is not undone: a cancellation takes effect after the write."""
        await arrive("member.ready")
        self._store.change_member(name, state=MemberState.RUNNING, started_at=time.time())
        await uninterrupted(self._store.commit())
        await arrive("member.finished")
        undo.pop_all()

    async def boot(
        self, record: MemberRecord, image: Image | None, steps: Steps, timeout_s: float, undo: AsyncExitStack
    ) -> None:
        deadline = asyncio.get_running_loop().time() + self.boot_limit(timeout_s)

        def left() -> float:
            return max(0.1, deadline - asyncio.get_running_loop().time())

        lease = await self.network.reserve(record.name, record.ip)
        fixture_disks = await self.provisioner.make_seed(record, lease)
        config = self.provisioner.config(record, image, lease, fixture_disks)
        vm = await self.backend.create(config, self.network)
        undo.push_async_callback(self.end_now, record.name, vm)
        async with with_serial_tail(record):
            with steps.step("boot"):
                async with self.gate.launching(vm):
                    await arrive("member.launch")
                    await vm.start()
                    await arrive("member.launched")
                    # Written at once: after a crash the machine is found again by what stands here.
                    record = self._store.change_member(record.name, handle=vm.handle)
                    self.watch(record.name, vm)
                    await self._store.commit()
                    await arrive("member.recorded")
            await self.wait_ready(record, vm, steps, left)

    async def wait_ready(
        self, record: MemberRecord, vm: VM, steps: Steps, left: Callable[[], float], *, woken: bool = False
    ) -> None:
        """Wait until the member is ready. One that has `woken` runs its SSH server already: no connection is spent on
        finding that out, as each costs an emulated guest much of a second.
        """
        if not (woken and self._capabilities.ssh):
            with steps.step("address"):
                await vm.wait_for_ip(left())
        if self._capabilities.ssh:
            with steps.step("ssh"):
                await wait_for_ssh(self._store.current, record, vm, left())

    async def _clone(
        self,
        record: MemberRecord,
        image: Image | None,
        source: TemplateSource,
        steps: Steps,
        timeout_s: float,
        undo: AsyncExitStack,
    ) -> bool:
        """Clone the member; False, and nothing done, when there is no template that works: it is to be booted."""
        deadline = asyncio.get_running_loop().time() + self.boot_limit(timeout_s)

        def left() -> float:
            return max(0.1, deadline - asyncio.get_running_loop().time())

        while (template := source.template) is not None:
            async with AsyncExitStack() as attempt:
                try:
                    cloned, vm = await self._wake(record, image, template, source, steps, attempt)
                except MachineError as e:
                    failure = e
                else:
                    undo.push_async_exit(attempt.pop_all())
                    try:
                        async with with_serial_tail(record):
                            await self.wait_ready(cloned, vm, steps, left, woken=True)
                            if self._capabilities.ssh:
                                await mount_fixtures(self._store.current, cloned, left())
                    except MachineError:
                        await asyncio.to_thread(TemplateStore().discard, template)
                        raise
                    return True
            await source.instead_of(template, failure)
        return False

    async def _wake(
        self,
        record: MemberRecord,
        image: Image | None,
        template: Template,
        source: TemplateSource,
        steps: Steps,
        undo: AsyncExitStack,
    ) -> tuple[MemberRecord, VM]:
        """Bring the template's machine to life as the member; MachineError when the template is no good."""
        store, backend = TemplateStore(), self.backend
        assert isinstance(backend, Restores)
        record = self._store.put_member(msgspec.structs.replace(record, base=template.base, warm=True))
        with steps.step("disk"):
            # Pinned first, then looked for: whoever removes templates does it the other way round.
            await self._store.commit()
            if await asyncio.to_thread(store.find, template.key) is None:
                raise MachineError(f"the template of {record.name} is gone", why="it was removed meanwhile")
            undo.push_async_callback(asyncio.to_thread, remove_slot, record, record.slot)
            await self.provisioner.make_disk(record, image, store.disk(template))
            store.used(template)
        lease = await self.network.reserve(record.name, record.ip)
        fixture_disks = await self.provisioner.make_seed(record, lease)
        config = self.provisioner.config(record, image, lease, fixture_disks)
        with steps.step("restore"):
            vm = await backend.restore(config, self.network, store.folder(template))
            undo.push_async_callback(self.end_now, record.name, vm)
            await arrive("member.launch")
            await vm.start()
            await arrive("member.launched")
            record = self._store.change_member(record.name, handle=vm.handle)
            self.watch(record.name, vm)
            await self._store.commit()
            await arrive("member.resume")
            assert isinstance(vm, Pauses)
            await vm.resume()
            await arrive("member.resumed")
        with steps.step("identity"):
            if self._capabilities.ssh:
                cluster = self._store.current.name
                await become(vm, cluster, record, lease, template, self.network, source.host)
            await arrive("member.join")
            await self.network.join(record.name, record.slot)
        return record, vm

    async def stop(self, name: str, steps: Steps, timeout_s: float) -> None:
        """Shut the member down, gently first. Stopped already: nothing."""
        machine = self.machines.get(name)
        if machine is None:
            await self._mark_stopped(name)
            return
        with steps.step("stop"):
            machine.wanted_end = True
            self._store.change_member(name, state=MemberState.STOPPING)
            try:
                await self._commit_if_possible()
                await arrive("member.stop")
                await close_master(self._store.current.name, name)
                await machine.vm.stop((timeout_s or STOP_LIMIT_S) * timeout_scale())
            except BaseException:
                if name in self.machines:  # interrupted, or it cannot be ended: it runs on
                    machine.wanted_end = False
                    self._store.change_member(name, state=MemberState.RUNNING)
                    await self._commit_if_possible()
                raise
            await machine.watcher

    async def destroy(self, name: str, steps: Steps) -> None:
        """End the member at once and delete everything of it. Once begun it is finished: half a member helps nobody."""
        with steps.step("destroy"):
            await uninterrupted(self._destroy(name))

    async def _destroy(self, name: str) -> None:
        record = self._store.current.members[name]
        machine = self.machines.get(name)
        await self._store.doom(name)
        try:
            await arrive("member.destroy")
            if machine is not None:
                machine.wanted_end = True
                await asyncio.gather(machine.vm.kill(), close_master(self._store.current.name, name))
                await machine.watcher
            await arrive("member.ended")
            await self.network.release(name)
            await arrive("member.release")
            await erase(self._store.current.name, record)
        except BaseException:
            if Path(record.folder).exists():  # its disk is there, and it is a member still
                runs = name in self.machines
                state, handle = (MemberState.RUNNING, record.handle) if runs else (MemberState.STOPPED, None)
                self._store.change_member(name, state=state, handle=handle)
                await self._commit_if_possible()
            else:
                await self.drop(name)
            raise
        await self.drop(name)

    async def adopt(self, record: MemberRecord, image: Image | None) -> bool:
        """Take over the machine of an earlier holder: False when it has ended meanwhile, or this backend cannot."""
        if record.handle is None or not isinstance(self.backend, Adopts):
            return False
        lease = await self.network.reserve(record.name, record.ip)
        config = self.provisioner.config(record, image, lease, packed_fixtures(record))
        vm = await self.backend.adopt(config, self.network, record.handle)
        if vm is None:
            return False
        # A holder that died while it saved or restored has left it paused, and maybe off the bridge.
        await self.network.join(record.name, record.slot)
        if vm.state() is State.PAUSED and isinstance(vm, Pauses):
            await vm.resume()
        self._store.change_member(record.name, state=MemberState.RUNNING, handle=vm.handle)
        self.watch(record.name, vm)
        return True

    def watch(self, name: str, vm: VM) -> None:
        self.machines[name] = Machine(vm, asyncio.create_task(self._await_end(name, vm), name=f"watch {name}"))

    def replace(self, name: str, vm: VM | None) -> Machine | None:
        """Make `vm` the member's machine and return the one before, whose end is no more the member's."""
        before = self.machines.pop(name, None)
        if vm is not None:
            self.watch(name, vm)
        return before

    async def _await_end(self, name: str, vm: VM) -> None:
        status = await vm.wait()
        machine = self.machines.get(name)
        if machine is None or machine.vm is not vm:
            return  # replaced
        del self.machines[name]
        log.info("%s has ended: %s", name, status.reason or "as asked")
        record = self._store.record
        if record is None or name not in record.members or record.members[name].state is MemberState.CREATING:
            return
        await arrive("member.stopped")
        await self._mark_stopped(name, "" if machine.wanted_end else status.reason)
        self._on_end()

    async def end_now(self, name: str, vm: VM) -> None:
        machine = self.machines.get(name)
        if machine is not None:
            machine.wanted_end = True
        await vm.kill()
        if machine is not None:
            await machine.watcher
        await close_master(self._store.current.name, name)

    async def _mark_stopped(self, name: str, error: str = "") -> None:
        record = self._store.current.members[name]
        if record.state is not MemberState.STOPPED or record.handle is not None:
            self._store.change_member(name, state=MemberState.STOPPED, handle=None, error=error or record.error)
        await self._commit_if_possible()

    async def drop(self, *names: str) -> None:
        for name in names:
            self._store.drop_member(name)
        await self._commit_if_possible()

    async def _commit_if_possible(self) -> None:
        # Undoing must go on when the disk is full: the record is then behind, and is repaired by the next holder.
        try:
            await self._store.commit()
        except FleetboxError as e:
            log.error("%s", e)  # noqa: TRY400 - the error explains itself


@asynccontextmanager
async def with_serial_tail(record: MemberRecord) -> AsyncIterator[None]:
    """Give a machine's failure the end of its serial log, where the guest says why."""
    try:
        yield
    except MachineError as e:
        if not e.details:
            e.details = tuple(process.tail(Path(record.folder) / "serial.log", SERIAL_TAIL_LINES))
        raise


async def close_master(cluster: str, name: str) -> None:
    """End the member's multiplexed SSH connection; it would hang on a machine that is gone."""
    if ssh.control_path(cluster, name).exists():
        with contextlib.suppress(FleetboxError):
            await process.run(ssh.close_argv(cluster, name), timeout_s=5.0)
        ssh.control_path(cluster, name).unlink(missing_ok=True)


async def erase(cluster: str, record: MemberRecord) -> None:
    """Delete everything of a member that has no machine here, and end the one that a dead holder may have left."""
    await end_machine(cluster, record)
    await arrive("member.erase")
    await remove_folder(Path(record.folder))
    await arrive("member.erased")
    remove_run_files(cluster, record.name)
    await asyncio.to_thread(hostkeys.remove_known_host, cluster, record.name)
