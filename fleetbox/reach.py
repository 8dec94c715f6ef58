"""Reaching members: a connected socket, the same way on every network.

Where the host has a route to the cluster the connection is direct. On a private network the holder, whose thread is
inside, makes it and hands the socket over (SCM_RIGHTS, unix(7)); the socket then belongs to the caller alone. Beside
sockets the holder hands out the network's namespaces, for programs that are to run inside (`fleetbox enter`).

The dial socket speaks one JSON line each way: `{"host": …, "port": …}` or `{"namespaces": true}`, answered by `{}`
with the descriptors attached, or `{"error": …, "errno": …}`.
"""

from __future__ import annotations

import shlex
import socket
import sys
from pathlib import Path

from fleetbox import fdpass, paths
from fleetbox.errors import FleetboxError, HolderError
from fleetbox.records import ClusterRecord, MemberRecord, live_holder, read_cluster

CONNECT_LIMIT_S = 20.0


def connect(
    cluster: ClusterRecord, member: MemberRecord, port: int, timeout_s: float = CONNECT_LIMIT_S
) -> socket.socket:
    """A TCP connection to a member's port, blocking. Raises OSError when it cannot be made, HolderError."""
    if cluster.network == "private":
        return socket.socket(fileno=fdpass.dial(str(dial_socket(cluster.name)), member.ip, port, timeout_s))
    connected = socket.create_connection((member.ip, port), timeout_s)
    connected.settimeout(None)
    return connected


def dial_socket(cluster: str) -> Path:
    """The dial socket of the cluster's live holder, started when none lives. Raises HolderError, HostError."""
    holder = live_holder(cluster)
    if holder is None:
        from fleetbox.launch import ensure_holder

        ensure_holder(cluster)
        holder = live_holder(cluster)
    if holder is None:
        raise HolderError(f"the holder of {cluster!r} does not answer", hint="try again")
    return paths.dial_socket(Path(holder.socket))


def proxy_command(cluster: str) -> str:
    """What OpenSSH is told as its `ProxyCommand` for members of a private network (`ProxyUseFdpass yes`)."""
    script = [sys.executable, "-ISE", fdpass.__file__, str(paths.dial_socket(paths.holder_socket(cluster)))]
    fallback = [sys.executable, "-P", "-m", "fleetbox.reach", cluster]
    words = [*map(_quoted, script), "%h", "%p", *map(_quoted, fallback), "%h", "%p"]
    return " ".join(words)


def _quoted(word: str) -> str:
    return shlex.quote(word).replace("%", "%%")


def _main(cluster: str, host: str, port: str) -> int:
    """OpenSSH's proxy when no holder lives: one is started, which takes the machines over, and dialled."""
    try:
        read_cluster(cluster)  # no holder is started for one that is not there
        return fdpass.main([str(dial_socket(cluster)), host, port])
    except FleetboxError as e:
        sys.stderr.write(f"fleetbox: {e}\n")
        return 1


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:4]))
