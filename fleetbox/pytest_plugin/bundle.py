"""The failure bundle: a folder with what there is to know about the clusters of a test that failed.

::

    failure.txt                 which test, how it failed, the clusters and their members
    CLUSTER/cluster.json        the record
    CLUSTER/events.jsonl        what happened, with the host's clock (as `fleetbox events` shows it)
    CLUSTER/operations.jsonl    what the test's own operations reported, with the host's clock
    CLUSTER/holder.log
    CLUSTER/network.txt         links, addresses, neighbours, routes and firewall of the cluster on the host
    CLUSTER/MEMBER/serial.log
    CLUSTER/MEMBER/guest.txt    by SSH, where it answers: failed units, addresses, sockets, processes
    CLUSTER/MEMBER/journal.txt  by SSH, where it answers: the journal since the boot

What cannot be had is left out, or says why; nothing here ever raises or waits for long.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from fleetbox import paths
from fleetbox.errors import FleetboxError
from fleetbox.inside import enter_argv
from fleetbox.member import Member
from fleetbox.pytest_plugin.fleets import FleetCluster
from fleetbox.records import ClusterRecord, MemberState
from fleetbox.timeouts import stretch, timeout_scale
from fleetbox.watch import Watch

SSH_LIMIT_S = 10.0
HOST_LIMIT_S = 10.0
GUEST_BYTES_MAX = 16 << 20
NO_GUESTS = "fake"
"""The backend whose machines answer nobody; on the host's network somebody else may have their addresses."""

GUEST = (
    "systemctl --failed --no-pager --full; ip address; ip route; ss --tcp --udp --listening --numeric --processes;"
    " ps -e --forest -o pid,user,stat,start,args"
)
JOURNAL = "sudo journalctl --boot --no-pager --output=short-precise"


def write_bundle(folder: Path, clusters: Sequence[FleetCluster], what: str) -> None:
    """Write everything there is into a folder that exists."""
    lines = [what, "", *(line for cluster in clusters for line in _summary(cluster))]
    (folder / "failure.txt").write_text("\n".join(lines) + "\n")
    for cluster in clusters:
        inside = folder / cluster.name
        inside.mkdir()
        _host_side(inside, cluster)
        with contextlib.suppress(FleetboxError):
            members = cluster.members
            with ThreadPoolExecutor(max(1, len(members))) as pool:
                list(pool.map(_member, [inside / member.name for member in members], members))


def _summary(cluster: FleetCluster) -> list[str]:
    try:
        record = cluster.record
    except FleetboxError as e:
        return [f"cluster {cluster.name}: {e}"]
    lines = [f"cluster {cluster.name}: backend {record.backend}, accelerator {record.accelerator or 'none'}"]
    lines += [f"  {m.name}: {m.state}, {m.ip} {m.record.error}".rstrip() for m in cluster.members]
    return lines


def _host_side(folder: Path, cluster: FleetCluster) -> None:
    events = [msgspec.json.encode({"seen_at": at, **msgspec.to_builtins(event)}) for at, event in cluster.seen]
    (folder / "operations.jsonl").write_bytes(b"".join(line + b"\n" for line in events))
    _copy(paths.cluster_record(cluster.name), folder / "cluster.json")
    _copy(paths.events_log_before(cluster.name), folder / "events.1.jsonl")
    _copy(paths.events_log(cluster.name), folder / "events.jsonl")
    _copy(paths.holder_log(cluster.name), folder / "holder.log")
    with contextlib.suppress(FleetboxError):
        record = cluster.record
        _copy(paths.networks_dir() / f"{record.bridge}.json", folder / "network.json")
        (folder / "network.txt").write_text(_network(record))


def _network(record: ClusterRecord) -> str:
    """The cluster's network, as the usual programs show it: its part of the host's, or its own."""
    bridge = record.bridge
    if not bridge:
        return "the cluster has no bridge\n"
    commands = [
        ["ip", "-details", "-statistics", "link", "show", "dev", bridge],
        ["ip", "-details", "-statistics", "link", "show", "master", bridge],
        ["ip", "address", "show", "dev", bridge],
        ["ip", "neighbour", "show", "dev", bridge],
        ["ip", "route", "show"],
        ["nft", "list", "ruleset"],
    ]
    return "\n".join(f"$ {' '.join(argv)}\n{_output(enter_argv(record, argv))}" for argv in commands)


def _output(argv: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=HOST_LIMIT_S * timeout_scale(),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"{e}\n"
    return done.stdout.decode(errors="replace")


def _member(folder: Path, member: Member) -> None:
    folder.mkdir()
    _copy(member.serial_log, folder / "serial.log")
    try:
        if member.state is not MemberState.RUNNING or member.cluster_record.backend == NO_GUESTS:
            return
        member.connect(22, timeout_s=SSH_LIMIT_S * timeout_scale()).close()
        _from_guest(member, GUEST, folder / "guest.txt")
        _from_guest(member, JOURNAL, folder / "journal.txt")
    except (FleetboxError, OSError) as e:
        with (folder / "guest.txt").open("a") as file:
            file.write(f"{member.ref} was not asked, or not to the end: {e}\n")


def _from_guest(member: Member, command: str, file: Path) -> None:
    """What a command prints on the member, within limits: a guest may print for ever."""
    accelerator = member.cluster_record.accelerator
    left = GUEST_BYTES_MAX
    with (
        Watch(member, 3 * SSH_LIMIT_S * stretch(accelerator) * timeout_scale(), f"`{command}`") as watch,
        contextlib.closing(watch.lines(command)) as lines,
        file.open("w") as out,
    ):
        for line in lines:
            if isinstance(line, str):
                out.write(f"{line}\n")
                left -= len(line) + 1
            if left < 0:
                out.write(f"... cut after {GUEST_BYTES_MAX} bytes\n")
                return


def _copy(source: Path, target: Path) -> None:
    """Copy a file when it is there and can be read."""
    with contextlib.suppress(OSError):
        shutil.copyfile(source, target)
