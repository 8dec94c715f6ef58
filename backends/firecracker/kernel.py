"""The kernel as firecracker takes it: on x86-64 an uncompressed ELF, on aarch64 a raw Image.

Distributions ship a bzImage, which holds the ELF compressed (Documentation/arch/x86/boot.rst, "payload_offset"), and on
aarch64 sometimes a gzipped Image. What is unpacked is kept in the cache by the kernel's digest. An image's kernel is
whatever its maker put there: everything is read with limits.
"""

from __future__ import annotations

import bz2
import functools
import hashlib
import io
import lzma
import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import lz4.block
import zstandard

from fleetbox import paths
from fleetbox.errors import ImageError

MAX_KERNEL_BYTES = 512 << 20
MAX_ELF_BYTES = 1 << 30
_CHUNK = 1 << 20
_LZMA_MEMORY_BYTES = 256 << 20
_ZSTD_WINDOW_BYTES = 128 << 20  # the kernel is packed with --ultra -22
_LZ4_BLOCK_BYTES = 8 << 20  # of the legacy frame, which the kernel uses

_ELF = b"\x7fELF\x02\x01"  # 64 bit, little endian
_ELF_X86_64 = 0x3E
_ARM64 = b"ARM\x64"  # at 0x38 of a raw Image
_BZIMAGE = b"HdrS"  # at 0x202
_OLDEST_PROTOCOL = 0x208  # has payload_offset

Chunks = Iterator[bytes]


class _Damaged(Exception):
    """The packed kernel cannot be read, for the reason in words."""


def bootable(kernel: Path) -> Path:
    """The kernel itself when firecracker takes it as it is, else an unpacked one in the cache. Blocks.

    Raises ImageError when it is none that can be used.
    """
    try:
        info = kernel.stat()
        with kernel.open("rb") as file:
            head = file.read(0x250)
        if head.startswith(_ELF) or head[0x38:0x3C] == _ARM64:
            return kernel
        digest = _digest(kernel, info.st_size, info.st_mtime_ns, info.st_ino)
        target = paths.kernels_dir() / digest
        if not target.exists():
            _land(kernel, target)
    except _Damaged as e:
        raise ImageError(
            f"firecracker cannot boot the kernel {kernel}",
            why=str(e),
            hint="name another one with --kernel, or use another --backend",
        ) from e
    except OSError as e:
        raise ImageError(f"the kernel {kernel} cannot be unpacked", why=e.strerror or str(e)) from e
    return target


@functools.lru_cache(maxsize=16)
def _digest(kernel: Path, _size_bytes: int, _mtime_ns: int, _inode: int) -> str:
    with kernel.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _land(kernel: Path, target: Path) -> None:
    if kernel.stat().st_size > MAX_KERNEL_BYTES:
        raise _Damaged(f"it has more than {MAX_KERNEL_BYTES >> 20} MiB")
    target.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=target.parent, prefix=".unpacked.")
    try:
        with os.fdopen(fd, "wb") as file:
            for chunk in unpacked(kernel.read_bytes()):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def unpacked(data: bytes) -> Chunks:
    """The ELF or raw Image in a packed kernel, piece by piece. Raises _Damaged."""
    if data[0x202:0x206] == _BZIMAGE:
        wanted, payload = "an ELF kernel for x86-64", _payload(data)
    elif data.startswith(b"\x1f\x8b"):
        wanted, payload = "a raw kernel for arm64", data
    else:
        raise _Damaged("it is no bzImage, ELF or raw Image")
    total, decompress = 0, _decompressor(payload)
    for number, chunk in enumerate(decompress(payload)):
        if number == 0 and not (_is_elf(chunk) if "ELF" in wanted else chunk[0x38:0x3C] == _ARM64):
            raise _Damaged(f"what is packed in it is not {wanted}")
        total += len(chunk)
        if total > MAX_ELF_BYTES:
            raise _Damaged(f"unpacked it has more than {MAX_ELF_BYTES >> 20} MiB")
        yield chunk
    if total == 0:
        raise _Damaged("nothing is packed in it")
    if (
        decompress not in (_gzip, _plain)
        and total % (1 << 32) != struct.unpack_from("<I", payload, len(payload) - 4)[0]
    ):
        raise _Damaged("it is damaged or cut off: it has another size than it says")


