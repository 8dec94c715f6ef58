"""Kernels are unpacked for firecracker: every way that the kernel's build packs them, and what is none."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import lz4.block
import pytest
import zstandard

from fleetbox import paths
from fleetbox.backends.firecracker import kernel
from fleetbox.backends.firecracker.kernel import bootable
from fleetbox.errors import ImageError

Pack = Callable[[bytes], bytes]


CODE_BYTES = 200_000
CODE = bytes(random.Random(7).choices(range(16), k=CODE_BYTES))


def elf(machine: int = 0x3E, size: int = 10_000_000) -> bytes:
    """An ELF header, zeros, and something like code: more than one lz4 block."""
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, machine)
    return head + bytes(max(0, size - CODE_BYTES)) + CODE[: size - len(head)]


def bzimage(payload: bytes, *, protocol: int = 0x20F, setup_sectors: int = 27, length: int | None = None) -> bytes:
    """A bzImage around a packed kernel, as arch/x86/boot/header.S lays it out."""
    image = bytearray(((setup_sectors or 4) + 1) * 512)
    image[0x1F1] = setup_sectors
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, protocol)
    struct.pack_into("<II", image, 0x248, 64, len(payload) if length is None else length)
    return bytes(image) + bytes(64) + payload + b"the end"


def sized(pack: Pack) -> Pack:
    """With the unpacked size behind it, as the build's `size_append` does."""
    return lambda data: pack(data) + struct.pack("<I", len(data))


def lz4_legacy(data: bytes) -> bytes:
    packed = b"\x02\x21\x4c\x18"
    for start in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[start : start + (8 << 20)], store_size=False)
        packed += struct.pack("<I", len(block)) + block
    return packed


XZ_FILTERS = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 1}]
PACKS: dict[str, Pack] = {
    "gzip": lambda data: gzip.compress(data, 1),
    "xz": sized(lambda data: lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=XZ_FILTERS)),
    "lzma": sized(lambda data: lzma.compress(data, lzma.FORMAT_ALONE, preset=1)),
    "bzip2": sized(lambda data: bz2.compress(data, 1)),
    "zstd": sized(lambda data: zstandard.ZstdCompressor(level=1).compress(data)),
    "lz4": sized(lz4_legacy),
    "none": lambda data: data,
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path / "home"))


def written(tmp_path: Path, data: bytes) -> Path:
    file = tmp_path / "kernel"
    file.write_bytes(data)
    return file


@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)
def test_every_packing_gives_the_kernel_back(tmp_path: Path, pack: Pack) -> None:
    found = bootable(written(tmp_path, bzimage(pack(elf()))))
    assert found.read_bytes() == elf()
    assert found.parent == paths.kernels_dir()
    assert [p.name for p in paths.kernels_dir().iterdir()] == [found.name]


def test_an_unpacked_kernel_is_kept(tmp_path: Path) -> None:
    file = written(tmp_path, bzimage(PACKS["lz4"](elf())))
    first = bootable(file)
    stamp = first.stat()
    assert bootable(file) == first
    assert first.stat().st_mtime_ns == stamp.st_mtime_ns
    file.write_bytes(bzimage(PACKS["gzip"](elf())))
    assert bootable(file) != first


@pytest.mark.parametrize("data", [elf(size=100), bytes(0x38) + b"ARM\x64" + bytes(100)], ids=["ELF", "Image"])
def test_what_needs_no_unpacking_is_used_as_it_is(tmp_path: Path, data: bytes) -> None:
    file = written(tmp_path, data)
    assert bootable(file) == file


def test_a_gzipped_arm64_image_is_unpacked(tmp_path: Path) -> None:
    image = bytes(0x38) + b"ARM\x64" + bytes(1000)
    assert bootable(written(tmp_path, gzip.compress(image))).read_bytes() == image


def test_old_images_have_four_setup_sectors(tmp_path: Path) -> None:
    assert bootable(written(tmp_path, bzimage(gzip.compress(elf(), 1), setup_sectors=0))).read_bytes() == elf()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no bzImage"),
        (b"MZ" + bytes(5000), "no bzImage"),
        (gzip.compress(b"hello", mtime=0), "not a raw kernel"),
        (bzimage(gzip.compress(elf()), protocol=0x207), "boot protocol 2.07"),
        (bzimage(gzip.compress(elf()), length=0), "cut off"),
        (bzimage(gzip.compress(elf()), length=1 << 31), "cut off"),
        (bzimage(b"")[:0x220], "cut off"),
        (bzimage(b"\x89LZO\x00" + bytes(100)), "not known"),
        (bzimage(gzip.compress(b"no ELF at all")), "not an ELF"),
        (bzimage(gzip.compress(elf(machine=0xB7))), "not an ELF"),
        (bzimage(gzip.compress(b"")), "nothing is packed"),
    ],
)
def test_what_is_no_kernel_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    file = written(tmp_path, data)
    with pytest.raises(ImageError, match=words) as caught:
        bootable(file)
    assert str(file) in caught.value.message
    assert not paths.kernels_dir().exists() or list(paths.kernels_dir().iterdir()) == []


# lz4's legacy frame and the kernel's zstd have no checksum: noise that keeps their lengths is not seen.
@pytest.mark.parametrize(
    ("name", "damage"),
    [(n, d) for n in PACKS for d in ("cut", "noise") if n != "none" and not (n in ("lz4", "zstd") and d == "noise")],
)
def test_a_damaged_stream_is_refused_and_leaves_nothing(tmp_path: Path, name: str, damage: str) -> None:
    packed = PACKS[name](elf(size=CODE_BYTES))
    middle = len(packed) // 2
    noise = random.Random(3).randbytes(256)
    packed = packed[:middle] if damage == "cut" else packed[:middle] + noise + packed[middle + 256 :]
    with pytest.raises(ImageError, match=r"damaged|cut off"):
        bootable(written(tmp_path, bzimage(packed)))
    assert list(paths.kernels_dir().iterdir()) == []


@pytest.mark.parametrize("name", [name for name in PACKS if name != "none"])
def test_a_bomb_is_stopped_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    bomb = elf(size=100)[:64] + bytes(64 << 20)
    file = written(tmp_path, bzimage(PACKS[name](bomb)))
    del bomb
    monkeypatch.setattr(kernel, "MAX_ELF_BYTES", 8 << 20)
    tracemalloc.start()
    with pytest.raises(ImageError, match="more than 8 MiB"):
        bootable(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20


def test_too_large_a_kernel_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "MAX_KERNEL_BYTES", 1 << 10)
    with pytest.raises(ImageError, match="more than"):
        bootable(written(tmp_path, bzimage(gzip.compress(elf(size=100_000)))))


def test_a_kernel_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        bootable(tmp_path / "none")
