"""Snapshots, for Python: save, list, inspect, remove, export, import; and clone and restore from them.

A snapshot is named by its name, its id or an unambiguous prefix of that (4 digits or more).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import msgspec

from fleetbox import names as naming
from fleetbox.cluster import Cluster
from fleetbox.errors import ConflictError, FleetboxError, SnapshotError, UsageError, from_wire
from fleetbox.identity import this_process
from fleetbox.job import run_job
from fleetbox.member import Member
from fleetbox.records import cluster_names
from fleetbox.refs import resolve
from fleetbox.snapshot import Snapshot
from fleetbox.specs import Fixture, NetworkMode
from fleetbox.stream import OnEvent
from fleetbox.wire import CloneRequest, RestoreRequest, SaveRequest, spec_change

Target = str | Cluster | Member


def _snapshot(value: Any) -> Snapshot:
    return msgspec.convert(value, Snapshot)


def save(
    target: Target,
    *,
    name: str = "",
    description: str = "",
    cluster: str | None = None,
    keep: bool = False,
    on_event: OnEvent | None = None,
) -> Snapshot:
    """Save a member, or a whole cluster at one instant: all its members stand still until the last is saved.

    A snapshot of a bound cluster goes with it, unless it is to be `keep`t.

    Raises ConflictError for a name that another snapshot has, HostError where the backend cannot, DiskError.

    >>> snapshot = snapshots.save(cluster, name="before-upgrade")
    >>> snapshot.kind, sorted(snapshot.members)
    ('cluster', ['node-1', 'node-2', 'node-3'])
    >>> snapshots.restore(cluster, "before-upgrade")
    """
    owner, members = _owner(target, cluster)
    request = SaveRequest(members=members, name=name, description=description, keep=keep)
    return _snapshot(owner._run("save", request, on_event)["snapshot"])


@contextlib.contextmanager
def saved(target: Target, *, cluster: str | None = None, on_event: OnEvent | None = None) -> Iterator[Snapshot]:
    """A snapshot for as long as a `with` block lasts. Raises as `save` does.

    >>> with snapshots.saved(member) as snapshot:
    ...     snapshots.restore(member, snapshot.id)
    >>> snapshots.list_snapshots()
    []
    """
    snapshot = save(target, cluster=cluster, on_event=on_event)
    try:
        yield snapshot
    finally:
        remove([snapshot.id])


def list_snapshots() -> list[Snapshot]:
    """All snapshots that can be read, the newest last."""
    return read_snapshots()[0]


def read_snapshots() -> tuple[list[Snapshot], list[FleetboxError]]:
    """All snapshots, the newest last, and an error for each that cannot be read."""
    found = run_job("snapshot.list", {})
    return msgspec.convert(found["snapshots"], list[Snapshot]), [from_wire(e) for e in found["unreadable"]]


def inspect(ref: str) -> Snapshot:
    """One snapshot. Raises NotFoundError, AmbiguousError, or RecordError when it cannot be read."""
    return _snapshot(run_job("snapshot.inspect", {"ref": ref}))


def remove(refs: Sequence[str]) -> list[Snapshot]:
    """Remove snapshots and return them. Raises NotFoundError, PartialError when some of several failed."""
    return msgspec.convert(run_job("snapshot.remove", {"refs": list(refs)}), list[Snapshot])


def export(ref: str, file: str | os.PathLike[str], *, on_event: OnEvent | None = None) -> Snapshot:
    """Write a snapshot, with the images that it rests on, as a tar to a file or standard output (`-`).

    The archive holds the machines' memory and their host keys. A file appears whole or not at all. Raises
    NotFoundError, SnapshotError, DiskError.
    """
    if os.fspath(file) != "-":
        request: dict[str, Any] = {"ref": ref, "file": str(Path(file).absolute())}
        return _snapshot(run_job("snapshot.export", request, on_event))
    with _handed_over(sys.stdout) as fd:
        if os.isatty(fd):
            raise UsageError("an archive is not for a terminal", hint="name a file, or pipe it somewhere")
        return _snapshot(run_job("snapshot.export", {"ref": ref, "fd": fd}, on_event, (fd,)))


def import_(
    file: str | os.PathLike[str],
    *,
    name: str = "",
    max_size_bytes: int = 0,
    on_event: OnEvent | None = None,
) -> Snapshot:
    """Take in an archive from a file or standard input (`-`), under `name` or its own.

    `max_size_bytes` (0: no limit) is what it may store here. The state of a machine's devices is to be trusted like a
    program: import only what comes from somebody whose programs you would run. Raises SnapshotError for an archive that
    is damaged or hostile, HostError for one that cannot run here, ConflictError, DiskError; nothing is left then.
    """
    request: dict[str, Any] = {"name": name, "max_bytes": max_size_bytes}
    if os.fspath(file) != "-":
        return _snapshot(run_job("snapshot.import", request | {"file": str(Path(file).absolute())}, on_event))
    with _handed_over(sys.stdin) as fd:
        return _snapshot(run_job("snapshot.import", request | {"fd": fd}, on_event, (fd,)))


def save_to(
    target: Target, file: str | os.PathLike[str], *, cluster: str | None = None, on_event: OnEvent | None = None
) -> Snapshot:
    """Save a member or cluster straight into an archive (`-`: standard output); no snapshot stays here."""
    snapshot = save(target, description="on its way into an archive", cluster=cluster, on_event=on_event)
    try:
        export(snapshot.id, file, on_event=on_event)
    finally:
        remove([snapshot.id])
    return snapshot


def clone(
    snapshot: str,
    name: str = "",
    *,
    cluster: str | None = None,
    cpus: int | None = None,
    memory_bytes: int | None = None,
    disk_bytes: int | None = None,
    fixtures: Sequence[Fixture] | None = None,
    network: NetworkMode = "auto",
    control_line: bool = True,
    timeout_s: float = 0.0,
    bound: bool = False,
    on_event: OnEvent | None = None,
) -> Cluster | Member:
    """Make a new member of a member's snapshot, or a new cluster of a cluster's, each with an identity of its own.

    `snapshot` `-` reads an archive from standard input and keeps no snapshot. A new cluster is called `name`; without
    it as the old one, with a number when that exists. A new member is `MEMBER` or `CLUSTER/MEMBER`; without a member's
    name it gets the next free one, without a cluster's it goes into `cluster`, `FLEETBOX_CLUSTER` or the one that it
    was saved in, which is made when it is gone. Disks only grow; whether cpus and memory can change is the backend's
    to say. A new cluster is `bound` to the calling process as `up` says.

    Raises NotFoundError, ConflictError for a name that is taken, UsageError, HostError, and as `up` does.

    >>> with snapshots.saved(cluster) as snapshot:
    ...     snapshots.clone(snapshot.id, "second")
    Cluster('second')
    """
    with _kept(snapshot, on_event) as found:
        owner, member = _place(found, name, cluster)
        request = CloneRequest(
            snapshot=found.id,
            name=member,
            spec=spec_change(None, cpus, memory_bytes, disk_bytes, fixtures, None, None),
            network=network,
            control_line=control_line,
            timeout_s=timeout_s,
            owner=this_process() if bound else None,
        )
        made = owner._run("clone", request, on_event)["members"]
        return owner if found.kind == "cluster" else Member(owner.name, made[0])


def restore(
    target: Target,
    snapshot: str,
    *,
    cluster: str | None = None,
    timeout_s: float = 0.0,
    on_event: OnEvent | None = None,
) -> None:
    """Put a member, or a whole cluster, back to a snapshot of it, with the same addresses and keys.

    `snapshot` `-` reads an archive from standard input and keeps no snapshot. What happened since is lost. A restore
    that fails leaves the machines running as they were. Raises NotFoundError, ConflictError, HostError, DiskError.
    """
    owner, members = _owner(target, cluster)
    with _kept(snapshot, on_event) as found:
        request = RestoreRequest(snapshot=found.id, members=members, timeout_s=timeout_s)
        owner._run("restore", request, on_event)


def _owner(target: Target, cluster: str | None) -> tuple[Cluster, tuple[str, ...]]:
    """The cluster, and the member's name when one is meant."""
    found = resolve(target, cluster=cluster) if isinstance(target, str) else target
    _ = found.record
    return (found, ()) if isinstance(found, Cluster) else (Cluster(found.cluster), (found.name,))


