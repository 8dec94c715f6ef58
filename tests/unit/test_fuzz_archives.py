"""A thousand hostile archives and images: refused in words, or harmless; nothing stays, nothing outside is touched.

`test_snapshot_malice` tries each trick that is known by name, and 400 mutated headers. Here the tars themselves are
cut, flipped and rewritten, and qcow2 headers are made to point at this host's files. The same tricks in every run.
"""

from __future__ import annotations

import io
import os
import random
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetbox import paths
from fleetbox.backends.host.disk import refuse_foreign
from fleetbox.errors import FleetboxError, RecordError
from fleetbox.holder.images.convert import probe
from fleetbox.holder.images.store import ImageStore
from fleetbox.holder.snapshots.store import SnapshotStore
from tests.snapshots import SECRET, exported, imported, left, put_snapshot

CUT, FLIPPED, REWRITTEN, IMAGES = 200, 200, 250, 400
BLOCK = tarfile.BLOCKSIZE


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """An archive that is good; we are on another host."""
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path / "there"))
    data = exported(put_snapshot(members=1), tmp_path / "a.tar")
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path / "here"))
    return data


def headers(data: bytes) -> list[int]:
    """Where the tar's headers are."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [info.offset for info in tar]


def checksummed(block: bytearray) -> bytes:
    """A tar header whose checksum is right."""
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def cut(data: bytes, chance: random.Random) -> Iterator[bytes]:
    """Everything after the last data is padding, and not missed."""
    for _ in range(CUT):
        yield data[: chance.randrange(headers(data)[-1] + BLOCK)]


def flipped(data: bytes, chance: random.Random) -> Iterator[bytes]:
    places = headers(data)
    for _ in range(FLIPPED):
        changed = bytearray(data)
        for _ in range(chance.randrange(1, 4)):
            at = (
                chance.choice(places) + chance.randrange(BLOCK)
                if chance.random() < 0.7
                else chance.randrange(len(data))
            )
            changed[at] ^= 1 << chance.randrange(8)
        yield bytes(changed)


def rewritten(data: bytes, chance: random.Random) -> Iterator[bytes]:
    """Headers that say something else under a checksum that is right; whole members twice, elsewhere, or inserted."""
    places = headers(data)
    fields: dict[tuple[int, int], tuple[bytes, ...]] = {
        (0, 100): (b"../x", b"/etc/cron.d/x", b"members/node-1/../../x", b"snapshot.json", b"", b"\xff" * 100, b"a\0b"),
        (100, 108): (b"4777\0", b"\xff" * 8),
        (124, 136): (
            b"77777777777\0",
            b"00000000000\0",
            b"-1\0",
            b"\x80" + b"\xff" * 11,
            b"zzz\0",
            b"\x80" + b"\0" * 11,
        ),
        (156, 157): tuple(b"\0" + b"1234567LKSgxXVMNDA"[i : i + 1] for i in range(18)),
        (157, 257): (b"/etc/passwd", b"../../x"),
        (257, 265): (b"ustar\x0000", b"ustar  \0", b"xxxxxxxx"),
        (345, 500): (b"/etc", b"../..", b"\xff" * 155),
        (386, 482): (b"00000000000\x0077777777777\0" * 4,),
        (482, 495): (b"\1" + b"77777777777\0",),
    }
    for _ in range(REWRITTEN):
        changed, at = bytearray(data), chance.choice(places)
        match chance.randrange(5):
            case 0:
                following = next((p for p in places if p > at), len(data))
                changed[at:at] = data[at:following]
            case 1:
                changed[at:at] = checksummed(bytearray(tarfile.TarInfo("../x").tobuf()))
            case _:
                for _ in range(chance.randrange(1, 3)):
                    (start, end), values = chance.choice(list(fields.items()))
                    block = bytearray(data[at : at + BLOCK])
                    value = chance.choice(values)[-(end - start) :]
                    block[start:end] = value.ljust(end - start, b"\0")
                    changed[at : at + BLOCK] = checksummed(block)
        yield bytes(changed)


@pytest.mark.parametrize("how", [cut, flipped, rewritten])
def test_archives_that_were_tampered_with(archive: bytes, tmp_path: Path, how: object) -> None:
    outside = {p for p in tmp_path.rglob("*") if (tmp_path / "here") not in (p, *p.parents)}
    refused = 0
    for data in how(archive, random.Random(11)):  # type: ignore[operator]
        (tmp_path / "bad.tar").write_bytes(data)
        try:
            found = imported(tmp_path / "bad.tar")
        except FleetboxError as e:
            refused += 1
            said = f"{e.message} {e.why}"
            if left() or "\n" in said:
                pytest.fail(f"{said}: {left()}")
        else:  # what was changed says nothing: who owned it, when, padding
            assert SECRET in (SnapshotStore().folder(found) / "node-1" / "disk.raw").read_bytes()
            assert not [r for r in (*SnapshotStore().records(), *ImageStore().records()) if isinstance(r, RecordError)]
            SnapshotStore().remove([found.id])
            ImageStore().remove([blob.digest for blob in found.blobs])
            assert left() == set()
    assert refused >= {cut: CUT, flipped: FLIPPED // 3, rewritten: REWRITTEN // 2}[how]  # type: ignore[index]
    now = {p for p in tmp_path.rglob("*") if (tmp_path / "here") not in (p, *p.parents)}
    assert now - outside <= {tmp_path / "bad.tar"}


def test_a_bomb_of_holes_costs_no_space(archive: bytes, tmp_path: Path) -> None:
    """The size that a file says is a hole's: what is stored is what came, and more than was allowed is refused."""
    (tmp_path / "a.tar").write_bytes(archive)
    with pytest.raises(FleetboxError, match="refused"):
        imported(tmp_path / "a.tar", max_bytes=1000)
    assert left() == set()


