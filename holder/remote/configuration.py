"""A launch as the helper's backend takes it: files of this side in the place of digests."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fleetbox import paths
from fleetbox.backends.base import DirectBoot, Disk, FirmwareBoot, VMConfig
from fleetbox.backends.host import disk as disks
from fleetbox.backends.host import saved
from fleetbox.backends.host.backing import backing_name, check_apart_from_backing, put_on
from fleetbox.backends.host.disk import disk_errors, refuse_foreign
from fleetbox.backends.remote.wire import DiskImage
from fleetbox.errors import DiskError, UsageError
from fleetbox.holder.remote.blobs import Blobs
from fleetbox.holder.remote.machine import Machine

SAVED = (saved.STATE, saved.MACHINE, saved.MEMORY)


async def place(machine: Machine, blobs: Blobs) -> None:
    """Put the disks that the machine writes to into its folder, copies each standing on its base, and what it restores.

    Raises DiskError, UsageError for a file that is not here or is refused.
    """
    for number, image in enumerate(machine.start.disks):
        await _place_disk(machine, number, image, blobs)
    if machine.start.saved:
        with disk_errors(f"{restore_folder(machine)} cannot be made"):
            restore_folder(machine).mkdir(mode=0o700)
            for name, digest in machine.start.saved.items():
                if name not in SAVED:
                    raise UsageError(f"no snapshot has a file {name!r}")
                (restore_folder(machine) / name).hardlink_to(blobs.path(digest))


def restore_folder(machine: Machine) -> Path:
    """The snapshot that the machine is restored from."""
    return machine.folder / "restore"


def configuration(machine: Machine, blobs: Blobs) -> VMConfig:
    """The backend's configuration of a machine whose files are in place. Raises UsageError for a file that is gone."""
    start, path = machine.start, blobs.path
    boot: DirectBoot | FirmwareBoot
    if start.boot.kind == "direct":
        initrd = path(start.boot.initrd) if start.boot.initrd else None
        boot = DirectBoot(path(start.boot.kernel), initrd, start.boot.cmdline)
    else:
        boot = FirmwareBoot(path(start.boot.kernel) if start.boot.kernel else None)
    return VMConfig(
        name=f"{start.cluster}/{start.member}",
        run_dir=paths.private_dir(paths.cluster_runtime_dir(start.cluster)),
        disks=tuple(_disk(machine, number, blobs) for number in range(len(start.disks))),
        seed=path(start.seed) if start.seed else None,
        boot=boot,
        mac=start.mac,
        cpus=start.cpus,
        memory_bytes=start.memory_bytes,
        serial_log=machine.serial_log,
        fixtures=tuple(
            Disk(path(image.layers[0].digest), image.layers[0].format, read_only=True, serial=image.serial)
            for image in start.fixtures
        ),
        assigned_ip=start.assigned_ip,
        memory_file=machine.folder / "memory" if start.memory_file else None,
        control_line=start.control_line,
        bound=start.bound,
        slot=start.slot,
    )


def _disk(machine: Machine, number: int, blobs: Blobs) -> Disk:
    image = machine.start.disks[number]
    top = image.layers[0]
    path = blobs.path(top.digest) if image.read_only else machine.disk_path(number)
    return Disk(path, top.format, read_only=image.read_only, serial=image.serial)


async def _place_disk(machine: Machine, number: int, image: DiskImage, blobs: Blobs) -> None:
    """Put a disk where its machine finds it, each layer on the next."""
    below: Disk | None = None
    for layer in reversed(image.layers[1:]):
        base = Disk(blobs.path(layer.digest), layer.format, read_only=True)
        await asyncio.to_thread(_stack, base, below)
        below = base
    disk = _disk(machine, number, blobs)
    if not image.read_only:
        await disks.copy_disk(blobs.path(image.layers[0].digest), disk.path)
        with disk_errors(f"{disk.path} cannot be made writable"):
            disk.path.chmod(0o600)
    await asyncio.to_thread(_stack, disk, below)


def _stack(disk: Disk, below: Disk | None) -> None:
    """Put a disk's file on the one below it, or on nothing; never on what it names itself. Blocks; raises DiskError."""
    if disk.format != "qcow2":
        if below is not None:
            raise DiskError("a raw disk stands on nothing")
        return
    if below is not None and backing_name(disk.path) == str(below.path):
        return
    if below is None:
        if refuse_foreign(disk.path) != "qcow2":
            raise DiskError(f"{disk.path.name} is refused", why="it is no qcow2 file")
        return
    check_apart_from_backing(disk.path)
    writable = disk.path.stat().st_mode | 0o600
    with disk_errors(f"{disk.path} cannot be changed"):
        disk.path.chmod(writable)
    put_on(disk.path, below)
