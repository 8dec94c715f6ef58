"""What a member's machine is made of: its disk, identity, seed and fixtures, and the configuration of its backend."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from fleetbox import paths
from fleetbox.backends.base import Capabilities, DirectBoot, Disk, DiskFormat, FirmwareBoot, Lease, VMConfig
from fleetbox.backends.host import disk as disks
from fleetbox.backends.host.disklock import lock_file
from fleetbox.errors import DiskError, HostError, ImageError
from fleetbox.faultpoint import arrive, reach
from fleetbox.holder.guest import fixtures, hostkeys
from fleetbox.holder.guest.seed import Seed, write_seed
from fleetbox.holder.operations import in_thread
from fleetbox.identity import this_maker
from fleetbox.image import Image
from fleetbox.records import ClusterRecord, MemberRecord, MemberState
from fleetbox.specs import NOWHERE, MemberSpec

# The seed names the interface eth0 anyway; a kernel that keeps to it saves the guest the renaming.
SERIAL = "ttyAMA0" if platform.machine() == "aarch64" else "ttyS0"
CMDLINE = f"ro console=tty0 console={SERIAL} net.ifnames=0"
BLANK_DISK_BYTES = 1 << 20


@dataclass(frozen=True)
class Provisioner:
    """Makes what stands in members' folders, for one cluster on one backend."""

    cluster: str
    capabilities: Capabilities
    authorized_key: str
    bound: bool = False

    async def make_disk(self, member: MemberRecord, image: Image | None, base: Disk | None = None) -> None:
        """The member's own disk over `base`, a template's, or else over the image's. Raises DiskError."""
        folder = Path(member.folder)
        await arrive("member.disk")
        if base is not None:
            await disks.make_disk(base, folder, member.spec.disk_bytes, (base.format,))
        elif image is None:
            await in_thread(_blank_disk, folder / "disk.raw", member.spec.disk_bytes or BLANK_DISK_BYTES)
        else:
            await disks.make_disk(Path(image.disk), folder, member.spec.disk_bytes, self.capabilities.disk_formats)
        await arrive("member.disk.made")

    async def make_seed(self, member: MemberRecord, lease: Lease) -> tuple[Disk, ...]:
        """Write host key, `known_hosts` line and seed for this start, and pack the fixtures anew: returns their disks.

        All of it can be made again: only the host key is kept from start to start.
        """
        folder = Path(member.folder)
        for fixture, disk in zip(member.spec.fixtures, packed_fixtures(member), strict=True):
            if fixture.host != NOWHERE:
                await fixtures.pack(fixture, folder / disk.path.name, disk.serial)
        await in_thread(self.write_seed, member, lease)
        return packed_fixtures(member)

    def write_seed(self, member: MemberRecord, lease: Lease) -> None:
        """Write the member's seed, and its host key's line in `known_hosts`. Blocks."""
        folder = Path(member.folder)
        with disks.disk_errors(f"the seed of {member.name} cannot be written"):
            reach("member.seed")
            host_key = hostkeys.make_host_key(folder)
            hostkeys.add_known_host(self.cluster, member.name, lease.ip, host_key.public_text)
            reach("member.hostkey")
            seed = Seed(
                instance_id=member.instance,
                hostname=member.name,
                cluster=self.cluster,
                authorized_key=self.authorized_key,
                host_key=host_key,
                lease=lease,
                fixtures=member.spec.fixtures,
                control_line=self.capabilities.control_line if self._has_control_line(member) else "",
            )
            write_seed(folder / "seed.iso", seed)
            reach("member.seed.made")

    def config(
        self, member: MemberRecord, image: Image | None, lease: Lease, fixture_disks: tuple[Disk, ...]
    ) -> VMConfig:
        """The backend's configuration of the member's machine. Raises DiskError without its disk, HostError."""
        folder = Path(member.folder)
        return VMConfig(
            name=f"{self.cluster}/{member.name}",
            run_dir=paths.private_dir(paths.cluster_runtime_dir(self.cluster)),
            disks=(find_disk(folder, member.slot),),
            seed=folder / "seed.iso",
            boot=self.boot(member.spec, image),
            mac=lease.mac,
            cpus=member.spec.cpus,
            memory_bytes=member.spec.memory_bytes,
            serial_log=folder / "serial.log",
            fixtures=fixture_disks,
            assigned_ip=lease.ip,
            control_line=self._has_control_line(member),
            slot=member.slot,
            bound=self.bound,
        )

    def _has_control_line(self, member: MemberRecord) -> bool:
        return member.control_line and bool(self.capabilities.control_line)

    def boot(self, spec: MemberSpec, image: Image | None) -> DirectBoot | FirmwareBoot:
        """How a member starts. Raises ImageError, HostError when it cannot."""
        has_kernel = bool(spec.kernel or (image and image.kernel))
        wanted = spec.boot if spec.boot != "auto" else ("direct" if has_kernel else "firmware")
        if image is None:
            return FirmwareBoot()
        if wanted == "direct":
            if not has_kernel:
                raise ImageError(
                    f"the image {spec.image} cannot be booted directly",
                    why=image.boot_reason,
                    hint="use --boot firmware, or name a kernel with --kernel",
                )
            return DirectBoot(
                kernel=Path(spec.kernel or image.kernel),
                initrd=Path(image.initrd) if image.initrd else None,
                cmdline=f"root={image.root or '/dev/vda'} {CMDLINE}",
            )
        if not self.capabilities.firmware_boot:
            raise HostError("this backend cannot boot through firmware", hint="use --backend qemu")
        return FirmwareBoot()


