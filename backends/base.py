"""The backend contract: what the holder asks of a hypervisor, and nothing of how one works.

A backend makes networks and machines. The holder persists what it needs to find them again (`MachineHandle`), asks
`Capabilities` instead of names, and never sees a hypervisor's type. Everything that waits is a coroutine and may be
cancelled: a cancelled call releases what it had made. Times are seconds, sizes bytes, paths absolute.

Follows the backend contract of the Go fleetbox: create network, create, start, stop, state, wait, wait for address,
nested virtualisation, clustering, reconcile.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

from fleetbox.backends.abilities import Console as Console
from fleetbox.backends.abilities import HasConsole as HasConsole
from fleetbox.backends.abilities import HasControlLine as HasControlLine
from fleetbox.backends.abilities import HasStatistics as HasStatistics
from fleetbox.backends.abilities import Pauses as Pauses
from fleetbox.backends.abilities import Snapshots as Snapshots
from fleetbox.records import MachineHandle
from fleetbox.timeouts import timeout_scale as timeout_scale
from fleetbox.wire import Event

if TYPE_CHECKING:
    from fleetbox.backends.host.thread import HostThread

DiskFormat = Literal["raw", "qcow2"]


class State(enum.StrEnum):
    """A machine's state, as its hypervisor tells it."""

    UNKNOWN = "unknown"
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    RESUMING = "resuming"
    STOPPING = "stopping"
    ERROR = "error"


@dataclass(frozen=True)
class Disk:
    """A virtual disk. Its format is always said: a guest can write a qcow2 header into a raw disk."""

    path: Path
    format: DiskFormat
    read_only: bool = False
    serial: str = ""


@dataclass(frozen=True)
class DirectBoot:
    """Kernel and initrd are read from the host; kernels installed in the guest are ignored."""

    kernel: Path
    initrd: Path | None
    cmdline: str


@dataclass(frozen=True)
class FirmwareBoot:
    """The machine's firmware finds the boot loader on the first disk. `firmware` None is the hypervisor's default."""

    firmware: Path | None = None


@dataclass(frozen=True)
class VMConfig:
    """One machine's whole configuration; crosses process boundaries, so paths and never open files.

    `name` is `cluster/member`. `run_dir` is private (0700) and takes pidfile and sockets. `disks[0]` is the root
    disk; `fixtures` are read-only and stand after the seed.

    `memory_file` makes a template of the machine: its RAM is that file, which the launch makes (it must not exist, its
    folder must) and the machine's end removes; see `Snapshots`. `control_line` asks for a second serial port, see
    `HasControlLine`; ignored where `Capabilities.control_line` is empty. `slot` is 0 or 1: while a member is restored
    it has two machines, the old one and the new one, whose interfaces and files in `run_dir` are told apart by it.
    A machine that is `bound` dies with the holder that started it.
    """

    name: str
    run_dir: Path
    disks: tuple[Disk, ...]
    seed: Path | None
    boot: DirectBoot | FirmwareBoot
    mac: str
    cpus: int
    memory_bytes: int
    serial_log: Path
    fixtures: tuple[Disk, ...] = ()
    assigned_ip: str = ""
    memory_file: Path | None = None
    control_line: bool = True
    slot: int = 0
    bound: bool = False

    @property
    def member(self) -> str:
        """The member's name without its cluster's."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do; the layers above ask these, never its name.

    `ssh` is False where machines hold no operating system (the `fake` backend): nothing waits for an SSH server then.
    `emulated` says that guest code is interpreted: boots are slow and must be staggered. `snapshots` says that its
    machines are `Pauses` and `Snapshots` and the backend itself is `Restores`; `control_line` that its machines are
    `HasControlLine`. `change_on_restore` names what a restored machine may have otherwise than the saved one: any of
    "cpus" and "memory". `console` says that its machines are `HasConsole`, `statistics` that they are `HasStatistics`;
    `private_network` that a cluster's network can be in a namespace that the holder's host thread has entered.
    `hotplug` that a restored machine may have more fixtures than the saved one.
    """

    disk_formats: tuple[DiskFormat, ...]
    direct_boot: bool = True
    firmware_boot: bool = False
    adoption: bool = False
    ssh: bool = True
    emulated: bool = False
    max_cpus: int | None = None
    needs_images: bool = True
    snapshots: bool = False
    control_line: str = ""
    change_on_restore: frozenset[str] = frozenset()
    console: bool = False
    statistics: bool = False
    private_network: bool = True
    hotplug: bool = True


