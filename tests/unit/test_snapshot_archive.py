"""Archives of snapshots: there and back, sparse, through pipes; and every damaged or hostile one refused."""

from __future__ import annotations

import io
import os
import random
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fleetbox import paths
from fleetbox.backends.host import disk as disks
from fleetbox.backends.host.files.worker import Stop, Stopped
from fleetbox.errors import ConflictError, DiskError, FleetboxError, HostError, SnapshotError
from fleetbox.holder.images.store import ImageStore
from fleetbox.holder.snapshots import archive
from fleetbox.holder.snapshots.overlay import backing_digest
from fleetbox.holder.snapshots.store import SnapshotStore
from fleetbox.snapshot import Snapshot
from tests.snapshots import IDENTITY, MIB, digest_of, exported, imported, left, put_image, put_snapshot

Go = Callable[[str], Path]


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Go:
    """Be on the host of that name; returns its home."""

    def go(host: str) -> Path:
        home = tmp_path / host
        monkeypatch.setenv("FLEETBOX_HOME", str(home))
        return home

    go("there")
    return go


def contents(snapshot: Snapshot) -> dict[str, str]:
    folder = SnapshotStore().folder(snapshot)
    return {file.path: digest_of(folder / file.path) for file in snapshot.files}


def blocks(snapshot: Snapshot) -> dict[str, int]:
    folder = SnapshotStore().folder(snapshot)
    return {file.path: (folder / file.path).stat().st_blocks for file in snapshot.files}


def test_there_and_back(go: Go, tmp_path: Path) -> None:
    made = put_snapshot()
    before, sparse_before = contents(made), blocks(made)
    data = exported(made, tmp_path / "a.tar")
    assert len(data) < MIB  # of 22 MiB, the rest are holes
    go("here")
    found = imported(tmp_path / "a.tar")
    assert contents(found) == before
    assert blocks(found) == sparse_before
    assert (found.id, found.name, found.identity, found.blobs) == (made.id, made.name, made.identity, made.blobs)
    assert SnapshotStore().find("saved") == found
    SnapshotStore().verify(found)
    [image] = ImageStore().images()
    assert image.digest == made.images[0]
    assert image.stored_bytes < 128 << 10
    assert Path(image.kernel).read_bytes() == b"kernel" * 100
    assert {p.split("/")[0] for p in left()} == {"snapshots", "images", "blobs"}


def test_an_archive_takes_no_name_and_no_path_of_this_host(go: Go, tmp_path: Path) -> None:
    exported(put_snapshot(), tmp_path / "a.tar")
    go("here")
    own = put_image(b"another")
    found = imported(tmp_path / "a.tar")
    assert ImageStore().inspect("debian-12").digest == own
    for member in found.members.values():
        assert (member.spec.image, member.spec.kernel, member.folder) == (member.image_digest, "", "")
        assert member.spec.memory_bytes == 512 * MIB


def test_what_is_here_is_not_stored_again(go: Go, tmp_path: Path) -> None:
    made = put_snapshot()
    data = exported(made, tmp_path / "a.tar")
    image = Path(ImageStore().inspect(made.images[0]).disk)
    inode = image.stat().st_ino
    again = imported(tmp_path / "a.tar")
    assert again.id != made.id
    assert again.name == "saved-2"
    assert image.stat().st_ino == inode
    assert ImageStore().inspect("debian-12").digest == made.images[0]
    with pytest.raises(ConflictError):
        imported(tmp_path / "a.tar", name="saved")
    assert imported(tmp_path / "a.tar", name="mine").name == "mine"
    go("small")
    stored = sum(len(m.extents and b"") or m.stored_bytes for m in header_of(data).files)
    with pytest.raises(SnapshotError, match="are allowed"):
        imported(tmp_path / "a.tar", max_bytes=stored - 1)
    assert left() == set()
    imported(tmp_path / "a.tar", max_bytes=stored)


def header_of(data: bytes) -> Any:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        first = tar.next()
        assert first is not None
        assert first.name == "snapshot.json"
        file = tar.extractfile(first)
        assert file is not None
        from fleetbox.holder.snapshots.header import Header

        return msgspec.json.decode(file.read(), type=Header)


def test_overlays_stand_on_our_own_blobs(go: Go, tmp_path: Path) -> None:
    made = put_snapshot(overlays=True)
    exported(made, tmp_path / "a.tar")
    go("here")
    found = imported(tmp_path / "a.tar")
    image, template = found.blobs
    assert image.digest == made.images[0]
    assert template.backing == image.digest
    blob = paths.blobs_dir() / f"{template.digest}.qcow2"
    assert digest_of(blob) == template.digest
    SnapshotStore().verify(found)
    assert backing_digest(blob) == image.digest
    for member in found.members.values():
        assert member.base == template.digest
        disk = SnapshotStore().folder(found) / member.name / "disk.qcow2"
        assert backing_digest(disk) == template.digest
        assert str(tmp_path / "there").encode() not in disk.read_bytes()[: 1 << 16].split(b"\0" * 64)[0]
    assert str(tmp_path / "here").encode() in blob.read_bytes()
    # A second one finds the same base disk.
    assert imported(tmp_path / "a.tar").blobs == found.blobs
    # And it goes on from here, to where the first one came from.
    exported(found, tmp_path / "b.tar")
    go("there")
    back = imported(tmp_path / "b.tar")
    assert back.images == made.images
    SnapshotStore().verify(back)


