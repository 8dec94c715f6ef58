"""What becomes a stored disk, and what is refused: truncated, foreign and malicious files."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import struct
from pathlib import Path

import pytest

from fleetbox.backends.host.files.sparse import copy_file, digest_file
from fleetbox.backends.host.files.worker import Stop, Stopped
from fleetbox.errors import ImageError
from fleetbox.holder.images.convert import probe, to_raw
from tests.diskimages import MIB, make_ext4, make_partitioned, make_qcow2, make_tree, root_files


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_ext4(tmp_path / "disk.raw", make_tree(tmp_path / "tree", root_files()))


def convert(source: Path, target: Path, sha256: str = "") -> str:
    return asyncio.run(to_raw(source, target, source.name, sha256, lambda _: None))


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_raw_is_copied_as_it_is_and_sparse(raw: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    assert convert(raw, target) == sha256_of(raw) == sha256_of(target)
    assert target.stat().st_blocks * 512 < target.stat().st_size / 2


def test_written_zeros_become_holes(raw: Path, tmp_path: Path) -> None:
    full, target = tmp_path / "full.raw", tmp_path / "target"
    full.write_bytes(raw.read_bytes())
    assert convert(full, target) == sha256_of(raw)
    assert target.read_bytes() == full.read_bytes()


def test_qcow2_becomes_the_same_disk(raw: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    qcow2 = make_qcow2(tmp_path / "disk.qcow2", raw)
    assert convert(qcow2, target, sha256_of(qcow2)) == sha256_of(raw)
    assert target.read_bytes() == raw.read_bytes()


def test_names_that_look_like_protocols_are_files(raw: Path, tmp_path: Path) -> None:
    odd = make_qcow2(tmp_path / 'json:{"a, b".qcow2', raw)
    assert convert(odd, tmp_path / "target") == sha256_of(raw)


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_wrong_digest_is_refused(raw: Path, tmp_path: Path, kind: str) -> None:
    source = raw if kind == "raw" else make_qcow2(tmp_path / "disk.qcow2", raw)
    with pytest.raises(ImageError, match="not the file"):
        convert(source, tmp_path / "target", "0" * 64)


def craft_qcow2(path: Path, *, backing: bytes = b"", features: int = 0, crypt: int = 0, size: int = 16 * MIB) -> Path:
    """A qcow2 header by hand, as QEMU's docs/interop/qcow2.txt lays it out."""
    header = b"QFI\xfb" + struct.pack(
        ">IQIIQIIQQIIQ", 3, 104 if backing else 0, len(backing), 16, size, crypt, 1, 0x10000, 0x20000, 1, 0, 0
    )
    header += struct.pack(">QQQII", features, 0, 0, 4, 104)
    path.write_bytes((header + backing).ljust(0x30000, b"\0"))
    return path


@pytest.mark.parametrize("backing", [b"/etc/shadow", b"json:{}", b"nbd://127.0.0.1/x", b"x" * 1023])
def test_a_backing_file_is_refused(tmp_path: Path, backing: bytes) -> None:
    with pytest.raises(ImageError, match="backing") as caught:
        convert(craft_qcow2(tmp_path / "evil.qcow2", backing=backing), tmp_path / "target")
    assert "flatten" in caught.value.hint
    assert not (tmp_path / "target").exists()


def test_an_external_data_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="external data"):
        convert(craft_qcow2(tmp_path / "evil.qcow2", features=1 << 2), tmp_path / "target")


def test_encryption_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="encrypted"):
        convert(craft_qcow2(tmp_path / "locked.qcow2", crypt=1), tmp_path / "target")


def test_a_raw_disk_that_a_guest_made_look_like_qcow2_is_refused(raw: Path, tmp_path: Path) -> None:
    data = raw.read_bytes()
    header = craft_qcow2(tmp_path / "header", backing=b"/etc/shadow").read_bytes()[:512]
    raw.write_bytes(header + data[512:])
    with pytest.raises(ImageError, match="backing"):
        convert(raw, tmp_path / "target")


@pytest.mark.parametrize("keep", [3, 60, 70_000, 2_000_000])
def test_a_truncated_qcow2_is_refused(tmp_path: Path, keep: int) -> None:
    tree = make_tree(tmp_path / "tree", root_files() | {"blob": os.urandom(4 * MIB)})
    qcow2 = make_qcow2(tmp_path / "disk.qcow2", make_ext4(tmp_path / "disk.raw", tree))
    os.truncate(qcow2, keep)
    with pytest.raises(ImageError):
        convert(qcow2, tmp_path / "target")


def test_a_truncated_raw_disk_is_refused(raw: Path, tmp_path: Path) -> None:
    os.truncate(raw, 10 * MIB)
    with pytest.raises(ImageError, match="cut off"):
        convert(raw, tmp_path / "target")
    parted = make_partitioned(tmp_path / "parted.raw", [tmp_path / "tree"])
    os.truncate(parted, 10 * MIB)
    with pytest.raises(ImageError, match="cut off"):
        convert(parted, tmp_path / "target")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"hello, this is no disk\n" * 1000, "neither"),
        (b"x", "neither"),
        (b"<!DOCTYPE html>" + bytes(5000), "neither"),
        (b"\x1f\x8b" + bytes(5000), "gzip"),
        (b"\xfd7zXZ\x00" + bytes(5000), "xz"),
        (b"KDMV" + bytes(5000), "VMware"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, why: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(ImageError, match=why) as caught:
        convert(file, tmp_path / "target")
    assert caught.value.hint


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="there is no image file"):
        probe(tmp_path / "nothing", "nothing")
    with pytest.raises(ImageError, match="not a regular file"):
        probe(tmp_path, "folder")
    with pytest.raises(ImageError, match="not a regular file"):
        probe(Path("/dev/null"), "null")


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_full_disk_is_said(tmp_path: Path, kind: str) -> None:
    tree = make_tree(tmp_path / "tree", root_files() | {"blob": os.urandom(6 * MIB)})
    source = make_ext4(tmp_path / "disk.raw", tree)
    if kind == "qcow2":
        source = make_qcow2(tmp_path / "disk.qcow2", source)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * MIB, hard))
    try:
        with pytest.raises(ImageError, match=r"cannot be (stored|converted)"):
            convert(source, tmp_path / "target")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_copy_can_be_stopped(raw: Path, tmp_path: Path) -> None:
    stop = Stop()
    stop.set()
    with pytest.raises(Stopped):
        copy_file(raw, tmp_path / "target", stop)
    with pytest.raises(Stopped):
        digest_file(raw, stop)