def _place(snapshot: Snapshot, name: str, cluster: str | None) -> tuple[Cluster, str]:
    """The cluster that a clone goes to, and the member's name there, empty for the next free one."""
    taken = set(cluster_names())
    if snapshot.kind == "cluster":
        if name in taken:
            raise ConflictError(
                f"there is a cluster {name!r} already", hint="a cluster's snapshot becomes a new cluster: choose a name"
            )
        return Cluster(name or _free(snapshot.cluster, taken)), ""
    scope = cluster or os.environ.get("FLEETBOX_CLUSTER") or snapshot.cluster
    ref = naming.parse_ref(name) if name else naming.Ref(None, "")
    owner = Cluster(ref.cluster or scope)
    if owner.name in taken and ref.name in owner.record.members:
        raise ConflictError(f"there is a member {owner.name}/{ref.name} already", hint="choose another name")
    return owner, ref.name


def _free(name: str, taken: set[str]) -> str:
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name[:59]}-{number}"
    return candidate


@contextlib.contextmanager
def _kept(snapshot: str, on_event: OnEvent | None) -> Iterator[Snapshot]:
    """The snapshot, or the one that comes on standard input, which goes again at the end."""
    if snapshot != "-":
        yield inspect(snapshot)
        return
    found = import_("-", on_event=on_event)
    try:
        yield found
    finally:
        remove([found.id])


@contextlib.contextmanager
def _handed_over(stream: TextIO) -> Iterator[int]:
    """Our standard input or output under a number that a job, which has its own, can inherit it by."""
    try:
        stream.flush()
        fd = os.dup(stream.fileno())
    except (AttributeError, OSError, ValueError) as e:
        raise SnapshotError("there is no standard input or output to use", why=str(e)) from e
    try:
        yield fd
    finally:
        os.close(fd)