@dataclass(frozen=True)
class NetworkSpec:
    """A cluster's network. `subnet` is the recorded one (CIDR), or empty for any free one.

    `mode` is `host` or `private`. `leases` are the members that exist already: name to address, kept where possible.
    The processes of a `bound` network die with the holder that started them.
    """

    cluster: str
    mode: Literal["host", "private"]
    subnet: str = ""
    leases: Mapping[str, str] = field(default_factory=dict)
    bound: bool = False


@dataclass(frozen=True)
class Lease:
    """A member's place on the network: its address with the network's prefix length and gateway, and its MAC."""

    name: str
    ip: str
    mac: str
    prefix_length: int
    gateway: str
    dns: tuple[str, ...] = ()


class Traffic(NamedTuple):
    """What has passed a member's interface since it was made, as the guest counts: bytes that it received and sent."""

    received_bytes: int = 0
    sent_bytes: int = 0


@dataclass(frozen=True)
class ExitStatus:
    """How a machine's process ended: `code` is None where nobody who can be asked is its parent, as of an adopted one.

    `reason` is in words for a user: "powered off by the guest", "killed by signal 9", the process's last output.
    """

    code: int | None
    reason: str = ""


class Network(Protocol):
    """A live network of one cluster. One owner; every method is safe to repeat."""

    @property
    def subnet(self) -> str:
        """CIDR, or empty when guests use DHCP."""

    @property
    def bridge(self) -> str:
        """The host's interface that members hang on, empty when there is none."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What users should know of this network, such as that nothing leads outside."""

    async def reserve(self, name: str, ip_hint: str = "") -> Lease:
        """Reserve an address for a member: `ip_hint` when free, else the lowest free. Repeated: the same lease.

        Raises NetworkError when the subnet is full.
        """

    async def release(self, name: str) -> None:
        """Give a member's address and host interfaces back."""

    async def attach(self, name: str, *, slot: int = 0, join: bool = True) -> str:
        """Make the host interface of a member's machine, on the bridge with `join`, up beside it without.

        Returns its name, empty where a network has no interfaces on the host. Backends do this in `VM.start`. Repeated:
        the same interface, on the bridge or off it as told: one that a dead holder left joined would let a clone wake
        on the bridge under its template's address. Raises NetworkError.
        """

    async def join(self, name: str, slot: int = 0) -> None:
        """Put that interface on the bridge: from now on the machine and the network hear each other."""

    async def leave(self, name: str, slot: int = 0) -> None:
        """Take that interface off the bridge; it stays. Nothing when there is none."""

    async def detach(self, name: str, slot: int = 0) -> None:
        """Remove that interface; nothing when there is none. Backends do this when the machine has ended."""

    async def traffic(self, name: str, slot: int = 0) -> Traffic:
        """What has passed that interface; nothing where there is none. Raises NetworkError."""

    async def close(self) -> None:
        """Remove everything of this network from the host; raises NetworkError when something stayed."""


class VM(Protocol):
    """One machine. Methods guard their required state and raise MachineError with the reason."""

    config: VMConfig

    @property
    def handle(self) -> MachineHandle | None:
        """What adoption needs, from `start` on; None before and after."""

    async def start(self) -> None:
        """Launch the machine; returns when its hypervisor runs guest code, not when the guest has booted.

        Raises MachineError with the hypervisor's last output, HostError when a program is missing. Undoes itself.
        """

    async def stop(self, timeout_s: float) -> None:
        """Stop: ask the guest (ACPI power button), after `timeout_s` SIGTERM, then SIGKILL. Stopped already:
        nothing.
        """

    async def kill(self) -> None:
        """End the machine at once (its disk is given up, or its host is)."""

    def state(self) -> State:
        """The state as last heard; never blocks."""

    async def wait(self) -> ExitStatus:
        """Wait for the machine's end, whoever brings it about; its host resources are released then."""

    async def wait_for_ip(self, timeout_s: float) -> str:
        """The machine's address, once it is known *and* its TCP port 22 accepts connections.

        Raises MachineError when the machine ends before, or after `timeout_s`.
        """

    async def booted_past_calibration(self, timeout_s: float) -> None:
        """Return when the guest kernel has calibrated its timers (see `Capabilities.emulated`), or after `timeout_s`.

        Emulated machines that share cores disturb each other's calibration, so the next one starts only then.
        """


