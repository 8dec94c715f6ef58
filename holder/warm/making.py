"""Making templates: a machine is booted once, settles, is saved, and ends.

It has a reserved name and an address at the subnet's top end, so that members keep the low ones. Its folder stands
beside those of the cluster's members: when its holder is killed, the machine is found there as an orphan, like any
other.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import ipaddress
import logging
import shlex
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from fleetbox import paths, ssh
from fleetbox.backends.base import (
    VM,
    Backend,
    FirmwareBoot,
    HasControlLine,
    Lease,
    Network,
    Pauses,
    Restores,
    Snapshots,
    generate_mac,
    timeout_scale,
)
from fleetbox.backends.host import disk as disks
from fleetbox.backends.host.files import worker
from fleetbox.backends.host.process import run
from fleetbox.backends.host.thread import HostThread
from fleetbox.errors import FleetboxError, MachineError
from fleetbox.faultpoint import arrive
from fleetbox.holder.folders import make_folder, remove_folder
from fleetbox.holder.gate import BootGate
from fleetbox.holder.guest import hostkeys
from fleetbox.holder.guest.seed import Seed, network_config, user_data
from fleetbox.holder.members import Members, with_serial_tail
from fleetbox.holder.operations import Emit, Steps
from fleetbox.holder.provision import Provisioner, find_disk, new_member
from fleetbox.holder.readiness import wait_for_ssh
from fleetbox.holder.store import ClusterStore
from fleetbox.holder.warm.program import PROGRAM
from fleetbox.holder.warm.reidentify import QUIET, prepare
from fleetbox.holder.warm.templates import SAVED, TemplateStore
from fleetbox.image import Image
from fleetbox.names import new_id
from fleetbox.records import MemberRecord
from fleetbox.sizes import MIB
from fleetbox.specs import TEMPLATE_NAME, MemberSpec
from fleetbox.template import Origin, Template
from fleetbox.wire import AddRequest, Notice, UpRequest

log = logging.getLogger(__name__)

SETTLE_LIMIT_S = 120.0
CONTROL_LINE_LIMIT_S = 30.0
# What a booted system writes to its disk, with room to spare; memory is preallocated by nobody but may all be touched.
DISK_ROOM_BYTES = 512 * MIB

_SETTLE = (
    "! command -v cloud-init >/dev/null || timeout {limit} cloud-init status --wait >/dev/null; "
    "! [ -d /run/systemd/system ] || timeout {limit} systemctl is-system-running --wait >/dev/null; "
    "sync"
)


class NoTemplate(FleetboxError):
    """The machine booted, but cannot become a template; members can still be booted."""


class Recipe(msgspec.Struct, frozen=True):
    """Everything that shapes a template; `key` is its digest.

    `seed` and `program` are digests of what every guest is told, and of what waits in the template to re-identify it.
    """

    image: str
    identity: dict[str, str]
    cpus: int
    memory_bytes: int
    disk_bytes: int
    boot: str
    seed: str
    program: str
    control_line: bool

    @property
    def key(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()


def recipe(
    identity: Mapping[str, str], provisioner: Provisioner, spec: MemberSpec, image: Image | None, *, control_line: bool
) -> Recipe:
    """The recipe of a member's template; `identity` is the backend's `snapshot_identity`. Reads the kernel: blocks."""
    boot = provisioner.boot(spec, image)
    if isinstance(boot, FirmwareBoot):
        how = "firmware"
    else:
        kernel = hashlib.sha256(Path(spec.kernel).read_bytes()).hexdigest() if spec.kernel else ""
        how = f"direct {kernel} {boot.cmdline}"
    return Recipe(
        image=image.digest if image else "",
        identity=dict(identity),
        cpus=spec.cpus,
        memory_bytes=spec.memory_bytes,
        disk_bytes=spec.disk_bytes,
        boot=how,
        seed=_seed_shape(provisioner.authorized_key),
        program=hashlib.sha256(PROGRAM.encode()).hexdigest(),
        control_line=control_line,
    )


def _seed_shape(authorized_key: str) -> str:
    """The digest of all that a seed says whoever it is for: of what some certain member would be told."""
    seed = Seed(
        instance_id="i",
        hostname="h",
        cluster="c",
        authorized_key=authorized_key,
        host_key=hostkeys.HostKey("private", "public"),
        lease=Lease("h", "192.0.2.2", "02:00:00:00:00:02", 24, "192.0.2.1", ("192.0.2.1",)),
        control_line="tty",
    )
    return hashlib.sha256(msgspec.json.encode([user_data(seed), network_config(seed)])).hexdigest()


@dataclasses.dataclass(frozen=True)
class TemplateMaker:
    """What making a template needs of its cluster's holder. `limit_s` limits the boot."""

    cluster: ClusterStore
    backend: Backend
    network: Network
    provisioner: Provisioner
    gate: BootGate
    host: HostThread
    limit_s: float

    async def ensure(self, spec: MemberSpec, image: Image | None, *, control_line: bool, emit: Emit) -> Template:
        """The template for such members, made when there is none.

        Raises NoTemplate when a machine boots but cannot be saved here; whatever keeps it from booting as for a member.
        """
        assert isinstance(self.backend, Restores)
        control_line = control_line and bool(self.backend.capabilities().control_line)
        identity = await asyncio.to_thread(self.backend.snapshot_identity)
        wanted = await asyncio.to_thread(recipe, identity, self.provisioner, spec, image, control_line=control_line)
        store = TemplateStore()
        if found := await asyncio.to_thread(store.find, wanted.key):
            return found
        try:
            _check_space(spec)
            async with store.making(wanted.key, emit) as staging:
                if found := await asyncio.to_thread(store.find, wanted.key):
                    return found
                with Steps(emit).step("template", "booted once; members are cloned from it"):
                    return await self._make(store, wanted, spec, image, staging, emit)
        except (MachineError, NoTemplate):
            raise
        except FleetboxError as e:
            raise NoTemplate(e.message, why=e.why, hint=e.hint, details=e.details) from e

    async def _make(
        self, store: TemplateStore, wanted: Recipe, spec: MemberSpec, image: Image | None, staging: Path, emit: Emit
    ) -> Template:
        cluster = self.cluster.current
        plain = msgspec.structs.replace(spec, fixtures=())
        mac = generate_mac(f"{cluster.name}/{TEMPLATE_NAME}")
        record = msgspec.structs.replace(
            new_member(cluster, TEMPLATE_NAME, new_id(), plain, mac, time.time(), image.digest if image else ""),
            control_line=wanted.control_line,
        )
        folder = Path(record.folder)
        async with AsyncExitStack() as undo:
            await remove_folder(folder)  # left by a holder that was killed
            make_folder(folder)
            undo.push_async_callback(remove_folder, folder)
            lease = await self.network.reserve(TEMPLATE_NAME, _top(self.network.subnet))
            undo.push_async_callback(self.network.release, TEMPLATE_NAME)
            record = msgspec.structs.replace(record, ip=lease.ip, mac=lease.mac)
            undo.callback(hostkeys.remove_known_host, cluster.name, TEMPLATE_NAME)
            await self.provisioner.make_disk(record, image)
            await self.provisioner.make_seed(record, lease)
            config = dataclasses.replace(
                self.provisioner.config(record, image, lease, ()), memory_file=staging / "memory"
            )
            vm = await self.backend.create(config, self.network)
            undo.push_async_callback(vm.kill)
            async with with_serial_tail(record):
                await self._boot(vm, record)
            try:
                has_line = wanted.control_line and await self._prepare(vm, image, emit)
                assert isinstance(vm, Pauses)
                assert isinstance(vm, Snapshots)
                await vm.pause()
                await arrive("template.paused")
                await vm.snapshot(staging / SAVED)
                await arrive("template.saved")
            except MachineError as e:
                raise NoTemplate("the booted machine could not be saved", why=f"{e.message}: {e.why}") from e
            await vm.kill()
            template = Template(
                key=wanted.key,
                created_at=time.time(),
                image=spec.image if image else "",
                image_digest=wanted.image,
                backend=self.backend.name,
                accelerator=self.backend.accelerator,
                cpus=spec.cpus,
                memory_bytes=spec.memory_bytes,
                disk_bytes=spec.disk_bytes,
                control_line=has_line,
                origin=_origin(cluster.name, lease, hostkeys.make_host_key(folder)),
            )
            disk = find_disk(folder)
            if disk.format == "raw":  # it goes to the cache, which may be another file system
                await disks.copy_disk(disk.path, staging / disk.path.name)
                disk = dataclasses.replace(disk, path=staging / disk.path.name)
            return await worker.run(lambda stop: store.publish(staging, disk, template, stop))

    async def _boot(self, vm: VM, record: MemberRecord) -> None:
        """Boot until the machine has settled: nothing of the boot is still to be done."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.limit_s
        async with self.gate.launching(vm):
            await arrive("template.boot")
            await vm.start()
            await arrive("template.booted")
        await vm.wait_for_ip(max(0.1, deadline - loop.time()))
        if not self.backend.capabilities().ssh:
            return
        cluster = self.cluster.current
        await wait_for_ssh(cluster, record, vm, max(0.1, deadline - loop.time()))
        limit_s = SETTLE_LIMIT_S * timeout_scale()
        settle = _SETTLE.format(limit=int(limit_s))
        # Who has a control line is made quiet over it, last of all.
        quiet = "true" if record.control_line else f"sudo sh -c {shlex.quote(QUIET)}"
        for command in (settle, quiet):  # a second session, so that what it needs is in memory
            argv = ssh.argv(cluster, record, [command], tty=False, multiplex=False, batch=True)
            try:
                await run(argv, timeout_s=2 * limit_s + 30)
            except FleetboxError as e:  # it has booted; how far it has settled is for its clones to bear
                log.warning("the template may not have settled: %s", e)

    async def _prepare(self, vm: VM, image: Image | None, emit: Emit) -> bool:
        """Make the control line ready for the clones; whether there is one."""
        if not isinstance(vm, HasControlLine) or (image is not None and not image.has_systemd):
            return False
        if not self.backend.capabilities().ssh:
            return True
        try:
            await prepare(vm.control_line, CONTROL_LINE_LIMIT_S * timeout_scale())
        except MachineError as e:
            emit(Notice(f"this image's control line cannot be used ({e.why or e.message}): SSH is used instead"))
            return False
        return True


class TemplateSource:
    """Where one operation's new members come from: a template, made anew once when it fails, or None: a cold boot."""

    def __init__(
        self, maker: TemplateMaker, spec: MemberSpec, image: Image | None, emit: Emit, *, control_line: bool
    ) -> None:
        self.template: Template | None = None
        self._maker = maker
        self._spec = spec
        self._image = image
        self._emit = emit
        self._control_line = control_line
        self._rebuilt = False
        self._turn = asyncio.Lock()

    @property
    def host(self) -> HostThread:
        """The thread that reaches into the network."""
        return self._maker.host

    async def prepare(self) -> None:
        """Get the template. Raises as a boot does."""
        try:
            self.template = await self._maker.ensure(
                self._spec, self._image, control_line=self._control_line, emit=self._emit
            )
        except NoTemplate as e:
            self._cold(e)

    async def instead_of(self, failed: Template, error: FleetboxError) -> Template | None:
        """The template to use after `failed` could not be brought back: it is discarded, and made anew once."""
        async with self._turn:
            if self.template is not failed:
                return self.template  # a sibling has been here
            await asyncio.to_thread(TemplateStore().discard, failed)
            self.template = None
            if self._rebuilt:
                self._cold(error)
                return None
            self._rebuilt = True
            self._emit(Notice(f"the template {failed.key[:12]} could not be used and is made anew: {_words(error)}"))
            try:
                await self.prepare()
            except FleetboxError as e:
                self._cold(e)
            return self.template

    def _cold(self, error: FleetboxError) -> None:
        self._emit(Notice(f"the members boot cold, as there is no template for them: {_words(error)}"))


