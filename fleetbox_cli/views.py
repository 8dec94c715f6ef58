"""What `--json` shows of clusters and members: stable keys, documented in docs/reference/json.md.

Records are ours to change; these are not.
"""

from __future__ import annotations

import time

import msgspec

from fleetbox import paths
from fleetbox.records import ClusterRecord, MemberRecord, MemberState, live_holder, observed_state
from fleetbox.sizes import format_size
from fleetbox.snapshot import Snapshot
from fleetbox.template import Template
from fleetbox_cli.render import Table, age


class MemberView(msgspec.Struct, frozen=True):
    """A member. Sizes in bytes, times in Unix seconds; `disk_bytes` 0 is the image's own size, `started_at` 0 never."""

    ref: str
    name: str
    cluster: str
    id: str
    state: str
    ip: str
    mac: str
    image: str
    image_digest: str
    cpus: int
    memory_bytes: int
    disk_bytes: int
    created_at: float
    started_at: float
    error: str
    serial_log: str


class ClusterView(msgspec.Struct, frozen=True):
    """A cluster with its members.

    One that is `bound` is destroyed when the process `owner_pid` (0: not bound) ends; `abandoned`: that has happened.
    """

    name: str
    id: str
    backend: str
    backend_reason: str
    accelerator: str
    network: str
    subnet: str
    bridge: str
    created_at: float
    bound: bool
    abandoned: bool
    owner_pid: int
    holder_running: bool
    holder_pid: int
    holder_version: str
    members: list[MemberView]


class SavedMemberView(msgspec.Struct, frozen=True):
    """A member in a snapshot; `running` says that its memory was saved too."""

    name: str
    running: bool
    ip: str
    mac: str
    image: str
    image_digest: str
    cpus: int
    memory_bytes: int


class SnapshotView(msgspec.Struct, frozen=True):
    """A snapshot. Sizes in bytes; `stored_bytes` is without holes and base disks; `bound`: it goes with its cluster."""

    id: str
    name: str
    description: str
    kind: str
    created_at: float
    cluster: str
    subnet: str
    backend: str
    accelerator: str
    identity: dict[str, str]
    images: tuple[str, ...]
    size_bytes: int
    stored_bytes: int
    bound: bool
    folder: str
    members: list[SavedMemberView]


def snapshot_view(snapshot: Snapshot) -> SnapshotView:
    """The snapshot as its record says."""
    return SnapshotView(
        id=snapshot.id,
        name=snapshot.name,
        description=snapshot.description,
        kind=snapshot.kind,
        created_at=snapshot.created_at,
        cluster=snapshot.cluster,
        subnet=snapshot.subnet,
        backend=snapshot.backend,
        accelerator=snapshot.accelerator,
        identity=snapshot.identity,
        images=snapshot.images,
        size_bytes=snapshot.size_bytes,
        stored_bytes=snapshot.stored_bytes,
        bound=bool(snapshot.bound_to),
        folder=str(paths.snapshots_dir() / snapshot.id),
        members=[
            SavedMemberView(
                name=member.name,
                running=member.state is MemberState.RUNNING,
                ip=member.ip,
                mac=member.mac,
                image=member.spec.image,
                image_digest=member.image_digest,
                cpus=member.spec.cpus,
                memory_bytes=member.spec.memory_bytes,
            )
            for member in snapshot.members.values()
        ],
    )


class TemplateView(msgspec.Struct, frozen=True):
    """A template. Sizes in bytes, times in Unix seconds; `used_at` is when a member was last cloned from it."""

    key: str
    created_at: float
    used_at: float
    image: str
    image_digest: str
    backend: str
    accelerator: str
    cpus: int
    memory_bytes: int
    disk_bytes: int
    control_line: bool
    stored_bytes: int


def template_view(template: Template) -> TemplateView:
    """The template as its record says."""
    return TemplateView(**{name: getattr(template, name) for name in TemplateView.__struct_fields__})


def member_view(cluster: str, member: MemberRecord) -> MemberView:
    """The member as it is now: its state is checked against its process."""
    return MemberView(
        ref=f"{cluster}/{member.name}",
        name=member.name,
        cluster=cluster,
        id=member.id,
        state=observed_state(member).value,
        ip=member.ip,
        mac=member.mac,
        image=member.spec.image,
        image_digest=member.image_digest,
        cpus=member.spec.cpus,
        memory_bytes=member.spec.memory_bytes,
        disk_bytes=member.spec.disk_bytes,
        created_at=member.created_at,
        started_at=member.started_at,
        error=member.error,
        serial_log=str(paths.serial_log(cluster, member.name)),
    )


def cluster_view(record: ClusterRecord) -> ClusterView:
    """The cluster as it is now."""
    holder = live_holder(record.name)
    return ClusterView(
        name=record.name,
        id=record.id,
        backend=record.backend,
        backend_reason=record.backend_reason,
        accelerator=record.accelerator,
        network=record.network,
        subnet=record.subnet,
        bridge=record.bridge,
        created_at=record.created_at,
        bound=record.bound,
        abandoned=record.abandoned,
        owner_pid=record.owner.pid if record.owner else 0,
        holder_running=holder is not None,
        holder_pid=holder.process.pid if holder else 0,
        holder_version=holder.version if holder else "",
        members=[member_view(record.name, m) for m in record.members.values()],
    )


def bound_lines(views: list[ClusterView]) -> list[str]:
    """A line for each cluster that will not outlive a process."""
    return [
        f"{view.name} is bound to process {view.owner_pid}"
        + (", which has ended: `fleetbox prune` removes it" if view.abandoned else "")
        for view in views
        if view.bound
    ]


def member_table(members: list[MemberView], *, with_cluster: bool) -> Table:
    """The members as `fleetbox ls` shows them."""
    now = time.time()
    columns = ("CLUSTER", "MEMBER", "STATE", "ADDRESS", "IMAGE", "CPUS", "MEMORY", "AGE")
    rows = [
        (
            m.cluster,
            m.name,
            m.state,
            m.ip,
            short_image(m.image),
            str(m.cpus),
            format_size(m.memory_bytes),
            age(now - m.created_at),
        )
        for m in members
    ]
    first = 0 if with_cluster else 1
    return Table(columns[first:], tuple(row[first:] for row in rows))


def short_image(image: str) -> str:
    """An image as a column shows it: a digest by its beginning, a path or URL by its end."""
    bare = image.removeprefix("sha256:")
    if len(bare) == 64 and set(bare) <= set("0123456789abcdef"):
        return bare[:12]
    return image.rstrip("/").rpartition("/")[2]
