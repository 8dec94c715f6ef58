"""What client and holder say to each other over the control socket.

HTTP/1.1 with JSON over a unix socket. Reads answer with one JSON document. Operations (`POST /v1/ops/NAME`) answer
with a stream of JSON lines (`application/x-ndjson`): one `started`, any number of `progress` and `notice`, then
exactly one `result` or `error`. A client that goes away, or posts to `/v1/ops/ID/cancel`, cancels the operation, which
undoes what it had not finished. `GET /v1/events?since=N` streams the cluster's event log from after event N on
(`fleetbox.events`), a JSON line each, until the holder ends; with `follow=0` to its present end.

The protocol's number changes when an older or newer peer could misunderstand; it is checked on every connection by the
`Fleetbox-Protocol` header.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from fleetbox.errors import FleetboxError, UsageError, from_wire
from fleetbox.identity import ProcessIdentity
from fleetbox.records import ClusterRecord
from fleetbox.specs import Fixture, MemberSpec, NetworkMode, absolute_image
from fleetbox.usage import Statistics

PROTOCOL = 2
PROTOCOL_HEADER = "Fleetbox-Protocol"


class Event(msgspec.Struct, frozen=True, tag_field="event", tag=lambda name: name.lower()):
    """Base of the stream's lines; the JSON key `event` tells them apart. `at` is Unix seconds."""


class Started(Event, frozen=True):
    """The operation's id, for cancelling it."""

    id: str


class Progress(Event, frozen=True):
    """A step of a member (or, with an empty `member`, of the whole) moved on.

    `step` is one of image, disk, network, boot, address, ssh, stop, destroy, download, build, …; `state` is `begin`,
    `update`, `done` or `failed`. `current` and `total` count `unit` (bytes or percent) where a step can be measured.
    """

    step: str
    state: str
    member: str = ""
    message: str = ""
    current: float = 0.0
    total: float = 0.0
    unit: str = ""
    at: float = 0.0


class Notice(Event, frozen=True):
    """Something the user should know although nothing failed."""

    message: str
    member: str = ""


class Result(Event, frozen=True):
    """The end of an operation that succeeded; `value` is its JSON result."""

    value: Any = None


class Error(Event, frozen=True):
    """The end of an operation that failed; `error` is `FleetboxError.to_wire()`."""

    error: dict[str, Any]

    def exception(self) -> FleetboxError:
        return from_wire(self.error)


AnyEvent = Started | Progress | Notice | Result | Error


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the requests: an unknown key is an error, not a silent default."""


class SpecChange(Request, frozen=True):
    """What a user said explicitly about members; None keeps the cluster's value, or the default."""

    image: str | None = None
    cpus: int | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    boot: str | None = None
    kernel: str | None = None
    fixtures: tuple[Fixture, ...] | None = None

    def apply(self, base: MemberSpec) -> MemberSpec:
        """`base` with what was said. Raises UsageError for a value of the wrong kind."""
        changes = {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}
        try:
            return msgspec.convert(msgspec.structs.asdict(base) | changes, MemberSpec)
        except msgspec.ValidationError as e:
            raise UsageError("a member cannot be made like that", why=str(e)) from e


def spec_change(
    image: str | None,
    cpus: int | None,
    memory_bytes: int | None,
    disk_bytes: int | None,
    fixtures: Sequence[Fixture] | None,
    boot: str | None,
    kernel: str | None,
) -> SpecChange:
    """What was said about members, as requests carry it."""
    return SpecChange(
        image=None if image is None else absolute_image(image),
        cpus=cpus,
        memory_bytes=memory_bytes,
        disk_bytes=disk_bytes,
        fixtures=None if fixtures is None else tuple(fixtures),
        boot=boot,
        kernel=kernel,
    )


class UpRequest(Request, frozen=True):
    """Make the cluster exist and run: create what is missing, start what is stopped, leave the rest alone.

    With `cold` the new members are booted; else they are cloned from a template, where the backend can. `control_line`
    False forbids the guests' second serial port: they are then told who they are by SSH. A new cluster with an `owner`
    is bound: it is destroyed when that process ends.
    """

    members: int | None = None
    names: tuple[str, ...] = ()
    spec: SpecChange = SpecChange()
    backend: str = ""
    network: NetworkMode = "auto"
    timeout_s: float = 0.0
    cold: bool = False
    control_line: bool = True
    owner: ProcessIdentity | None = None


class AddRequest(Request, frozen=True):
    """Add members: the named ones, or `count` with the next free names. `cold` and `control_line` as in UpRequest."""

    names: tuple[str, ...] = ()
    count: int | None = None
    spec: SpecChange = SpecChange()
    timeout_s: float = 0.0
    cold: bool = False
    control_line: bool = True


class TargetsRequest(Request, frozen=True):
    """Act on members by name; none means all. `timeout_s` 0 is the default of the operation."""

    members: tuple[str, ...] = ()
    timeout_s: float = 0.0


class SaveRequest(Request, frozen=True):
    """Save a snapshot: of one member by name, or of the whole cluster (none). Answers `{"snapshot": Snapshot}`.

    What is saved of a bound cluster goes with it, unless it is to be `keep`t.
    """

    members: tuple[str, ...] = ()
    name: str = ""
    description: str = ""
    keep: bool = False


class RestoreRequest(Request, frozen=True):
    """Put a member, or the whole cluster (none), back to a snapshot, named by its id. Answers `{"members": [name]}`."""

    snapshot: str
    members: tuple[str, ...] = ()
    timeout_s: float = 0.0


class CloneRequest(Request, frozen=True):
    """Make members from a snapshot, named by its id, in the cluster of the holder that is asked.

    A member's snapshot becomes the member `name` (empty: the next free name) of a cluster that may exist; a cluster's
    snapshot becomes a whole new cluster. `spec` is what the user wants changed. `owner` as in UpRequest. Answers
    `{"members": [name]}`.
    """

    snapshot: str
    name: str = ""
    spec: SpecChange = SpecChange()
    network: NetworkMode = "auto"
    control_line: bool = True
    timeout_s: float = 0.0
    owner: ProcessIdentity | None = None


class Ping(msgspec.Struct, frozen=True):
    """`GET /v1/ping`."""

    cluster: str
    version: str
    protocol: int
    pid: int


class ClusterStatus(msgspec.Struct, frozen=True):
    """`GET /v1/status`: the records as they stand and what only the live holder knows."""

    record: ClusterRecord
    holder_running: bool
    uptime_s: float = 0.0
    notes: tuple[str, ...] = ()


class ClusterStatistics(msgspec.Struct, frozen=True):
    """`GET /v1/statistics`: what each running member uses. `at_s` is the host's monotonic clock, for rates.

    A member that cannot say it is left out.
    """

    at_s: float
    members: dict[str, Statistics]


class ConsoleFile(msgspec.Struct, frozen=True):
    """`GET /v1/consoles/MEMBER`: where its console is opened, as `fleetbox.backends.base.Console` says."""

    path: str
    lock: str
    guest_device: str
