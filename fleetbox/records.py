"""The records of a cluster as they stand on disk, and reading them.

Anybody may read (`fleetbox ls` works without a holder); only the holder writes, through `fleetbox.holder.store`, by
temporary file, fsync and rename, so a reader never sees half a write. Each record carries `schema`; a newer one than
this version knows is refused, not guessed at.
"""

from __future__ import annotations

import enum
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from fleetbox import paths
from fleetbox.errors import NotFoundError, RecordError
from fleetbox.identity import UNKNOWN_MAKER_S, Maker, ProcessIdentity, is_alive
from fleetbox.shapes import UNDECODABLE, Address, Id, Label, Mac, OptionalDigest, Slot, Subnet, Word
from fleetbox.specs import MemberSpec

SCHEMA = 1


class MemberState(enum.StrEnum):
    """What a member's record says. `creating` is a placeholder: it is finalised or rolled back."""

    CREATING = "creating"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    ERROR = "error"


LIVE_STATES = frozenset({MemberState.STARTING, MemberState.RUNNING, MemberState.PAUSED, MemberState.STOPPING})


class MachineHandle(msgspec.Struct, frozen=True):
    """What finds a running machine again after its holder has died: the process and its API socket."""

    process: ProcessIdentity
    api_socket: str = ""


class MemberRecord(msgspec.Struct, frozen=True):
    """One member. Paths are absolute; `ip` and `mac` are kept while it is stopped; times are Unix seconds.

    `base` is the digest of the template's blob that its disk stands on; empty: it stands on its image's. `warm` says
    that it was cloned from a template, `control_line` that its guest may be given one. `slot` (0 or 1) is which of its
    two places its machine has: while a member is restored, both are taken. `maker` is the holder that makes it,
    while it is a placeholder.
    """

    id: Id
    name: Label
    state: MemberState
    spec: MemberSpec
    image_digest: OptionalDigest
    mac: Mac
    ip: Address
    folder: str
    created_at: float
    started_at: float = 0.0
    instance: Word = ""
    base: OptionalDigest = ""
    warm: bool = False
    control_line: bool = True
    slot: Slot = 0
    handle: MachineHandle | None = None
    error: str = ""
    maker: Maker | None = None

    @property
    def half_made(self) -> bool:
        """Whether it is a placeholder whose maker has ended, for who has its cluster's lock."""
        gone = self.maker.is_gone() if self.maker is not None else True
        old = time.time() - self.created_at > UNKNOWN_MAKER_S
        return self.state is MemberState.CREATING and (old if gone is None else gone)


class HolderRecord(msgspec.Struct, frozen=True):
    """The holder that serves the cluster; stands in its lock file, so it is there before the cluster's own record
    is.
    """

    process: ProcessIdentity
    socket: str
    version: str
    protocol: int


class ClusterRecord(msgspec.Struct, frozen=True):
    """One cluster: what was decided for it once (backend, network) and its members by name, in order of creation.

    A cluster with an `owner` is bound to that process, and destroyed when it ends.
    """

    id: Id
    name: Label
    backend: Word
    backend_reason: str
    accelerator: str
    network: str
    created_at: float
    schema: int = SCHEMA
    subnet: Subnet = ""
    bridge: Word = ""
    spec: MemberSpec = msgspec.field(default_factory=MemberSpec)
    members: dict[Label, MemberRecord] = msgspec.field(default_factory=dict)
    owner: ProcessIdentity | None = None

    @property
    def bound(self) -> bool:
        """Whether it is destroyed when the process ends that it belongs to."""
        return self.owner is not None

    @property
    def abandoned(self) -> bool:
        """Whether the process that it is bound to has ended: nobody wants it any more."""
        return self.owner is not None and not is_alive(self.owner)


_Record = TypeVar("_Record")


