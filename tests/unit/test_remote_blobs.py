"""Files on their way to a helper: whole, by their digest, gone on with after an interruption, without their holes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import struct
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from fleetbox.backends.host.extents import FRAME, Landing, frames
from fleetbox.backends.remote.wire import File
from fleetbox.errors import DiskError, UsageError
from fleetbox.holder.remote.blobs import Blobs
from fleetbox.sizes import MIB

TEXT = os.urandom(3 * MIB + 5)
DIGEST = hashlib.sha256(TEXT).hexdigest()


def stream_of(path: Path, start: int = 0) -> list[bytes]:
    with path.open("rb") as file:
        return list(frames(file.fileno(), start))


async def pieces(data: Iterable[bytes], size: int = 100_000) -> AsyncIterator[bytes]:
    whole = b"".join(data)
    for offset in range(0, len(whole), size):
        yield whole[offset : offset + size]


def sparse(path: Path) -> Path:
    with path.open("wb") as file:
        file.seek(8 * MIB)
        file.write(b"in the middle")
        file.truncate(64 * MIB)
    return path


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "store")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(TEXT)
    return path


def receive(blobs: Blobs, digest: str, start: int, data: Iterable[bytes]) -> None:
    asyncio.run(blobs.receive(digest, start, pieces(data)))


def test_file_arrives_whole_and_under_its_digest(blobs: Blobs, source: Path) -> None:
    assert blobs.lacking("m", [File(DIGEST, len(TEXT))]) == {DIGEST: 0}
    receive(blobs, DIGEST, 0, stream_of(source))
    assert blobs.path(DIGEST).read_bytes() == TEXT
    assert blobs.path(DIGEST).stat().st_mode & 0o777 == 0o600
    assert blobs.lacking("m", [File(DIGEST, len(TEXT))]) == {}
    receive(blobs, DIGEST, 0, [b"what is here already is not looked at"])


def test_adopted_file_can_be_opened_for_writing_by_a_hypervisor_without_capabilities(
    blobs: Blobs, tmp_path: Path
) -> None:
    """QEMU opens the memory that it maps privately so; without CAP_DAC_OVERRIDE, root's is held to the mode, too."""
    saved = tmp_path / "store" / "memory"
    saved.write_bytes(TEXT)
    saved.chmod(0o600)
    blobs.adopt(saved, DIGEST)
    assert blobs.path(DIGEST).stat().st_mode & 0o777 == 0o600


def test_holes_are_neither_sent_nor_made_data(blobs: Blobs, tmp_path: Path) -> None:
    path = sparse(tmp_path / "sparse")
    stream = stream_of(path)
    assert sum(map(len, stream)) < 2 * MIB
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    receive(blobs, digest, 0, stream)
    assert blobs.path(digest).read_bytes() == path.read_bytes()
    assert blobs.path(digest).stat().st_blocks * 512 < 2 * MIB


def test_interrupted_transfer_goes_on_where_it_was(blobs: Blobs, source: Path) -> None:
    with pytest.raises(UsageError, match="too early"):
        receive(blobs, DIGEST, 0, [b"".join(stream_of(source))[: MIB + 4711]])
    [(_, start)] = blobs.lacking("m", [File(DIGEST, len(TEXT))]).items()
    assert 0 < start < len(TEXT)
    with pytest.raises(UsageError, match="go on"):
        receive(blobs, DIGEST, start + 1, stream_of(source, start))
    rest = stream_of(source, start)
    assert sum(map(len, rest)) < len(TEXT)
    receive(blobs, DIGEST, start, rest)
    assert blobs.path(DIGEST).read_bytes() == TEXT


def test_interruption_inside_a_hole_is_gone_on_with(blobs: Blobs, tmp_path: Path) -> None:
    path = sparse(tmp_path / "sparse")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UsageError):
        receive(blobs, digest, 0, [b"".join(stream_of(path))[: FRAME.size + 100]])
    start = blobs.lacking("m", [File(digest, 64 * MIB)])[digest]
    assert 8 * MIB < start <= 8 * MIB + 100
    receive(blobs, digest, start, stream_of(path, start))
    assert blobs.path(digest).read_bytes() == path.read_bytes()


def test_other_content_than_the_digest_says_is_refused_and_forgotten(blobs: Blobs, source: Path) -> None:
    wrong = "0" * 64
    with pytest.raises(UsageError, match="is not"):
        receive(blobs, wrong, 0, stream_of(source))
    assert blobs.lacking("m", [File(wrong, 1)]) == {wrong: 0}
    with pytest.raises(UsageError, match="not here"):
        blobs.path(wrong)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n", "/etc/passwd"])
def test_what_is_no_digest_names_no_file(blobs: Blobs, digest: str) -> None:
    with pytest.raises(UsageError):
        blobs.path(digest)
    with pytest.raises(UsageError):
        receive(blobs, digest, 0, [])
    with pytest.raises(UsageError):
        blobs.lacking("m", [File(digest, 1)])


def test_damaged_streams_are_refused(tmp_path: Path, source: Path) -> None:
    good = b"".join(stream_of(source))
    bad = {
        "damaged": good[:500] + bytes([good[500] ^ 1]) + good[501:],
        "its end": good + b"x",
        "order": FRAME.pack(100, 1) + b"x" + FRAME.pack(0, 1) + b"y",
        "order, too far": FRAME.pack(1 << 60, 5),
    }
    for why, stream in bad.items():
        fd = os.open(tmp_path / "landing", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with pytest.raises(UsageError, match=why.split(",", maxsplit=1)[0]):
                Landing(fd).write(stream)
        finally:
            os.close(fd)
    assert struct.calcsize(">QQ") == FRAME.size


def test_two_senders_of_one_file_are_both_content(blobs: Blobs, source: Path) -> None:
    async def both() -> None:
        stream = stream_of(source)
        await asyncio.gather(*(blobs.receive(DIGEST, 0, pieces(stream)) for _ in range(2)))

    asyncio.run(both())
    assert blobs.path(DIGEST).read_bytes() == TEXT


def test_sweep_spares_what_is_needed_claimed_or_new(blobs: Blobs, tmp_path: Path) -> None:
    digests = {}
    for name in ("needed", "claimed", "new", "old"):
        path = tmp_path / name
        path.write_text(name)
        digests[name] = hashlib.sha256(name.encode()).hexdigest()
        receive(blobs, digests[name], 0, stream_of(path))
        if name != "new":
            os.utime(blobs.path(digests[name]), (0, 0))
    blobs.claims["machine"] = frozenset({digests["claimed"]})
    blobs.sweep({digests["needed"]})
    assert {path.name for path in blobs.root.iterdir()} == {digests[n] for n in ("needed", "claimed", "new")}
    blobs.drop(digests["claimed"], set())
    blobs.drop(digests["new"], set())
    assert {path.name for path in blobs.root.iterdir()} == {digests[n] for n in ("needed", "claimed")}


def test_more_than_the_disk_holds_is_refused_before_it_is_sent(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, needed_bytes: int) -> None:
        assert needed_bytes == 4711
        raise DiskError("full")

    monkeypatch.setattr("fleetbox.holder.remote.blobs.free_space_preflight", full)
    with pytest.raises(DiskError):
        blobs.lacking("m", [File("1" * 64, 4711), File("2" * 64, 1 << 50)])