def _is_elf(head: bytes) -> bool:
    return head.startswith(_ELF) and len(head) >= 0x40 and struct.unpack_from("<H", head, 0x12)[0] == _ELF_X86_64


def _payload(data: bytes) -> bytes:
    """The packed kernel in a bzImage."""
    if len(data) < 0x250:
        raise _Damaged("it is cut off")
    (protocol,) = struct.unpack_from("<H", data, 0x206)
    if protocol < _OLDEST_PROTOCOL:
        raise _Damaged(f"its boot protocol {protocol >> 8}.{protocol & 0xFF:02} does not tell where the kernel is")
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = ((data[0x1F1] or 4) + 1) * 512 + offset
    if not length or start + length > len(data):
        raise _Damaged("it is cut off")
    return data[start : start + length]


def _decompressor(payload: bytes) -> Callable[[bytes], Chunks]:
    for magic, decompress in _FORMATS.items():
        if payload.startswith(magic):
            return decompress
    raise _Damaged(f"it is packed in a way that is not known (it begins with {payload[:4].hex()})")


# The build appends the unpacked size to every format but gzip, which has it anyway: that is not part of the stream.


def _gzip(payload: bytes) -> Chunks:
    stream = zlib.decompressobj(wbits=31)
    try:
        data = stream.decompress(payload, _CHUNK)
        while data:
            yield data
            data = stream.decompress(stream.unconsumed_tail, _CHUNK)
    except zlib.error as e:
        raise _Damaged(f"its gzip stream is damaged: {e}") from e
    if not stream.eof:
        raise _Damaged("its gzip stream is cut off")


def _lzma(payload: bytes) -> Chunks:
    which = lzma.FORMAT_XZ if payload.startswith(b"\xfd7zXZ") else lzma.FORMAT_ALONE
    stream = lzma.LZMADecompressor(which, memlimit=_LZMA_MEMORY_BYTES)
    return _streamed(stream, payload, "xz" if which == lzma.FORMAT_XZ else "lzma")


def _bzip2(payload: bytes) -> Chunks:
    return _streamed(bz2.BZ2Decompressor(), payload, "bzip2")


def _streamed(stream: lzma.LZMADecompressor | bz2.BZ2Decompressor, payload: bytes, name: str) -> Chunks:
    try:
        data = stream.decompress(payload, _CHUNK)
        while data or not (stream.eof or stream.needs_input):
            yield data
            data = b"" if stream.eof else stream.decompress(b"", _CHUNK)
    except (lzma.LZMAError, OSError, EOFError) as e:
        raise _Damaged(f"its {name} stream is damaged: {e}") from e
    if not stream.eof:
        raise _Damaged(f"its {name} stream is cut off")


def _zstd(payload: bytes) -> Chunks:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    try:
        with decompressor.stream_reader(io.BytesIO(payload[:-4])) as stream:
            while data := stream.read(_CHUNK):  # a stream that is cut off just ends: its size tells
                yield data
    except (zstandard.ZstdError, MemoryError) as e:
        raise _Damaged(f"its zstd stream is damaged: {e}") from e


def _lz4(payload: bytes) -> Chunks:
    """The legacy frame (lz4_Frame_format.md): blocks of 8 MiB, each after its packed size, up to the end."""
    position, end = 4, len(payload) - 4
    while position < end:
        if position + 4 > end:
            raise _Damaged("its lz4 stream is cut off")
        (size,) = struct.unpack_from("<I", payload, position)
        position += 4
        if size > end - position:
            raise _Damaged("its lz4 stream is cut off")
        try:
            yield lz4.block.decompress(payload[position : position + size], uncompressed_size=_LZ4_BLOCK_BYTES)
        except (lz4.block.LZ4BlockError, ValueError) as e:
            raise _Damaged(f"its lz4 stream is damaged: {e}") from e
        position += size


def _plain(payload: bytes) -> Chunks:
    for start in range(0, len(payload), _CHUNK):
        yield payload[start : start + _CHUNK]


_FORMATS: dict[bytes, Callable[[bytes], Chunks]] = {
    b"\x1f\x8b": _gzip,
    b"\xfd7zXZ\x00": _lzma,
    b"\x5d\x00\x00": _lzma,
    b"BZh": _bzip2,
    b"\x28\xb5\x2f\xfd": _zstd,
    b"\x02\x21\x4c\x18": _lz4,
    b"\x7fELF": _plain,
}
