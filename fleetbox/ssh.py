"""How OpenSSH is called for a member: strict host keys, the installation's key, one multiplexed connection.

No user configuration is read (`-F none`): what works for one user works for all. The first connection to a member stays
open as a master for `CONTROL_PERSIST_S` seconds, so that the next command costs no handshake.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fleetbox import paths, reach
from fleetbox.records import ClusterRecord, MemberRecord

USER = "fleet"
CONTROL_PERSIST_S = 300


def host_key_alias(cluster: str, member: str) -> str:
    """The name under which a member's host key stands in `known_hosts`."""
    return f"{member}.{cluster}.fleetbox"


def control_path(cluster: str, member: str) -> Path:
    """Where the master connection's socket is. OpenSSH binds it under a longer temporary name first."""
    return paths.cluster_runtime_dir(cluster) / f"{hashlib.sha256(member.encode()).hexdigest()[:10]}.ssh"


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("%", "%%") + '"'


def options(cluster: ClusterRecord, member: str, *, multiplex: bool = True) -> list[str]:
    """The `-o` options that reach exactly this member (ssh_config(5))."""
    pairs = [
        f"User={USER}",
        f"IdentityFile={_quoted(paths.keys_dir() / 'id_ed25519')}",
        "IdentitiesOnly=yes",
        f"UserKnownHostsFile={_quoted(paths.known_hosts(cluster.name))}",
        "GlobalKnownHostsFile=none",
        f"HostKeyAlias={host_key_alias(cluster.name, member)}",
        "StrictHostKeyChecking=yes",
        "UpdateHostKeys=no",
        # First: the hybrid that newer clients prefer costs an emulated guest 0.2 s, and the network is our own.
        "KexAlgorithms=^curve25519-sha256",
        "PasswordAuthentication=no",
        "ConnectTimeout=20",
        "ServerAliveInterval=15",
        "LogLevel=ERROR",
    ]
    if multiplex:
        pairs += [
            "ControlMaster=auto",
            f"ControlPath={_quoted(control_path(cluster.name, member))}",
            f"ControlPersist={CONTROL_PERSIST_S}",
        ]
    if cluster.network == "private":  # the holder connects and hands the socket over
        pairs += [f"ProxyCommand={reach.proxy_command(cluster.name)}", "ProxyUseFdpass=yes"]
    return [word for pair in pairs for word in ("-o", pair)]


def argv(
    cluster: ClusterRecord,
    member: MemberRecord,
    command: Sequence[str] = (),
    *,
    tty: bool | None = None,
    multiplex: bool = True,
    batch: bool = False,
) -> list[str]:
    """The OpenSSH command line that runs `command` (or a shell) on the member.

    `tty` True or False forces or forbids a terminal; None leaves it to ssh. `batch` never asks anything. The words of
    `command` are joined by the guest's shell, as plain ssh does it.
    """
    flags = {True: ["-t"], False: ["-T"], None: []}[tty]
    if batch:
        flags = [*flags, "-o", "BatchMode=yes"]
    return [
        "ssh",
        "-F",
        "none",
        *options(cluster, member.name, multiplex=multiplex),
        *flags,
        "--",
        member.ip,
        *command,
    ]


def configuration(records: Sequence[ClusterRecord]) -> tuple[str, dict[str, list[str]]]:
    """All members of these clusters as a configuration of OpenSSH, and the names of each by its ref.

    A member is known as `node-1.mycluster.fleetbox` and `node-1.mycluster`, and by its bare name where no other of them
    has it. One that was never started has no address, and is left out.
    """
    bare = Counter(name for record in records for name in record.members)
    blocks: list[str] = []
    hosts: dict[str, list[str]] = {}
    for record in records:
        for member in record.members.values():
            if not member.ip:
                continue
            names = [host_key_alias(record.name, member.name), f"{member.name}.{record.name}"]
            names += [member.name] if bare[member.name] == 1 else []
            hosts[f"{record.name}/{member.name}"] = names
            blocks.append(config(record, member, names))
    return "\n".join(["# Members of fleetbox, by `fleetbox ssh-config`.\n", *blocks]), hosts


def close_argv(cluster: str, member: str) -> list[str]:
    """The command line that ends the member's master connection."""
    return [
        "ssh",
        "-F",
        "none",
        "-o",
        f"ControlPath={_quoted(control_path(cluster, member))}",
        "-O",
        "exit",
        "--",
        "member",
    ]


def config(cluster: ClusterRecord, member: MemberRecord, names: Sequence[str]) -> str:
    """A `Host` block of ssh_config(5) that reaches the member under these names as `argv` does."""
    pairs = [option.partition("=") for option in options(cluster, member.name)[1::2]]
    lines = [f"HostName {member.ip}", *(f"{key} {value}" for key, _, value in pairs)]
    return "".join([f"Host {' '.join(names)}\n", *(f"    {line}\n" for line in lines)])
