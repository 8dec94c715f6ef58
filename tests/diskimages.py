"""Small disk images for tests: ext4 with a kernel in /boot, alone on the disk or in a partition."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from fleetbox.backends.host.process import environment

MIB = 1 << 20
UUID = "12345678-1234-4321-8765-0123456789ab"


def x86_kernel(marker: bytes) -> bytes:
    """What passes for a bzImage: the boot protocol's magic at its place, and a mark to know it by."""
    return bytes(0x202) + b"HdrS" + marker + os.urandom(5000)


def make_tree(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def root_files(versions: dict[str, bytes] | None = None) -> dict[str, bytes]:
    """The files of a root file system with a kernel and an initrd per version."""
    files = {"etc/os-release": b"ID=test\n", "usr/lib/systemd/systemd": b"\x7fELF"}
    for version, marker in (versions or {"6.1.0-1-cloud-amd64": b"first"}).items():
        files[f"boot/vmlinuz-{version}"] = x86_kernel(marker)
        files[f"boot/initrd.img-{version}"] = b"initrd of " + marker
    return files


def make_ext4(disk: Path, tree: Path, size_bytes: int = 16 * MIB, offset: int = 0, uuid: str = UUID) -> Path:
    """An ext4 file system with the tree's files at `offset` of `disk`, which grows as needed."""
    with disk.open("ab") as file:
        file.truncate(max(file.tell(), offset + size_bytes))
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-U", uuid, "-d", str(tree), "-E", f"offset={offset}", str(disk),
         f"{size_bytes // 1024}k")  # fmt: skip
    return disk


def make_partitioned(disk: Path, trees: list[Path], label: str = "gpt") -> Path:
    """A disk with a partition of 16 MiB per tree; the first partition begins at 1 MiB."""
    with disk.open("wb") as file:
        file.truncate((2 + 16 * len(trees)) * MIB)
    script = f"label: {label}\n" + "".join(f"start={1 + 16 * i}MiB, size=16MiB\n" for i in range(len(trees)))
    _run("sfdisk", "-q", str(disk), stdin=script)
    for i, tree in enumerate(trees):
        uuid = UUID[:-1] + "abcdef"[i]
        make_ext4(disk, tree, 16 * MIB, (1 + 16 * i) * MIB, uuid)
    return disk


def make_qcow2(target: Path, raw: Path) -> Path:
    _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(target))
    return target


def _run(*argv: str, stdin: str = "") -> None:
    subprocess.run(argv, input=stdin, text=True, check=True, capture_output=True, env=environment())
