"""The host's programs that fleetbox runs, and the Debian or Ubuntu package that brings each."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from fleetbox.errors import HostError


@dataclass(frozen=True)
class Program:
    """`name` as found on PATH, the package that holds it, what it is for, and whether fleetbox works without it."""

    name: str
    package: str
    purpose: str
    optional: bool = False


_ARCH = {"x86_64": ("x86_64", "x86"), "aarch64": ("aarch64", "arm")}.get(
    platform.machine(), (platform.machine(), "misc")
)
QEMU = f"qemu-system-{_ARCH[0]}"

PROGRAMS: tuple[Program, ...] = (
    Program(QEMU, f"qemu-system-{_ARCH[1]}", "runs the machines"),
    Program("qemu-img", "qemu-utils", "makes and checks disks"),
    Program("nft", "nftables", "lets machines reach the outside"),
    Program("dnsmasq", "dnsmasq-base", "resolves members' names"),
    Program("pasta", "passt", "leads out of private networks", optional=True),
    Program("slirp4netns", "slirp4netns", "leads out of private networks where pasta does not start", optional=True),
    Program("mmdebstrap", "mmdebstrap", "builds images from the distribution's archive"),
    Program("mke2fs", "e2fsprogs", "makes file systems"),
    Program("debugfs", "e2fsprogs", "reads kernels out of images"),
    Program("sfdisk", "fdisk", "reads partition tables"),
    Program("ssh", "openssh-client", "reaches machines"),
    Program("ssh-keygen", "openssh-client", "makes keys"),
)
_PACKAGES = {p.name: p.package for p in PROGRAMS}

# Administrators' programs are not on every user's PATH.
_EXTRA_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def search_path() -> str:
    """PATH with the administrators' folders at its end."""
    parts = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join([*parts, *(p for p in _EXTRA_PATH if p not in parts)])


def find(name: str) -> Path | None:
    """Where the program is, None when it is not installed. `FLEETBOX_QEMU` and the like override (see the backends)."""
    found = shutil.which(name, path=search_path())
    return Path(found) if found else None


def require(name: str) -> Path:
    """Where the program is; HostError naming its package when it is not installed."""
    found = find(name)
    if found is None:
        raise missing(name)
    return found


def missing(name: str) -> HostError:
    """The error for a program that is not installed."""
    package = _PACKAGES.get(name)
    return HostError(
        f"{name} is not installed",
        why="fleetbox needs it for this",
        hint=f"run `fleetbox doctor --fix`, or install the package {package}"
        if package
        else "install it and try again",
    )
