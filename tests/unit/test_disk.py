"""Disks: made cheaply, grown, never shrunk; foreign ones refused when they reach outside."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import struct
import subprocess
import threading
from pathlib import Path

import pytest

from fleetbox.backends.base import Disk, DiskFormat
from fleetbox.backends.host import disk as disks
from fleetbox.errors import DiskError
from fleetbox.sizes import MIB


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A sparse raw disk of 64 MiB with data at 1 MiB and at its end."""
    path = tmp_path / "base, with: odd name.raw"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(MIB)
        file.write(b"begin" * 1000)
        file.seek(64 * MIB - 3)
        file.write(b"end")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "member"
    path.mkdir()
    return path


def make(base: Path, folder: Path, size_bytes: int = 0, formats: tuple[DiskFormat, ...] = ("raw",)) -> Disk:
    return asyncio.run(disks.make_disk(base, folder, size_bytes, formats))


def content(disk: Disk, tmp_path: Path) -> bytes:
    """What a guest would read from the disk."""
    if disk.format == "raw":
        return disk.path.read_bytes()
    out = tmp_path / "out.raw"
    subprocess.run(["qemu-img", "convert", "-f", disk.format, "-O", "raw", disk.path, out], check=True)
    return out.read_bytes()


@pytest.mark.parametrize("formats", [("raw",), ("raw", "qcow2")])
def test_begins_as_its_base_and_grows(
    base: Path, folder: Path, tmp_path: Path, formats: tuple[DiskFormat, ...]
) -> None:
    disk = make(base, folder, 100 * MIB, formats)
    assert disk.path == folder / f"disk.{formats[-1]}"
    assert disk.format == formats[-1]
    assert content(disk, tmp_path) == base.read_bytes() + bytes(36 * MIB)
    info = asyncio.run(disks.disk_info(disk))
    assert info.virtual_bytes == 100 * MIB
    assert info.backing == (base if disk.format == "qcow2" else None)
    assert info.allocated_bytes == disk.path.stat().st_blocks * 512 < 2 * MIB
    assert stat.S_IMODE(disk.path.stat().st_mode) == 0o600
    assert list(folder.iterdir()) == [disk.path]


def test_size_zero_keeps_the_bases_size_and_sizes_are_whole_sectors(base: Path, folder: Path) -> None:
    os.truncate(base, 64 * MIB + 1)
    assert make(base, folder).path.stat().st_size == 64 * MIB + 512


@pytest.mark.parametrize("formats", [("raw",), ("raw", "qcow2")])
def test_shrinking_is_refused_with_the_size_that_works(
    base: Path, folder: Path, formats: tuple[DiskFormat, ...]
) -> None:
    with pytest.raises(DiskError, match="cannot shrink") as caught:
        make(base, folder, 63 * MIB, formats)
    assert "64M" in caught.value.hint
    assert not list(folder.iterdir())


def test_an_existing_disk_is_never_overwritten(base: Path, folder: Path) -> None:
    disk = make(base, folder)
    disk.path.write_text("precious")
    with pytest.raises(DiskError, match="already"):
        make(base, folder)
    assert disk.path.read_text() == "precious"


@pytest.mark.parametrize("formats", [("raw",), ("raw", "qcow2")])
def test_a_missing_base_is_named(tmp_path: Path, folder: Path, formats: tuple[DiskFormat, ...]) -> None:
    with pytest.raises(DiskError, match="nowhere"):
        make(tmp_path / "nowhere", folder, 0, formats)
    assert not list(folder.iterdir())


def test_what_a_killed_copy_left_is_replaced(base: Path, folder: Path) -> None:
    (folder / ".disk.raw.new").write_bytes(b"x" * (65 * MIB))
    disk = make(base, folder)
    assert disk.path.read_bytes() == base.read_bytes()
    assert list(folder.iterdir()) == [disk.path]