def test_through_a_pipe(go: Go, tmp_path: Path) -> None:
    made = put_snapshot()
    before = contents(made)
    reading, writing = os.pipe()

    def send() -> None:
        archive.export(made, writing, Stop())
        os.close(writing)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        incoming = archive.Incoming(reading)
        assert incoming.inspect(Stop()).name == "saved"
        sender_home = paths.data_dir()
        found = incoming.land(IDENTITY, "copy", Stop())
        assert paths.data_dir() == sender_home
        assert contents(found) == before
    finally:
        os.close(reading)
        sender.join()


@pytest.mark.parametrize("key", ["backend", "architecture", "cpu", "accelerator", "version"])
def test_another_kind_of_host_refuses(go: Go, tmp_path: Path, key: str) -> None:
    exported(put_snapshot(), tmp_path / "a.tar")
    go("here")
    with pytest.raises(HostError, match=key):
        imported(tmp_path / "a.tar", identity=IDENTITY | {key: "other"})
    assert left() == set()


def test_a_snapshot_that_is_not_whole_is_not_exported(go: Go, tmp_path: Path) -> None:
    made = put_snapshot()
    (SnapshotStore().folder(made) / "node-1" / "state").unlink()
    with pytest.raises(SnapshotError, match="not whole"):
        exported(made, tmp_path / "a.tar")
    Path(ImageStore().inspect(made.images[0]).disk).unlink()
    with pytest.raises(SnapshotError, match="not whole"):
        exported(made, tmp_path / "a.tar")


# --- damage


def test_every_cut_is_refused_and_leaves_nothing(go: Go, tmp_path: Path) -> None:
    data = exported(put_snapshot(members=1), tmp_path / "a.tar")
    go("here")
    chance = random.Random(3)
    cuts = {0, 1, 511, 512, 513, len(data) - 1, len(data) - 512} | {chance.randrange(len(data)) for _ in range(120)}
    for cut in sorted(cuts):
        (tmp_path / "cut.tar").write_bytes(data[:cut])
        with pytest.raises(SnapshotError):
            imported(tmp_path / "cut.tar")
        assert left() == set(), cut


def test_every_flipped_bit_is_refused_and_leaves_nothing(go: Go, tmp_path: Path) -> None:
    data = exported(put_snapshot(members=1), tmp_path / "a.tar")
    go("here")
    chance = random.Random(4)
    for _ in range(300):
        damaged = bytearray(data)
        # Half of them where the header is.
        at = chance.randrange(8192 if chance.random() < 0.5 else len(data))
        damaged[at] ^= 1 << chance.randrange(8)
        (tmp_path / "bad.tar").write_bytes(damaged)
        with pytest.raises(SnapshotError):
            imported(tmp_path / "bad.tar")
        assert left() == set(), at


def test_noise_is_refused(go: Go, tmp_path: Path) -> None:
    chance = random.Random(5)
    for size in (0, 1, 100, 512, 1024, 10240, 100_000):
        (tmp_path / "noise").write_bytes(chance.randbytes(size))
        with pytest.raises(SnapshotError):
            imported(tmp_path / "noise")
    (tmp_path / "zeros").write_bytes(bytes(10240))
    with pytest.raises(SnapshotError):
        imported(tmp_path / "zeros")


# --- interruption


@pytest.fixture
def plain(go: Go, tmp_path: Path) -> bytes:
    """An archive that is good; we are on another host."""
    data = exported(put_snapshot(members=1), tmp_path / "a.tar")
    go("here")
    return data


def test_a_stopped_import_leaves_nothing_also_when_its_stream_is_silent(go: Go, tmp_path: Path) -> None:
    data = exported(put_snapshot(members=1), tmp_path / "a.tar")
    go("here")
    chance = random.Random(6)
    for cut in (len(data) // 2, *(chance.randrange(9000, len(data) - 1) for _ in range(5))):
        reading, writing = os.pipe()
        sender = threading.Thread(target=lambda: os.write(writing, data[:cut]), daemon=True)  # noqa: B023 - joined
        sender.start()
        incoming, stop = archive.Incoming(reading), Stop()
        incoming.inspect(stop)
        threading.Timer(0.05, stop.set).start()
        with pytest.raises(Stopped):
            incoming.land(IDENTITY, "", stop)
        os.close(reading)
        with_pipe_closed = sender.join
        os.close(writing)
        with_pipe_closed()
        assert left() == set()


def test_a_full_disk_leaves_nothing(plain: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, room = os.pwrite, [50_000]

    def pwrite(fd: int, data: Any, offset: int) -> int:
        room[0] -= len(data)
        if room[0] < 0:
            raise OSError(28, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(DiskError, match="full"):
        imported(tmp_path / "a.tar")
    assert left() == set()


def test_too_little_space_is_told_before_anything_is_written(
    plain: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def preflight(folder: Path, needed_bytes: int) -> None:
        raise DiskError(f"{needed_bytes} are too many")

    monkeypatch.setattr(archive, "free_space_preflight", preflight)
    with pytest.raises(DiskError, match="too many"):
        imported(tmp_path / "a.tar")
    assert left() == set()
    assert disks.free_space_preflight is not preflight


def test_every_refusal_is_an_error_of_ours() -> None:
    assert issubclass(SnapshotError, FleetboxError)
