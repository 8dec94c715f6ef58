"""What an orchestrating process and the helper of the `remote` backend say to each other.

The transport is that of every control socket (`fleetbox.wire`): `GET /v1/status` answers with `Facts`, and
`POST /v1/ops/NAME` with a stream of events that ends in one result or error. The operations are the backend contract:

* `network`: `NetworkRequest`; `reserve` `release` `attach` `join` `leave` `detach` `traffic` `close`: `MemberRequest`
* `offer`: `Offer`, answers `Lacking`: which files the helper does not have
* `start`: `Start`, answers `Told`; `find`: `Which`, answers `Told` or null; `held`: `Owner`, answers all of the owner's
* `pause` `resume`: `Act`, answer `Told`; `save`: the snapshot's file names; `wait-for-ip`: the address; `statistics`
* `stop` `kill` `calibrated` `forget`: `Act`; nothing to do where that launch is not known any more
* `watch`: `Watch`, a stream of `Heard` that ends with the machine: its result is an `End`
* `check` `reconcile`: `Owner`

Files have no names here, only digests: `PUT /v1/blobs/DIGEST?from=OFFSET` sends one that is lacking, and
`GET /v1/machines/ID/disks/N` and `…/saved/NAME` bring back what a machine wrote, both as
`fleetbox.backends.host.extents` frames. So neither side names a file of the other's.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from fleetbox.backends.base import Capabilities, DiskFormat, ExitStatus, NetworkSpec, State
from fleetbox.identity import ProcessIdentity
from fleetbox.records import MachineHandle
from fleetbox.wire import Event, Request


class Facts(msgspec.Struct, frozen=True):
    """`GET /v1/status` of a helper: what its backend says of itself."""

    version: str
    pid: int
    backend: str
    accelerator: str
    notes: tuple[str, ...]
    capabilities: Capabilities
    identity: dict[str, str]
    nested_virt: bool
    clustering: bool


class Owner(Request, frozen=True):
    """The installation that asks: its state folder, which no two have in common."""

    owner: str


class NetworkRequest(Request, frozen=True):
    """Make or take over a cluster's network. Answers `NetworkAnswer`.

    A bound one says whose it is: when that `holder` has ended, the cluster's machines and its network end.
    """

    owner: str
    spec: NetworkSpec
    holder: ProcessIdentity | None = None


class NetworkAnswer(msgspec.Struct, frozen=True):
    subnet: str
    bridge: str
    notes: tuple[str, ...] = ()


class MemberRequest(Request, frozen=True):
    """Do something with a member's place on its cluster's network; for `close` the member is empty.

    `reserve` answers with a `fleetbox.backends.base.Lease`, `attach` with the interface's name.
    """

    owner: str
    cluster: str
    member: str = ""
    ip_hint: str = ""
    slot: int = 0
    join: bool = True


class File(Request, frozen=True):
    """A file by content: its sha256 and size."""

    digest: str
    size_bytes: int


class Offer(Request, frozen=True):
    """The files that the next `start` of the machine will name."""

    machine: str
    files: tuple[File, ...]


class Lacking(msgspec.Struct, frozen=True):
    """Those of them that are not here: by digest, how much of each is already (a transfer goes on from there)."""

    files: dict[str, int]


class Layer(Request, frozen=True):
    """A file in a disk's chain. The one before it, a qcow2 file, stands on it."""

    digest: str
    format: DiskFormat


class DiskImage(Request, frozen=True):
    """A disk: its own file first, then what that stands on, down to the ground.

    `origin` names the writable disk's file on its owner's side, so that no two machines ever run on one.
    """

    layers: tuple[Layer, ...]
    read_only: bool = False
    serial: str = ""
    origin: str = ""


class Boot(Request, frozen=True):
    """`kernel` and `initrd` are digests; `firmware` boots by firmware, the hypervisor's own where it has no digest."""

    kind: Literal["direct", "firmware"]
    kernel: str = ""
    initrd: str = ""
    cmdline: str = ""


class Start(Request, frozen=True):
    """A machine to be launched: `VMConfig`, with digests where that has paths.

    `generation` is the one launch that is meant: a disk that comes back is that launch's. `saved` is not empty for a
    machine that is restored: the snapshot's files by name. `serial_base` is where in the owner's serial log this
    machine's begins.
    """

    owner: str
    generation: str
    cluster: str
    member: str
    slot: int
    disks: tuple[DiskImage, ...]
    fixtures: tuple[DiskImage, ...]
    seed: str
    boot: Boot
    mac: str
    cpus: int
    memory_bytes: int
    assigned_ip: str
    memory_file: bool
    control_line: bool
    bound: bool = False
    serial_base: int = 0
    saved: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def machine(self) -> str:
        """The machine's id."""
        return machine_id(f"{self.cluster}/{self.member}", self.slot)

    def digests(self) -> set[str]:
        """All files that it names."""
        layers = (layer.digest for disk in (*self.disks, *self.fixtures) for layer in disk.layers)
        return {*layers, self.seed, self.boot.kernel, self.boot.initrd, *self.saved.values()} - {""}


class End(msgspec.Struct, frozen=True):
    """How a machine ended (`ExitStatus`)."""

    code: int | None
    reason: str

    @property
    def status(self) -> ExitStatus:
        return ExitStatus(self.code, self.reason)


class Told(msgspec.Struct, frozen=True):
    """What the helper knows of a machine at the moment `at` (of its clock; orders and news come by different ways).

    With an `end` it has ended, and its disks wait to be fetched. `watched`: somebody follows it.
    """

    at: float
    machine: str
    generation: str
    name: str
    state: State
    handle: MachineHandle | None
    serial_base: int
    origins: tuple[str, ...]
    watched: bool = False
    end: End | None = None


class Which(Request, frozen=True):
    """A machine by id, whichever launch it is."""

    machine: str


class Act(Request, frozen=True):
    """Do something with one launch of a machine. `timeout_s` belongs to `stop`, `wait-for-ip` and `calibrated`."""

    machine: str
    generation: str
    timeout_s: float = 0.0


class Watch(Request, frozen=True):
    """Hear of a machine until it ends. `serial_from` is how many bytes of its serial log are known already."""

    machine: str
    generation: str
    serial_from: int = 0


class Heard(Event, frozen=True):
    """News of a machine: its state at the moment `at`, and what its serial log has more."""

    at: float
    state: State
    serial: bytes = b""


def machine_id(name: str, slot: int) -> str:
    """The id of the machine of `cluster/member` in that slot."""
    return hashlib.sha256(f"{name}+{slot}".encode()).hexdigest()[:16]