def disk_in_slot(folder: Path, slot: int, disk_format: DiskFormat) -> Disk:
    """Where the disk of a member's machine in that slot is: `disk.qcow2`, or `disk.1.qcow2` in slot 1.

    The record's slot so tells the member's disk from one that a restore is making beside it, or has left.
    """
    return Disk(folder / f"disk{'.1' if slot else ''}.{disk_format}", disk_format)


def find_disk(folder: Path, slot: int = 0) -> Disk:
    """The member's disk in its folder; its format is in its name, never guessed from its content. Raises DiskError."""
    for disk_format in get_args(DiskFormat):
        disk = disk_in_slot(folder, slot, disk_format)
        if disk.path.exists():
            return disk
    raise DiskError(f"there is no disk in {folder}", hint="the member cannot be started; `fleetbox destroy` removes it")


def packed_fixtures(member: MemberRecord) -> tuple[Disk, ...]:
    """The disks of the member's fixtures as they stand in its folder."""
    folder = Path(member.folder)
    return tuple(
        Disk(folder / f"fixture-{number}.img", "raw", read_only=True, serial=fixtures.label(fixture.guest))
        for number, fixture in enumerate(member.spec.fixtures)
    )


def remove_slot(member: MemberRecord, slot: int) -> None:
    """Delete the disk of one of the member's slots; nothing when there is none. Blocks."""
    for disk_format in get_args(DiskFormat):
        disk = disk_in_slot(Path(member.folder), slot, disk_format)
        for path in (disk.path, lock_file(disk.path), disks.unfinished(disk.path)):
            path.unlink(missing_ok=True)


def new_member(
    cluster: ClusterRecord, name: str, member_id: str, spec: MemberSpec, mac: str, now: float, image_digest: str
) -> MemberRecord:
    """The placeholder of a member that is about to be made."""
    return MemberRecord(
        id=member_id,
        name=name,
        state=MemberState.CREATING,
        spec=spec,
        image_digest=image_digest,
        mac=mac,
        ip="",
        folder=str(paths.member_dir(cluster.name, name)),
        created_at=now,
        instance=f"i-{member_id}",
        maker=this_maker(),
    )


def _blank_disk(path: Path, size_bytes: int) -> None:
    try:
        with path.open("xb") as file:
            os.truncate(file.fileno(), size_bytes)
    except OSError as e:
        raise DiskError(f"the disk {path} cannot be made", why=e.strerror or str(e)) from e
