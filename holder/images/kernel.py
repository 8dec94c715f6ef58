"""Kernel and initrd read out of a disk image without mounting it and without being root.

debugfs(8) reads an ext file system inside a partition as `image?offset=N`. Whatever is not found that way is no error:
the machine then boots through its firmware, and the reason is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fleetbox.backends.host.process import run_blocking
from fleetbox.holder.images.partitions import ExtFilesystem, read_filesystems

_KERNEL = re.compile(r"(?:vmlinuz|vmlinux|Image)-([A-Za-z0-9._+~-]+)")
_MAX_BYTES = 512 << 20
_SKIPPED = ("rescue", "-dbg")


@dataclass(frozen=True)
class BootFiles:
    """How an image starts. With a `reason`, only firmware can start it, and `root` and `architecture` are empty."""

    root: str = ""
    architecture: str = ""
    has_systemd: bool = False
    reason: str = ""


@dataclass(frozen=True)
class _Node:
    name: str
    mode: int
    size_bytes: int

    @property
    def is_file(self) -> bool:
        return self.mode & 0o170000 == 0o100000


def extract(disk: Path, folder: Path) -> BootFiles:
    """Copy the newest kernel of `disk` and its initrd to `folder/kernel` and `folder/initrd`, and say how it starts.

    Raises OSError when `folder` cannot be written, HostError when debugfs or sfdisk is not installed.
    """
    filesystems = read_filesystems(disk)
    if not filesystems:
        return BootFiles(reason="its disk has no ext file system")
    roots = [f for f in filesystems if {"etc", "usr"} <= {n.name for n in _list(disk, f, "/")}]
    if not roots:
        return BootFiles(reason="no ext file system of its disk is a root file system")
    root = roots[0]
    has_systemd = any(n.name == "systemd" for p in _SYSTEMD for n in _list(disk, root, p))
    reason = "its disk has no kernel with an initrd"
    for filesystem, place in [(root, "/boot"), *((f, "/") for f in filesystems if f is not root)]:
        for kernel, initrd in _pairs(_list(disk, filesystem, place)):
            copied = [
                _dump(disk, filesystem, f"{place.rstrip('/')}/{node.name}", folder / target, node.size_bytes)
                for node, target in ((kernel, "kernel"), (initrd, "initrd"))
            ]
            architecture = _architecture(folder / "kernel") if all(copied) else ""
            if architecture:
                return BootFiles(f"UUID={root.uuid}", architecture, has_systemd)
            reason = f"its kernel {kernel.name} cannot be read"
            for target in ("kernel", "initrd"):
                (folder / target).unlink(missing_ok=True)
    return BootFiles(has_systemd=has_systemd, reason=reason)


_SYSTEMD = ("/usr/lib/systemd", "/lib/systemd")


def _list(disk: Path, filesystem: ExtFilesystem, folder: str) -> list[_Node]:
    """The entries of a folder; empty when there is none."""
    nodes = []
    for line in _debugfs(disk, filesystem, f"ls -p {folder}").splitlines():
        fields = line.split("/")  # /inode/mode/uid/gid/name/size/
        if len(fields) == 8 and fields[1] != "0":
            nodes.append(_Node(fields[5], int(fields[2], 8), int(fields[6] or 0)))
    return nodes


def _pairs(nodes: list[_Node]) -> Iterator[tuple[_Node, _Node]]:
    """Kernels with their initrds, the newest version first."""
    files = {n.name: n for n in nodes if n.is_file and 0 < n.size_bytes <= _MAX_BYTES}
    versions = {}
    for name in files:
        match = _KERNEL.fullmatch(name)
        if match and not any(word in name for word in _SKIPPED):
            versions[match[1]] = files[name]
    for version in sorted(versions, key=_version_key, reverse=True):
        for initrd in (f"initrd.img-{version}", f"initramfs-{version}.img", f"initrd-{version}"):
            if initrd in files:
                yield versions[version], files[initrd]
                break


def _version_key(version: str) -> list[tuple[int, int | str]]:
    return [(1, int(part)) if part.isdigit() else (0, part) for part in re.findall(r"\d+|[A-Za-z]+", version)]


def _dump(disk: Path, filesystem: ExtFilesystem, path: str, target: Path, size_bytes: int) -> bool:
    _debugfs(disk, filesystem, f'dump "{path}" "{target}"')
    return target.exists() and target.stat().st_size == size_bytes


def _debugfs(disk: Path, filesystem: ExtFilesystem, request: str) -> str:
    # Names in the request are ours or matched _KERNEL; debugfs exits with 0 whatever happens.
    argv = ["debugfs", "-R", request, f"{disk}?offset={filesystem.offset}"]
    return run_blocking(argv).decode(errors="replace")


def _architecture(kernel: Path) -> str:
    """The architecture (amd64, arm64) that a kernel is for, empty when it is none that machines start from."""
    with kernel.open("rb") as file:
        head = file.read(0x210)
    if head[0x202:0x206] == b"HdrS":  # the x86 boot protocol
        return "amd64"
    if head[0x38:0x3C] == b"ARM\x64" or head[:2] == b"\x1f\x8b":  # raw, or compressed as Ubuntu ships it
        return "arm64"
    return ""