async def source_for(
    cluster: ClusterStore,
    members: Members,
    host: HostThread,
    spec: MemberSpec,
    image: Image | None,
    request: UpRequest | AddRequest,
    emit: Emit,
) -> TemplateSource | None:
    """Where the new members of a request are cloned from; None where they are to be booted."""
    able = members.backend.capabilities()
    if request.cold or not able.snapshots:
        return None
    if spec.fixtures and not able.hotplug:
        emit(Notice(f"the members boot cold: {members.backend.name} cannot plug their fixtures into a clone"))
        return None
    maker = TemplateMaker(
        cluster=cluster,
        backend=members.backend,
        network=members.network,
        provisioner=members.provisioner,
        gate=members.gate,
        host=host,
        limit_s=members.boot_limit(request.timeout_s),
    )
    source = TemplateSource(maker, spec, image, emit, control_line=request.control_line)
    await source.prepare()
    return source


def _words(error: FleetboxError) -> str:
    return f"{error.message}: {error.why}" if error.why else error.message


def _top(subnet: str) -> str:
    """The highest address that a member can have."""
    return str(ipaddress.IPv4Network(subnet).broadcast_address - 1) if subnet else ""


def _origin(cluster: str, lease: Lease, host_key: hostkeys.HostKey) -> Origin:
    return Origin(
        cluster=cluster,
        ip=lease.ip,
        mac=lease.mac,
        prefix_length=lease.prefix_length,
        gateway=lease.gateway,
        dns=lease.dns,
        host_key=host_key.public_text,
    )


def _check_space(spec: MemberSpec) -> None:
    """Raise DiskError when a template of such members would not fit."""
    for folder, needed in ((paths.templates_dir(), spec.memory_bytes), (paths.blobs_dir(), 0)):
        with disks.disk_errors(f"the folder {folder} cannot be made"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        disks.free_space_preflight(folder, needed + DISK_ROOM_BYTES)
