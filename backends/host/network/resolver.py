"""Members' names: dnsmasq on the gateway.

It answers from one small file per member, which it notices by itself (inotify), and asks the host's own resolvers for
everything else, following `/etc/resolv.conf` when that changes. It serves no DHCP. It outlives the holder and is found
again by its identity, or by the folder in its argv when a crash came before that was recorded.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import shutil
import socket
import time
from collections.abc import Collection
from pathlib import Path

import psutil

from fleetbox import paths
from fleetbox.backends.base import timeout_scale
from fleetbox.backends.host import programs
from fleetbox.backends.host.confinement import FREE, Confinement
from fleetbox.backends.host.network.lock import shared_dir
from fleetbox.backends.host.process import Process, adopt, spawn_blocking, tail
from fleetbox.errors import NetworkError
from fleetbox.identity import identify

log = logging.getLogger(__name__)

_START_TIMEOUT_S = 10.0
_STOP_GRACE_S = 3.0
# What it keeps of root's rights when it drops them by itself.
_KEEPS = ("net_bind_service", "net_admin", "net_raw")
# `version.bind CH TXT`, which dnsmasq answers by itself.
_PROBE = b"\xfb\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07version\x04bind\x00\x00\x10\x00\x03"


def folder_of(bridge: str) -> Path:
    """Where a network's names and its resolver's log are."""
    return paths.host_dir() / "names" / bridge


def start(
    bridge: str, gateway: str, cluster: str, *, bound: bool = False, upstream: str | None = None
) -> Process | None:
    """Start dnsmasq on the gateway; returns when it answers. None where it is not installed or cannot serve.

    What it does not know it asks of `upstream` (empty: of nobody), by default of whom the host asks.

    A `bound` one dies with the thread that starts it. It would lose its parent-death signal when it stops being root by
    itself, so it never is.
    """
    binary = programs.find("dnsmasq")
    if binary is None:
        log.info("dnsmasq is not installed: members do not know each other's names")
        return None
    hosts = shared_dir("names", bridge, "hosts")
    log_file = hosts.parent / "dnsmasq.log"
    process = spawn_blocking(
        [
            str(binary),
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--pid-file=",
            "--log-facility=-",
            f"--listen-address={gateway}",
            "--bind-interfaces",
            "--except-interface=lo",
            "--no-hosts",
            f"--hostsdir={hosts}",
            f"--domain={cluster}",
            f"--local=/{cluster}/",  # a member's missing AAAA record is not asked for outside
            "--domain-needed",  # a bare name is a member's or nobody's
            "--local-ttl=1",
            *(["--no-resolv"] if upstream is not None else []),
            *([f"--server={upstream}"] if upstream else []),
        ],
        log_file=log_file,
        confinement=Confinement(bound, _KEEPS, user="nobody") if bound else FREE,
    )
    if answers(process, gateway):
        return process
    process.terminate_blocking(_STOP_GRACE_S)
    log.warning("dnsmasq does not serve on %s, members' names stay unknown: %s", gateway, " | ".join(tail(log_file, 3)))
    return None


def answers(process: Process, gateway: str) -> bool:
    """Wait until the resolver answers; False when it has ended or says nothing."""
    deadline = time.monotonic() + _START_TIMEOUT_S * timeout_scale()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((gateway, 53))
        probe.settimeout(0.1)
        while time.monotonic() < deadline and identify(process.pid) is not None:
            # Until the port is bound the kernel refuses at once.
            try:
                probe.send(_PROBE)
                if probe.recv(512)[:2] == _PROBE[:2]:
                    return True
            except ConnectionRefusedError:
                time.sleep(0.005)
            except TimeoutError:
                continue
    return False


def serves(pid: int, bridge: str) -> bool:
    """Whether a process is the resolver of that bridge, told by the folder in its argv."""
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"--hostsdir={folder_of(bridge)}/hosts".encode() in argv


def find(bridge: str) -> list[Process]:
    """Resolvers of that bridge which nobody recorded, told by the folder in their argv."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if serves(process.pid, bridge):
                identity = identify(process.pid)
                adopted = adopt(identity) if identity else None
                if adopted is not None:
                    found.append(adopted)
    return found


def stop(process: Process) -> None:
    """End a resolver; raises NetworkError when it stays."""
    try:
        if not process.terminate_blocking(_STOP_GRACE_S):
            raise NetworkError(f"the resolver with pid {process.pid} does not end")
    finally:
        process.close()


def publish(bridge: str, cluster: str, name: str, ip: str) -> None:
    """Make `name` and `name.cluster` known."""
    hosts = shared_dir("names", bridge, "hosts")
    temporary = hosts / f".{name}"  # dnsmasq ignores names that begin with a dot
    temporary.write_text(f"{ip} {name} {name}.{cluster}\n")
    temporary.chmod(0o644)
    temporary.replace(hosts / name)


def withdraw(bridge: str, name: str) -> None:
    """Forget a member's name."""
    (folder_of(bridge) / "hosts" / name).unlink(missing_ok=True)


def keep_only(bridge: str, names: Collection[str]) -> None:
    """Forget the names of members that went while nobody held the network."""
    for file in (folder_of(bridge) / "hosts").glob("*"):
        if file.name not in names:
            file.unlink(missing_ok=True)


def remove_folder(bridge: str) -> None:
    """Remove names and log. Raises NetworkError when something stays."""
    folder = folder_of(bridge)
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as e:
        raise NetworkError(f"the folder {folder} cannot be removed", why=e.strerror or str(e)) from e


def host_nameservers() -> tuple[str, ...]:
    """The host's IPv4 nameservers that a guest could ask itself: none on loopback."""
    for file in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        found = []
        with contextlib.suppress(OSError):
            for line in Path(file).read_text(errors="replace").splitlines():
                keyword, _, rest = line.strip().partition(" ")
                with contextlib.suppress(ValueError, IndexError):
                    if keyword == "nameserver" and not (ip := ipaddress.IPv4Address(rest.split()[0])).is_loopback:
                        found.append(str(ip))
        if found:
            return tuple(found)
    return ()
