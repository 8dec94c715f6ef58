"""What is checked before anything of a request is done: resources against this host, names against the cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import psutil

from fleetbox import paths, wire
from fleetbox.backends.host.disk import free_space_preflight
from fleetbox.errors import ConflictError, HostError, UsageError
from fleetbox.holder.operations import Emit
from fleetbox.records import ClusterRecord
from fleetbox.sizes import MIB, format_size
from fleetbox.specs import MAX_MEMBERS, MemberSpec, check_member_spec, member_names


def check_spec(spec: MemberSpec) -> MemberSpec:
    """The spec, when a member of it can work here. Raises UsageError."""
    return check_member_spec(spec, host_cpus=os.cpu_count())


def check_memory(specs: Sequence[MemberSpec], emit: Emit) -> None:
    """Raise HostError for a member that this host could never hold; a Notice when all of them may not fit."""
    wanted = [spec.memory_bytes for spec in specs]
    memory = psutil.virtual_memory()
    if wanted and max(wanted) > memory.total:
        raise HostError(
            f"a member cannot have {format_size(max(wanted))} of memory",
            why=f"this host has {format_size(memory.total)}",
            hint="use a smaller --memory",
        )
    if sum(wanted) > memory.available:
        wish, free = format_size(sum(wanted)), format_size(memory.available)
        emit(wire.Notice(f"the members may use {wish} of memory, and {free} is free"))


# A record, a log, known_hosts, sockets; and of each member its seed, host key, serial log and a new overlay.
STATE_ROOM_BYTES = 1 * MIB
MEMBER_ROOM_BYTES = 5 * MIB


def check_room(members: int) -> None:
    """Raise DiskError when the folders of state and data are read-only, or full, before anything of `members` is made.

    What their disks, templates and snapshots need is looked at where that is known.
    """
    free_space_preflight(_there(paths.state_dir()), STATE_ROOM_BYTES)
    free_space_preflight(_there(paths.runtime_dir()), 0)
    free_space_preflight(_there(paths.data_dir()), STATE_ROOM_BYTES + members * MEMBER_ROOM_BYTES)


def _there(folder: Path) -> Path:
    """The folder, or the one above it that is there already."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def names_for_up(record: ClusterRecord | None, request: wire.UpRequest, emit: Emit) -> list[str]:
    """All members that the cluster shall have, those that exist first. Raises UsageError."""
    have = list(record.members) if record else []
    if request.members is None and not request.names:
        return have or ["node-1"]
    member_names(request.members, request.names)  # raises for what makes no sense by itself
    fresh = [name for name in request.names if name not in have]
    if request.members is not None and request.members < len(have):
        emit(wire.Notice(f"the cluster has {len(have)} members; `up` removes none (see `fleetbox destroy`)"))
    return member_names(max(request.members or 0, len(have) + len(fresh)), [*have, *fresh])


def names_for_add(record: ClusterRecord, request: wire.AddRequest) -> list[str]:
    """The members to add. Raises ConflictError for a name that is taken, UsageError, HostError for too many."""
    taken = [name for name in request.names if name in record.members]
    if taken:
        raise ConflictError(
            f"{record.name!r} has a member {taken[0]!r} already",
            hint=f"choose another name, or `fleetbox start {record.name}/{taken[0]}`",
        )
    count = request.count if request.count is not None else max(1, len(request.names))
    wanted = member_names(count, request.names, list(record.members))
    if len(record.members) + len(wanted) > MAX_MEMBERS:
        raise UsageError(f"a cluster has at most {MAX_MEMBERS} members", why=f"it has {len(record.members)} already")
    return wanted
