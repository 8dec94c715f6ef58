"""Every path that fleetbox uses, made here and nowhere else (design §4).

`FLEETBOX_HOME=DIR` puts everything under one root: `DIR/{data,state,cache,run}`. Otherwise the XDG base directories
apply (`fleetbox.roots`). A unix socket's path is at most 107 bytes long on Linux (`sun_path`), so the runtime
folder of a cluster carries a short digest instead of its name.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from pathlib import Path

from fleetbox.errors import HostError
from fleetbox.roots import root

SOCKET_PATH_MAX = 107


def _root(kind: str) -> Path:
    return Path(root(kind))


def data_dir() -> Path:
    return _root("data")


def state_dir() -> Path:
    return _root("state")


def cache_dir() -> Path:
    return _root("cache")


def runtime_dir() -> Path:
    return _root("run")


def clusters_dir() -> Path:
    """Holds a state folder per cluster."""
    return state_dir() / "clusters"


def cluster_state_dir(cluster: str) -> Path:
    return clusters_dir() / cluster


def cluster_record(cluster: str) -> Path:
    return cluster_state_dir(cluster) / "cluster.json"


def holder_lock(cluster: str) -> Path:
    return cluster_state_dir(cluster) / "holder.lock"


def holder_log(cluster: str) -> Path:
    return cluster_state_dir(cluster) / "holder.log"


def events_log(cluster: str) -> Path:
    """What happened to the cluster, a JSON line each."""
    return cluster_state_dir(cluster) / "events.jsonl"


def events_log_before(cluster: str) -> Path:
    """The log before the present one, which was full."""
    return cluster_state_dir(cluster) / "events.1.jsonl"


def known_hosts(cluster: str) -> Path:
    return cluster_state_dir(cluster) / "known_hosts"


def cluster_data_dir(cluster: str) -> Path:
    return data_dir() / "clusters" / cluster


def member_dir(cluster: str, member: str) -> Path:
    """Disk, seed, fixtures and serial log of a member."""
    return cluster_data_dir(cluster) / member


def serial_log(cluster: str, member: str) -> Path:
    return member_dir(cluster, member) / "serial.log"


def networks_dir() -> Path:
    """Write-ahead records of the host's networks, `<bridge>.json` each."""
    return state_dir() / "networks"


def keys_dir() -> Path:
    return data_dir() / "keys"


def blobs_dir() -> Path:
    return data_dir() / "blobs"


def snapshots_dir() -> Path:
    """Holds `<id>/snapshot.json` and a folder per member of each snapshot."""
    return data_dir() / "snapshots"


def images_dir() -> Path:
    """Holds `<digest>/image.json` with the kernel and initrd of each image; its disk is a blob."""
    return data_dir() / "images"


def downloads_dir() -> Path:
    return cache_dir() / "downloads"


def verified_dir() -> Path:
    """Base disks whose digest was found right, by digest: the file's stamp at that time."""
    return cache_dir() / "verified"


def templates_dir() -> Path:
    """Holds `<key>/` of each template: its record and the saved machine; its disk is a blob."""
    return cache_dir() / "templates"


def bin_dir() -> Path:
    """Hypervisor binaries that were downloaded."""
    return cache_dir() / "bin"


def kernels_dir() -> Path:
    """Kernels that were unpacked for firecracker, by the digest of the packed one."""
    return cache_dir() / "kernels"


def kvm_verdict() -> Path:
    """Whether KVM works here, as it was found out in this boot."""
    return cache_dir() / "kvm.json"


def cluster_runtime_dir(cluster: str) -> Path:
    """`holder.pid`, `holder.sock`, and a pidfile and API socket per member."""
    return runtime_dir() / hashlib.sha256(cluster.encode()).hexdigest()[:12]


def holder_socket(cluster: str) -> Path:
    return checked_socket(cluster_runtime_dir(cluster) / "holder.sock")


def helper_socket() -> Path:
    """Where the helper of the `remote` backend listens unless told otherwise."""
    return checked_socket(runtime_dir() / "helper.sock")


def dial_socket(control: Path) -> Path:
    """The dial socket (`fleetbox.reach`), beside the control socket of the same holder."""
    return control.with_name("dial.sock")


def holder_pidfile(cluster: str) -> Path:
    return cluster_runtime_dir(cluster) / "holder.pid"


def checked_socket(path: Path) -> Path:
    """`path`, when a unix socket can be bound there; HostError when it is too long."""
    if len(os.fsencode(path)) <= SOCKET_PATH_MAX:
        return path
    raise HostError(
        f"the socket path {path} is too long",
        why=f"Linux allows {SOCKET_PATH_MAX} bytes",
        hint="set FLEETBOX_HOME or XDG_RUNTIME_DIR to a shorter path",
    )


@functools.cache
def _digest_of(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()


def installation_digest() -> str:
    """Five hexadecimal digits of the state folder: tells this installation's host resources from another's."""
    return _digest_of(state_dir().absolute())[:5]


def host_dir() -> Path:
    """Locks of networks, forwarding, guests' names: shared by all of root's installations; an ordinary user, whose
    networks are private, has them in the runtime folder.
    """
    return Path("/run/fleetbox/host") if os.geteuid() == 0 else runtime_dir() / "host"


def private_dir(path: Path) -> Path:
    """Make `path` with mode 0700, or check that it is ours alone.

    Raises HostError when somebody else owns it or may write to it: sockets and keys live here.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        pass  # a file or a dangling link: said below
    except OSError as e:
        raise HostError(
            f"the folder {path} cannot be made",
            why=e.strerror or str(e),
            hint="set XDG_RUNTIME_DIR or FLEETBOX_HOME to a folder of your own",
        ) from e
    info = path.lstat()
    if stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid():
        if info.st_mode & 0o077:
            path.chmod(0o700)
        return path
    raise HostError(
        f"{path} is not a private folder of this user",
        why=f"it belongs to uid {info.st_uid}" if stat.S_ISDIR(info.st_mode) else "it is not a folder",
        hint="remove it, or set XDG_RUNTIME_DIR or FLEETBOX_HOME to a folder of your own",
    )
