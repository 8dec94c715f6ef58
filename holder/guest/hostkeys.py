"""Members' SSH host keys, made here so that nobody has to trust on first use.

A member's key goes into its seed, its public half into the cluster's `known_hosts`: SSH checks hosts strictly from the
first connection on, and the guest computes nothing. The key stays in the member's folder, so that its seed can be made
again. In `known_hosts` a member stands under an alias that no other cluster's member shares (ssh_config(5),
`HostKeyAlias`) and under its address, for clients that know no aliases.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from fleetbox import paths
from fleetbox.backends.host.disk import disk_errors
from fleetbox.backends.host.process import ProgramFailed
from fleetbox.errors import HostError
from fleetbox.holder.guest import atomicfile, sshkeygen

KEY_FILE = "ssh_host_ed25519_key"

# The holder is the only process that writes its cluster's file, but members come up in several of its threads.
_known_hosts_lock = threading.Lock()


@dataclass(frozen=True)
class HostKey:
    """An Ed25519 host key: the private one in OpenSSH's format, the public one as `ssh-ed25519 AAAA…`."""

    private_text: str
    public_text: str


def host_key_alias(cluster: str, member: str) -> str:
    """The name under which a member's host key is known: `node-1.mycluster.fleetbox`."""
    return f"{member}.{cluster}.fleetbox"


def make_host_key(member_folder: Path) -> HostKey:
    """The host key kept in a member's folder, made when there is none. Takes about 10 ms, about 5 when it is there.

    Raises DiskError when it cannot be written, HostError when it is damaged or ssh-keygen is missing.
    """
    private = member_folder / KEY_FILE
    with disk_errors(f"the host key {private} cannot be kept"):
        if private.exists():
            private_bytes, public_line = private.read_bytes(), _public_line(private)
        else:
            private_bytes, public_line = sshkeygen.generate(member_folder)
            atomicfile.write(private, private_bytes, durable=True)
    return HostKey(private_bytes.decode(), " ".join(public_line.split()[:2]))


def _public_line(private: Path) -> str:
    try:
        return sshkeygen.public_line(private)
    except ProgramFailed as e:
        raise HostError(
            f"the host key {private} cannot be used",
            why=e.why,
            hint="restore it; a new one would not be the one that the machine has",
        ) from e


def add_known_host(cluster: str, member: str, ip: str, public_text: str) -> None:
    """Make a member known under its alias and address; replaces what was known of either.

    Raises DiskError."""
    alias = host_key_alias(cluster, member)
    with _known_hosts_lock:
        others = [_without(ip, line) for line in _read(cluster) if alias not in _names(line)]
        _write(cluster, [*others, f"{alias},{ip} {public_text}"])


def remove_known_host(cluster: str, member: str) -> None:
    """Forget a member; one that is not known is nothing to do. Raises DiskError."""
    alias = host_key_alias(cluster, member)
    with _known_hosts_lock:
        lines = _read(cluster)
        kept = [line for line in lines if alias not in _names(line)]
        if kept != lines:
            _write(cluster, kept)


def _names(line: str) -> list[str]:
    return line.partition(" ")[0].split(",")


def _without(ip: str, line: str) -> str:
    # An address that another member had before must not lead to that one's key.
    names, _, key = line.partition(" ")
    return f"{','.join(name for name in names.split(',') if name != ip)} {key}"


def _read(cluster: str) -> list[str]:
    path = paths.known_hosts(cluster)
    with disk_errors(f"{path} cannot be read"):
        return path.read_text().splitlines() if path.exists() else []


def _write(cluster: str, lines: list[str]) -> None:
    path = paths.known_hosts(cluster)
    with disk_errors(f"{path} cannot be written"):
        atomicfile.write(path, "".join(f"{line}\n" for line in lines).encode())
