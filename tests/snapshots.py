"""A snapshot with all that it rests on, made of small sparse files."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from pathlib import Path

from fleetbox import paths
from fleetbox.backends.host.files.worker import Stop
from fleetbox.holder.images.store import ImageRecord, ImageStore
from fleetbox.holder.snapshots import archive
from fleetbox.holder.snapshots.store import SnapshotStore, blobs_under
from fleetbox.records import MemberRecord, MemberState
from fleetbox.snapshot import Snapshot
from fleetbox.specs import MemberSpec

MIB = 1 << 20
IDENTITY = {"backend": "qemu", "version": "7.2", "accelerator": "tcg", "cpu": "max", "architecture": "x86_64"}
SECRET = b"what the guest wrote"


def sparse(path: Path, size: int, *data: tuple[int, bytes]) -> None:
    """A file of `size` bytes with `data` at offsets and holes elsewhere."""
    with path.open("wb") as file:
        for offset, content in data:
            file.seek(offset)
            file.write(content)
        file.truncate(size)


def qcow2(path: Path, backing: Path, backing_format: str, *, content: bytes = b"") -> None:
    """An overlay on `backing`, with `content` written to its beginning."""
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", backing_format, "-b", str(backing), str(path)]
    subprocess.run(argv, check=True)
    if content:
        with_content = f"write -q -P {content[0]} 0 64k"
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", with_content, str(path)], check=True)


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def put_image(content: bytes = b"root file system") -> str:
    """An image of 4 MiB, mostly holes; returns its digest."""
    store = ImageStore()
    with store.staging() as folder:
        sparse(folder / "disk.raw", 4 * MIB, (0, content), (MIB, os.urandom(4096)))
        (folder / "kernel").write_bytes(b"kernel" * 100)
        (folder / "initrd").write_bytes(b"initrd" * 100)
        record = ImageRecord(
            digest=digest_of(folder / "disk.raw"),
            source="test",
            architecture="amd64",
            size_bytes=4 * MIB,
            created_at=time.time(),
            boot="direct",
            root="UUID=x",
            names=("debian-12",),
        )
        return store.publish(folder, folder / "disk.raw", record).digest


def put_template_disk(image: str) -> str:
    """A template's disk over the image's; returns its digest."""
    path = paths.blobs_dir() / "new"
    qcow2(path, paths.blobs_dir() / f"{image}.raw", "raw")
    digest = digest_of(path)
    path.rename(paths.blobs_dir() / f"{digest}.qcow2")
    return digest


def put_snapshot(name: str = "saved", *, overlays: bool = False, members: int = 2) -> Snapshot:
    """A cluster's snapshot: with `overlays` on a template's disk by real qcow2 files, else on a raw copy."""
    image = put_image()
    base = put_template_disk(image) if overlays else ""
    records = {}
    store = SnapshotStore()
    with store.staging() as folder:
        for number in range(1, members + 1):
            member = f"node-{number}"
            place = folder / member
            place.mkdir()
            sparse(place / "state", 3 * MIB, (MIB, SECRET * 100), (2 * MIB + 5, os.urandom(70000)))
            (place / "machine.json").write_text("{}")
            if overlays:
                qcow2(place / "disk.qcow2", paths.blobs_dir() / f"{base}.qcow2", "qcow2")
            else:
                sparse(place / "disk.raw", 8 * MIB, (5 * MIB, SECRET))
            records[member] = MemberRecord(
                id=f"{number:016x}",
                name=member,
                state=MemberState.RUNNING,
                spec=MemberSpec(image="debian-12", kernel="/etc/shadow", memory_bytes=512 * MIB),
                image_digest=image,
                base=base,
                mac=f"02:00:00:00:00:{number:02x}",
                ip=f"192.168.7.{number + 1}",
                folder="/somewhere/else",
                created_at=time.time(),
            )
        snapshot = Snapshot(
            id="abcd" * 4,
            name=name,
            description="before the test",
            kind="cluster",
            created_at=time.time(),
            cluster="lab",
            subnet="192.168.7.0/24",
            backend="qemu",
            accelerator="tcg",
            identity=IDENTITY,
            members=records,
            blobs=blobs_under(records.values()),
        )
        return store.publish(folder, snapshot)


def exported(snapshot: Snapshot, path: Path) -> bytes:
    """The snapshot's archive, which is then at `path`."""
    with path.open("wb", buffering=0) as file:
        archive.export(snapshot, file.fileno(), Stop())
    return path.read_bytes()


def imported(path: Path, *, name: str = "", max_bytes: int = 0, identity: dict[str, str] = IDENTITY) -> Snapshot:
    """The snapshot that the archive becomes here."""
    with path.open("rb", buffering=0) as file:
        incoming = archive.Incoming(file.fileno(), max_bytes)
        incoming.inspect(Stop())
        return incoming.land(identity, name, Stop())


def left() -> set[str]:
    """All files of this home that are no locks."""
    home = paths.data_dir()
    return {str(p.relative_to(home)) for p in home.rglob("*") if p.is_file() and not p.name.startswith(".lock")}