def test_a_full_disk_is_said_and_nothing_stays(base: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fcntl.ioctl", full)  # no reflinks here
    monkeypatch.setattr(os, "sendfile", full)
    with pytest.raises(DiskError) as caught:
        make(base, folder)
    assert caught.value.why == "the disk is full"
    assert not list(folder.iterdir())


def test_a_cancelled_copy_leaves_nothing(base: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copying, cancelled = threading.Event(), threading.Event()
    extents = disks.data_extents

    def slow(fd: int, size_bytes: int) -> list[tuple[int, int]]:
        copying.set()
        cancelled.wait()
        return list(extents(fd, size_bytes))

    monkeypatch.setattr(disks, "data_extents", slow)
    monkeypatch.setattr(disks, "_FICLONE", 0)

    async def main() -> None:
        task = asyncio.create_task(disks.make_disk(base, folder, 0, ("raw",)))
        await asyncio.to_thread(copying.wait)
        task.cancel()
        asyncio.get_running_loop().call_later(0, cancelled.set)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert not list(folder.iterdir())


@pytest.mark.parametrize("formats", [("raw",), ("raw", "qcow2")])
def test_growing_keeps_the_content(base: Path, folder: Path, tmp_path: Path, formats: tuple[DiskFormat, ...]) -> None:
    disk = make(base, folder, 0, formats)
    asyncio.run(disks.grow_disk(disk, 70 * MIB))
    asyncio.run(disks.grow_disk(disk, 70 * MIB))
    assert content(disk, tmp_path) == base.read_bytes() + bytes(6 * MIB)
    with pytest.raises(DiskError, match="cannot shrink"):
        asyncio.run(disks.grow_disk(disk, 69 * MIB))


def test_a_disk_in_use_does_not_grow(base: Path, folder: Path) -> None:
    disk = make(base, folder, 0, ("qcow2",))
    with subprocess.Popen(["qemu-io", "-f", "qcow2", disk.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdin is not None
        assert user.stdout is not None
        user.stdin.write(b"length\n")
        user.stdin.flush()
        user.stdout.readline()  # the image is open and locked
        assert asyncio.run(disks.disk_info(disk)).virtual_bytes == 64 * MIB
        with pytest.raises(DiskError) as caught:
            asyncio.run(disks.grow_disk(disk, 70 * MIB))
        assert caught.value.why == "a machine is using it"


def test_a_broken_disk_is_named(folder: Path) -> None:
    path = folder / "disk.qcow2"
    path.write_text("not qcow2")
    with pytest.raises(DiskError, match=r"disk\.qcow2 cannot be read"):
        asyncio.run(disks.disk_info(Disk(path, "qcow2")))


def test_space_is_checked_before(tmp_path: Path) -> None:
    disks.free_space_preflight(tmp_path, 1)
    with pytest.raises(DiskError, match="too little space") as caught:
        disks.free_space_preflight(tmp_path, 1 << 60)
    assert "1048576.0T" in caught.value.why
    with pytest.raises(DiskError, match="nowhere"):
        disks.free_space_preflight(tmp_path / "nowhere", 1)


# --- files from outside -----------------------------------------------------------------------------------------------


def qcow2(path: Path, *options: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, "1M"], check=True)
    return path


def patch(path: Path, offset: int, form: str, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack(form, value))


def test_self_contained_files_pass(tmp_path: Path, base: Path) -> None:
    assert disks.refuse_foreign(base) == "raw"
    assert disks.refuse_foreign(qcow2(tmp_path / "v3")) == "qcow2"
    assert disks.refuse_foreign(qcow2(tmp_path / "v2", "-o", "compat=0.10")) == "qcow2"
    (tmp_path / "empty").touch()
    assert disks.refuse_foreign(tmp_path / "empty") == "raw"


def test_a_backing_file_is_refused(tmp_path: Path) -> None:
    path = qcow2(tmp_path / "evil", "-u", "-F", "raw", "-b", "/etc/shadow")
    with pytest.raises(DiskError) as caught:
        disks.refuse_foreign(path)
    assert caught.value.why == "it stands on a backing file"
    assert "convert" in caught.value.hint


def test_an_old_format_backing_file_is_refused(tmp_path: Path) -> None:
    path = qcow2(tmp_path / "evil", "-u", "-F", "raw", "-b", "/etc/shadow", "-o", "compat=0.10")
    with pytest.raises(DiskError, match="refused"):
        disks.refuse_foreign(path)


@pytest.mark.parametrize("raw", ["on", "off"])
def test_an_external_data_file_is_refused(tmp_path: Path, raw: str) -> None:
    path = qcow2(tmp_path / "evil", "-o", f"data_file={tmp_path}/data,data_file_raw={raw}")
    with pytest.raises(DiskError) as caught:
        disks.refuse_foreign(path)
    assert caught.value.why == "its data is in another file"
    patch(path, 72, ">Q", 0)  # the header extension that names the file is still there
    with pytest.raises(DiskError, match="names another file"):
        disks.refuse_foreign(path)


@pytest.mark.parametrize(
    ("offset", "form", "value", "why"),
    [
        (4, ">I", 1, "version 1"),
        (32, ">I", 2, "encrypted"),
        (72, ">Q", 2, "corrupt"),
        (100, ">I", 1 << 31, "cut off"),
    ],
)
def test_other_headers_are_refused(tmp_path: Path, offset: int, form: str, value: int, why: str) -> None:
    path = qcow2(tmp_path / "odd")
    patch(path, offset, form, value)
    with pytest.raises(DiskError, match=why):
        disks.refuse_foreign(path)


def test_a_cut_off_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(qcow2(tmp_path / "whole").read_bytes()[:60])
    with pytest.raises(DiskError, match="cut off"):
        disks.refuse_foreign(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="nowhere"):
        disks.refuse_foreign(tmp_path / "nowhere")


def test_a_qcow2_header_written_by_a_guest_stays_data(tmp_path: Path, folder: Path) -> None:
    """A raw disk whose guest wrote a qcow2 header with a backing file into it is still opened as raw."""
    evil = qcow2(tmp_path / "evil", "-u", "-F", "raw", "-b", "/etc/shadow").read_bytes()
    base = tmp_path / "base.raw"
    base.write_bytes(evil + bytes(MIB - len(evil) % MIB))
    formats: tuple[DiskFormat, ...] = ("raw", "qcow2")
    for form in formats:
        disk = make(base, folder, 0, (form,))
        assert asyncio.run(disks.disk_info(disk)).virtual_bytes == base.stat().st_size
        assert content(disk, tmp_path) == base.read_bytes()
