"""Moving a process onto a private network: namespaces(7), by the descriptors that the network's holder hands out."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import sys
from collections.abc import Sequence
from ipaddress import IPv4Network
from pathlib import Path

from fleetbox import paths
from fleetbox.errors import HolderError, HostError
from fleetbox.reach import dial_socket
from fleetbox.records import ClusterRecord, read_cluster

_NEW_NS = 0x00020000  # linux/sched.h
_BIND, _REC, _PRIVATE = 4096, 16384, 1 << 18  # sys/mount.h

_RESOLV_CONF = Path("/etc/resolv.conf")


def enter(cluster: ClusterRecord) -> None:
    """Move this process, which must have one thread, onto the cluster's network; nothing where that is the host's.

    Its user, files and rights stay as they are; names are asked of the cluster's resolver, which knows the members.
    Raises HolderError, HostError.
    """
    if cluster.network != "private":
        return
    resolver = _resolver_file(cluster)
    try:
        for descriptor in _namespaces(cluster.name):  # the user namespace, where there is one, comes first
            _call("setns", descriptor, 0)
            os.close(descriptor)
        with contextlib.suppress(OSError):  # without: names of members stay unknown to the program
            _show(resolver)
    except OSError as e:
        raise HostError(f"the network of {cluster.name!r} cannot be entered", why=e.strerror or str(e)) from e


def enter_argv(cluster: ClusterRecord, command: Sequence[str]) -> list[str]:
    """The command line that runs a program of this host on the cluster's network; its own where that is the host's."""
    if cluster.network != "private":
        return list(command)
    return [sys.executable, "-P", "-m", "fleetbox.inside", cluster.name, *command]


def _namespaces(cluster: str) -> Sequence[int]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.connect(str(dial_socket(cluster)))
        control.sendall(b'{"namespaces": true}\n')
        answer, descriptors, _, _ = socket.recv_fds(control, 4096, 2)
    if not descriptors:
        raise HolderError(f"the network of {cluster!r} cannot be entered", why=answer.decode(errors="replace"))
    return descriptors


def _resolver_file(cluster: ClusterRecord) -> Path:
    file = paths.private_dir(paths.cluster_runtime_dir(cluster.name)) / "resolv.conf"
    file.write_text(f"nameserver {IPv4Network(cluster.subnet)[1]}\nsearch {cluster.name}\n")
    return file


def _show(resolver: Path) -> None:
    """Let this process alone see another `/etc/resolv.conf`, in a mount namespace of its own."""
    _call("unshare", _NEW_NS)
    _call("mount", b"none", b"/", None, _REC | _PRIVATE, None)
    _call("mount", os.fsencode(resolver), os.fsencode(_RESOLV_CONF.resolve()), None, _BIND, None)


def _call(function: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    enter(read_cluster(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - the caller's own program
