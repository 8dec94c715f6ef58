"""Kernels read out of whole-disk and partitioned images."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleetbox.holder.images.kernel import extract
from tests.diskimages import MIB, UUID, make_ext4, make_partitioned, make_tree, root_files


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def test_a_whole_disk_file_system(tmp_path: Path, out: Path) -> None:
    files = root_files()
    disk = make_ext4(tmp_path / "disk.raw", make_tree(tmp_path / "tree", files))
    boot = extract(disk, out)
    assert (boot.root, boot.architecture, boot.has_systemd, boot.reason) == (f"UUID={UUID}", "amd64", True, "")
    assert (out / "kernel").read_bytes() == files["boot/vmlinuz-6.1.0-1-cloud-amd64"]
    assert (out / "initrd").read_bytes() == b"initrd of first"


@pytest.mark.parametrize("label", ["gpt", "dos"])
def test_a_partition(tmp_path: Path, out: Path, label: str) -> None:
    disk = make_partitioned(tmp_path / "disk.raw", [make_tree(tmp_path / "tree", root_files())], label)
    assert extract(disk, out).root == f"UUID={UUID[:-1]}a"
    assert (out / "initrd").read_bytes() == b"initrd of first"


def test_a_boot_partition_of_its_own(tmp_path: Path, out: Path) -> None:
    root = make_tree(tmp_path / "root", {"etc/hostname": b"x", "usr/bin/true": b"x", "boot/grub/grub.cfg": b""})
    boot = make_tree(tmp_path / "boot", {Path(n).name: d for n, d in root_files().items() if n.startswith("boot/")})
    result = extract(make_partitioned(tmp_path / "disk.raw", [boot, root]), out)
    assert (result.root, result.has_systemd) == (f"UUID={UUID[:-1]}b", False)
    assert (out / "initrd").read_bytes() == b"initrd of first"


def test_the_newest_of_several_kernels(tmp_path: Path, out: Path) -> None:
    versions = {"6.1.0-9-amd64": b"nine", "6.1.0-10-amd64": b"ten", "5.19.0-44-amd64": b"old"}
    disk = make_ext4(tmp_path / "disk.raw", make_tree(tmp_path / "tree", root_files(versions)))
    assert not extract(disk, out).reason
    assert (out / "initrd").read_bytes() == b"initrd of ten"


def test_a_kernel_without_its_initrd_gives_way_to_an_older_one(tmp_path: Path, out: Path) -> None:
    files = root_files({"6.1.0-9-amd64": b"nine", "6.1.0-10-amd64": b"ten"})
    del files["boot/initrd.img-6.1.0-10-amd64"]
    extract(make_ext4(tmp_path / "disk.raw", make_tree(tmp_path / "tree", files)), out)
    assert (out / "initrd").read_bytes() == b"initrd of nine"


def test_a_folder_with_spaces(tmp_path: Path) -> None:
    out = tmp_path / "an odd folder"
    out.mkdir()
    disk = make_ext4(out / "a disk.raw", make_tree(tmp_path / "tree", root_files()))
    assert not extract(disk, out).reason
    assert (out / "initrd").read_bytes() == b"initrd of first"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"etc/hostname": b"x", "usr/bin/true": b"x"}, "no kernel"),
        ({"data": b"x"}, "no ext file system of its disk is a root"),
        (root_files() | {"boot/vmlinuz-6.1.0-1-cloud-amd64": b"no kernel at all"}, "cannot be read"),
    ],
)
def test_what_is_not_found_is_said(tmp_path: Path, out: Path, files: dict[str, bytes], reason: str) -> None:
    disk = make_ext4(tmp_path / "disk.raw", make_tree(tmp_path / "tree", files))
    boot = extract(disk, out)
    assert reason in boot.reason
    assert not boot.root
    assert list(out.iterdir()) == []


def test_a_disk_without_ext(tmp_path: Path, out: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(4 * MIB))
    assert "no ext file system" in extract(disk, out).reason


def test_hostile_names_in_the_image_reach_nothing(tmp_path: Path, out: Path) -> None:
    files = root_files() | {'boot/vmlinuz-9" "': b"x", "boot/initrd.img-9\nquit": b"x", "boot/vmlinuz-8;rm": b"x"}
    disk = make_ext4(tmp_path / "disk.raw", make_tree(tmp_path / "tree", files))
    extract(disk, out)
    assert sorted(p.name for p in out.iterdir()) == ["initrd", "kernel"]
    assert (out / "initrd").read_bytes() == b"initrd of first"
