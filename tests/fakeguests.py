"""Clusters of fake machines that remember, and what a test asks about them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fleetbox import Cluster, Member, paths
from fleetbox.backends.fake import recall, tell
from fleetbox.records import MachineHandle, MemberState

Until = Callable[[Callable[[], object]], None]
Faults = Callable[[str], None]


def handle(member: Member) -> MachineHandle:
    found = member.record.handle
    assert found is not None
    return found


def handles(cluster: Cluster) -> dict[str, MachineHandle]:
    return {member.name: handle(member) for member in cluster.members}


def remember(member: Member, text: str) -> None:
    assert tell(handle(member), text)


def disk(member: Member) -> Path:
    found = [p for p in Path(member.record.folder).glob("disk.*") if p.suffix in (".raw", ".qcow2")]
    assert len(found) == 1, "one disk per member"
    return found[0]


def write(member: Member, text: str) -> None:
    """What the guest would do to its disk."""
    with disk(member).open("r+b") as file:
        file.write(text.encode())


def read(member: Member) -> str:
    with disk(member).open("rb") as file:
        return file.read(6).decode()


def identity(cluster: Cluster) -> dict[str, tuple[str, ...]]:
    known_hosts = "\n".join(sorted(paths.known_hosts(cluster.name).read_text().splitlines()))
    return {m.name: (m.record.id, m.ip, m.record.mac, m.record.instance, known_hosts) for m in cluster.members}


def nothing_unfinished() -> bool:
    return not [p for p in paths.snapshots_dir().glob(".new-*") if p.is_dir()]


def stopped(member: Member) -> bool:
    """Whether the machine stands still; its process is then stopped (proc_pid_stat(5))."""
    stat = Path(f"/proc/{handle(member).process.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


def staged(name: str) -> list[str]:
    """The files of that name in a snapshot that is being made, by member."""
    return sorted(p.parent.name for p in paths.snapshots_dir().glob(f".new-*/*/{name}"))


def assert_untouched(cluster: Cluster, before: dict[str, MachineHandle], until: Until) -> None:
    """The same machines run, and run on: they answer, and can still be told things."""
    assert handles(cluster) == before
    assert {m.state for m in cluster.members} == {MemberState.RUNNING}
    for member in cluster.members:
        remember(member, "and I run")
        until(lambda member=member: "and I run" in recall(handle(member)))
    assert nothing_unfinished()
