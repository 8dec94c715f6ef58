"""Packing host folders into read-only disks, looked at with e2fsprogs' own eyes."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from pathlib import Path

import pytest

from fleetbox.errors import DiskError, HostError, UsageError
from fleetbox.holder.guest import fixtures
from fleetbox.specs import Fixture

LABEL = fixtures.label("/srv/data")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "fixture-0.img"


def pack(folder: Path, image: Path) -> None:
    asyncio.run(fixtures.pack(Fixture(str(folder), "/srv/data"), image, LABEL))


def debugfs(image: Path, command: str) -> str:
    return subprocess.run(["debugfs", "-R", command, image], capture_output=True, text=True, check=True).stdout


def check(image: Path) -> None:
    subprocess.run(["e2fsck", "-fn", image], capture_output=True, check=True)


def test_labels_fit_and_differ() -> None:
    assert len(LABEL) == 16
    assert fixtures.label("/srv/data2") != LABEL


def test_a_folder_comes_as_it_is(folder: Path, image: Path, tmp_path: Path) -> None:
    (folder / "sub dir" / "é").mkdir(parents=True)
    (folder / "sub dir" / "é" / "file").write_bytes(b"content" * 5000)
    (folder / "script").write_text("#!/bin/sh\n")
    (folder / "script").chmod(0o755)
    (folder / "link").symlink_to("sub dir/é/file")
    (folder / "long").symlink_to("x" * 200)
    (folder / "hard").hardlink_to(folder / "script")
    folder.chmod(0o700)
    disk = asyncio.run(fixtures.pack(Fixture(str(folder), "/srv/data"), image, LABEL))
    assert (disk.path, disk.format, disk.read_only, disk.serial) == (image, "raw", True, LABEL)
    check(image)
    subprocess.run(["debugfs", "-R", f'dump "/sub dir/é/file" {tmp_path}/out', image], capture_output=True, check=True)
    assert (tmp_path / "out").read_bytes() == b"content" * 5000
    assert '"sub dir/é/file"' in debugfs(image, "stat link")
    assert debugfs(image, "cat long") == "x" * 200
    assert "Links: 2" in debugfs(image, "stat hard")
    assert "Mode:  0755" in debugfs(image, "stat script")
    top = debugfs(image, "stat /")
    assert "Mode:  0755" in top
    assert "User:     0   Group:     0" in top
    assert "lost+found" not in debugfs(image, "ls /")
    found = subprocess.run(["blkid", "-p", "-o", "value", "-s", "LABEL", image], capture_output=True, check=True)
    assert found.stdout.decode().strip() == LABEL


def test_an_empty_folder_and_special_files(folder: Path, image: Path) -> None:
    pack(folder, image)
    check(image)
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(folder / "socket"))
        pack(folder, image)
    check(image)
    assert "FIFO" in debugfs(image, "stat pipe")


def test_many_small_files_fit(folder: Path, image: Path) -> None:
    for number in range(3000):
        (folder / f"a-rather-long-name-for-a-small-file-{number:05}").write_text("x")
    pack(folder, image)
    check(image)
    assert debugfs(image, "ls -p /").count("a-rather-long-name") == 3000


def test_holes_take_no_space(folder: Path, image: Path) -> None:
    with (folder / "sparse").open("wb") as file:
        file.truncate(2 << 30)
    (folder / "real").write_bytes(os.urandom(1 << 20))
    pack(folder, image)
    check(image)
    assert image.stat().st_blocks * 512 < 16 << 20


def test_packing_again_shows_the_folder_as_it_is_now(folder: Path, image: Path) -> None:
    (folder / "old").write_text("old")
    pack(folder, image)
    (folder / "old").unlink()
    (folder / "new").write_text("new")
    pack(folder, image)
    names = debugfs(image, "ls -p /")
    assert "/new/" in names
    assert "/old/" not in names
    assert sorted(p.name for p in image.parent.iterdir()) == ["fixture-0.img", "folder"]


def test_a_failure_keeps_the_image_that_was_there(folder: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image.write_text("old")
    (folder / "file").write_text("x")
    monkeypatch.setattr(fixtures, "_measure", lambda folder: fixtures._Content(0, 0, 10**18))
    with pytest.raises(DiskError, match="too little space"):
        pack(folder, image)
    (folder / "big").write_bytes(b"x" * (64 << 20))
    monkeypatch.setattr(fixtures, "_measure", lambda folder: fixtures._Content(0, 0, 0))
    with pytest.raises(DiskError, match="cannot be packed"):
        pack(folder, image)
    assert image.read_text() == "old"
    assert sorted(p.name for p in image.parent.iterdir()) == ["fixture-0.img", "folder"]


def test_a_cancelled_packing_leaves_nothing(folder: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def cancelled(*args: object, **kwargs: object) -> bytes:
        raise asyncio.CancelledError

    monkeypatch.setattr("fleetbox.backends.host.process.run", cancelled)

    async def main() -> None:
        with pytest.raises(asyncio.CancelledError):
            await fixtures.pack(Fixture(str(folder), "/srv/data"), image, LABEL)

    asyncio.run(main())
    assert list(image.parent.iterdir()) == [folder]


def test_a_missing_folder_is_named(folder: Path, image: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        pack(folder / "nowhere", image)


def test_an_unreadable_file_is_named(folder: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "secret").write_text("x")
    monkeypatch.setattr(os, "access", lambda path, mode, **kwargs: not str(path).endswith("secret"))  # root reads all
    with pytest.raises(UsageError) as caught:
        pack(folder, image)
    assert f"{folder}/secret" in caught.value.why


def test_a_folder_that_holds_the_image_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="own data"):
        pack(folder, folder / "data" / "fixture-0.img")


def test_missing_mke2fs_is_a_host_error(folder: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetbox.backends.host.programs.search_path", lambda: str(folder))
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(HostError, match="mke2fs"):
        pack(folder, image)