def read_record(path: Path, kind: type[_Record]) -> _Record:
    """Read one JSON record. Raises NotFoundError without a file, RecordError when it cannot be read or understood."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"there is no record {path}") from None
    except OSError as e:
        raise RecordError(
            f"the record {path} cannot be read", why=e.strerror or str(e), hint="check its owner and mode"
        ) from e
    try:
        schema = msgspec.json.decode(data, type=_Schema).schema
        if schema > SCHEMA:
            raise RecordError(
                f"the record {path} is of a newer fleetbox",
                why=f"its schema is {schema}, this version knows {SCHEMA}",
                hint="use the newer fleetbox for it",
            )
        return msgspec.json.decode(data, type=kind)
    except UNDECODABLE as e:
        raise unsound(path, str(e)) from e


def unsound(path: Path, why: str) -> RecordError:
    """The error for a record that is damaged or forged."""
    return RecordError(
        f"the record {path} cannot be understood",
        why=why,
        hint="it is kept as it is; repair it, or move it away to give its cluster up",
    )


class _Schema(msgspec.Struct):
    schema: int


def read_cluster(name: str) -> ClusterRecord:
    """The record of one cluster. Raises NotFoundError or RecordError."""
    try:
        return read_cluster_record(paths.cluster_record(name))
    except NotFoundError:
        raise NotFoundError(
            f"there is no cluster {name!r}", hint="`fleetbox ls` lists the clusters, `fleetbox up` makes one"
        ) from None


def read_cluster_record(path: Path) -> ClusterRecord:
    """The cluster's record at `path`, when all that it names is its own. Raises NotFoundError or RecordError.

    What is done with a record deletes folders and ends processes, so one that was copied, moved or forged is refused.
    """
    record = read_record(path, ClusterRecord)
    name = path.parent.name
    if record.name != name:
        raise unsound(path, f"it is of the cluster {record.name!r}")
    folder, sockets = paths.cluster_data_dir(name), paths.cluster_runtime_dir(name).name
    for key, member in record.members.items():
        if member.name != key:
            raise unsound(path, f"its member {key!r} is called {member.name!r}")
        if member.folder != f"{folder}/{key}" and not _same(member.folder, folder / key):
            raise RecordError(
                f"the record {path} names a folder that is not its own",
                why=f"{member.name} is said to be in {member.folder}, not in {folder / key}",
                hint="if the data folder was moved, set XDG_DATA_HOME or FLEETBOX_HOME as it was",
            )
        api_socket = Path(member.handle.api_socket if member.handle else "")
        if api_socket.parts and (api_socket.parent.name != sockets or ".." in api_socket.parts):
            raise unsound(path, f"the socket of {key} is {api_socket}")
    return record


def _same(text: str, path: Path) -> bool:
    try:
        return os.path.realpath(text) == os.path.realpath(path)
    except ValueError:  # a NUL
        return False


def live_holder(cluster: str) -> HolderRecord | None:
    """The holder that runs for the cluster now, None when there is none (or it has not yet begun to listen)."""
    try:
        holder = msgspec.json.decode(paths.holder_lock(cluster).read_bytes(), type=HolderRecord)
    except (OSError, *UNDECODABLE):
        return None
    return holder if is_alive(holder.process) else None


def cluster_names() -> list[str]:
    """Names of all clusters that have a record, readable or not, sorted."""
    try:
        return sorted(p.parent.name for p in paths.clusters_dir().glob("*/cluster.json"))
    except OSError as e:
        raise RecordError(f"the folder {paths.clusters_dir()} cannot be read", why=e.strerror or str(e)) from e


def read_clusters() -> Iterator[ClusterRecord | RecordError]:
    """Every cluster in order of name; one that cannot be read comes as its error and hides no other."""
    for name in cluster_names():
        try:
            yield read_cluster(name)
        except NotFoundError:
            continue  # destroyed since the folder was listed
        except RecordError as e:
            yield e


def observed_state(member: MemberRecord) -> MemberState:
    """The member's state as it is now: a record that says it lives is checked against its process.

    `creating` has no process for most of its time and is returned as it stands.
    """
    if member.state in LIVE_STATES and not (member.handle and is_alive(member.handle.process)):
        return (
            MemberState.STARTING
            if member.state is MemberState.STARTING and member.handle is None
            else MemberState.STOPPED
        )
    return member.state