@runtime_checkable
class Adopts(Protocol):
    """Backends whose machines outlive the holder (`Capabilities.adoption`)."""

    async def adopt(self, config: VMConfig, network: Network, handle: MachineHandle) -> VM | None:
        """Take over a machine that an earlier holder started; None when exactly that process is gone."""


@runtime_checkable
class KeepsDisks(Protocol):
    """Backends whose machines run on copies of the disks, elsewhere.

    A disk's file is up to date while a machine is paused for its snapshot, and from the machine's end on; not when no
    holder was there at its end. `start` sees to that by itself.
    """

    async def bring_home(self, disk: Disk) -> None:
        """Make the file of a disk that no machine of this holder runs on up to date. Raises DiskError, HolderError."""


@runtime_checkable
class Restores(Protocol):
    """Backends that bring saved machines back (`Capabilities.snapshots`)."""

    async def restore(self, config: VMConfig, network: Network, folder: Path) -> VM:
        """A machine, not yet started, whose `start` brings it up **paused** as `Snapshots.snapshot` saved it.

        Its interface is attached but not on the bridge: re-identify the guest or end the old machine first, then
        `network.join(config.member, config.slot)`. `Pauses.resume` lets it run. The folder is only read; while the
        machine lives its files may be removed but never written to.

        `config` describes the machine as for `create`: its disks hold what the saved ones held; cpus and memory are
        the same unless `Capabilities.change_on_restore` has them; name, MAC, paths and boot may be others. The saved
        machine decides about the control line. Fixtures: the first ones take the place of those that the saved machine
        had; further ones are plugged in (`Capabilities.hotplug`), and the guest finds them when it runs.

        Raises MachineError when the folder is no snapshot, is tied to another `snapshot_identity`, or does not fit
        `config`: nothing is touched then.
        """

    def snapshot_identity(self) -> dict[str, str]:
        """What a snapshot is tied to: backend, version, accelerator, cpu, machine, architecture.

        A part of every template's key; a snapshot is restored only where it is the same. Blocks for a moment when
        `Backend.check` was not called before.
        """


class Backend(Protocol):
    """A hypervisor adapter; made by its folder's `create_backend(environment)`."""

    name: str

    @property
    def accelerator(self) -> str:
        """`kvm`, `tcg`, or empty where there is no choice."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What `status` and `doctor` should say about the choices made, such as why KVM is not used."""

    def capabilities(self) -> Capabilities:
        """What this backend can do on this host."""

    async def check(self) -> None:
        """Raise HostError, with a hint, when this host lacks what the backend needs."""

    async def create_network(self, spec: NetworkSpec) -> Network:
        """Make a cluster's network, or take over the one that its last holder left. Undoes itself when it fails."""

    async def create(self, config: VMConfig, network: Network) -> VM:
        """A machine, not yet started. Its member holds a lease on `network`."""

    def nested_virt_supported(self) -> bool:
        """Whether guests can use KVM themselves."""

    def supports_clustering(self) -> bool:
        """Whether members share a network on which they reach each other."""

    async def reconcile(self) -> list[str]:
        """Remove host resources of networks whose owner is gone; returns what was removed, in words."""


def _unheard(event: Event) -> None:
    del event


@dataclass(frozen=True)
class BackendEnvironment:
    """What every backend is given: the thread that makes host resources, and `FLEETBOX_*` settings.

    `report` takes the progress of what a backend does for itself, such as downloading its hypervisor.
    """

    host: HostThread
    settings: Mapping[str, str] = field(default_factory=dict)
    report: Callable[[Event], None] = _unheard


CreateBackend = Callable[[BackendEnvironment], Backend]


def generate_mac(name: str) -> str:
    """A MAC address for `cluster/member`: stable, locally administered, unicast (`02` in the first octet's low
    bits).
    """
    digest = hashlib.sha256(name.encode()).digest()
    first = (digest[0] & 0b11111100) | 0b00000010
    return ":".join(f"{octet:02x}" for octet in (first, *digest[1:6]))