def qcow2_headers(chance: random.Random, victim: Path) -> Iterator[bytes]:
    """qcow2 files that name `victim` as their backing or data file, in all the ways that their header has."""
    name = os.fsencode(victim)
    for number in range(IMAGES):
        version = chance.choice((2, 3, 3, 3, 0, 4, 1 << 31))
        header = bytearray(4096)
        length = 104 if version >= 3 else 72
        struct.pack_into(">4sIQII", header, 0, b"QFI\xfb", version, 0, 0, 16)
        struct.pack_into(">Q", header, 24, chance.choice((1 << 20, 0, 1 << 63)))
        trick = number % 4
        if trick == 0:
            struct.pack_into(">QI", header, 8, chance.choice((512, 1 << 62, 3)), len(name))
            header[512 : 512 + len(name)] = name
        elif trick == 1 and version >= 3:
            struct.pack_into(">Q", header, 72, 1 << 2)
            struct.pack_into(">II", header, length, 0x44415441, len(name))
            header[length + 8 : length + 8 + len(name)] = name
        elif trick == 2:
            struct.pack_into(">I", header, 32, chance.choice((1, 2, 99)))
        else:
            del header[chance.randrange(4, 104) :]
        if version >= 3 and len(header) > 104:
            struct.pack_into(">I", header, 100, chance.choice((104, 112, 0, 1 << 31)))
        for _ in range(chance.randrange(3) if trick == 3 else 0):
            header[chance.randrange(4, len(header))] ^= 1 << chance.randrange(8) if len(header) > 4 else 0
        yield bytes(header)


def test_images_that_point_at_this_hosts_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path / "here"))
    victim = tmp_path / "shadow"
    victim.write_text("root:secret")
    image = tmp_path / "image.qcow2"
    tried = 0
    for header in qcow2_headers(random.Random(13), victim):
        image.write_bytes(header)
        points = header[8:16] not in (b"", b"\0" * 8) or (len(header) > 80 and header[79] & 4)
        for check in (lambda: refuse_foreign(image), lambda: probe(image, "image")):
            try:
                check()
            except FleetboxError as e:
                tried += bool(e.why)
            else:
                assert not points, header[:128].hex()
    assert tried > IMAGES
    assert not paths.data_dir().exists() or left() == set()
