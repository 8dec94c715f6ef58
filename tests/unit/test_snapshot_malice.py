"""Hostile archives of snapshots: each is refused, and nothing of it stays."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fleetbox import paths
from fleetbox.errors import DiskError, FleetboxError, RecordError, SnapshotError
from fleetbox.holder.images.store import ImageStore
from fleetbox.holder.snapshots.overlay import backing_digest
from fleetbox.holder.snapshots.store import SnapshotStore
from tests.snapshots import MIB, exported, imported, left, put_snapshot, qcow2, sparse

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


Member = tuple[tarfile.TarInfo, bytes]


def unpacked(data: bytes) -> tuple[dict[str, Any], list[Member]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    return msgspec.json.decode(members[0][1]), members[2:]


def packed(header: Any, members: list[Member]) -> bytes:
    """An archive whose header is sealed as it should be, whatever it says."""
    return sealed(msgspec.json.encode(header), members)


def sealed(data: bytes, members: list[Member]) -> bytes:
    """An archive with this header."""
    out = io.BytesIO()
    seal = f"{hashlib.sha256(data).hexdigest()}\n".encode()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in (("snapshot.json", data), ("snapshot.sha256", seal)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def rename(header: Any, members: list[Member], name: str) -> None:
    header["files"][-1]["path"] = name
    members[-1][0].name = name


def retype(members: list[Member], kind: bytes) -> None:
    info = tarfile.TarInfo(members[-1][0].name)
    info.type, info.linkname = kind, "/etc/passwd"
    members[-1] = (info, b"")


def member_of(header: Any) -> Any:
    return header["snapshot"]["members"]["node-1"]


def as_link(number: int) -> Callable[[Any, list[Member]], None]:
    return lambda header, members: retype(members, bytes([number]))


HOSTILE: dict[str, Callable[[Any, list[Member]], Any]] = {
    "absolute path": lambda h, m: rename(h, m, "/etc/cron.d/x"),
    "absolute path of a member": lambda h, m: rename(h, m, "members//etc/x"),
    "parent": lambda h, m: rename(h, m, "members/node-1/../../../x"),
    "parent as a member": lambda h, m: rename(h, m, "members/../x"),
    "deeper": lambda h, m: rename(h, m, "members/node-1/a/b"),
    "hidden": lambda h, m: rename(h, m, "members/node-1/.x"),
    "record": lambda h, m: rename(h, m, "snapshot.json"),
    "foreign blob": lambda h, m: rename(h, m, f"blobs/{'a' * 64}.raw"),
    "foreign kernel": lambda h, m: rename(h, m, f"images/{'a' * 64}/kernel"),
    "nul": lambda h, m: rename(h, m, "members/node-1/a\0b"),
    "symbolic link": lambda h, m: retype(m, tarfile.SYMTYPE),
    "hard link": lambda h, m: retype(m, tarfile.LNKTYPE),
    "character device": lambda h, m: retype(m, tarfile.CHRTYPE),
    "block device": lambda h, m: retype(m, tarfile.BLKTYPE),
    "pipe": lambda h, m: retype(m, tarfile.FIFOTYPE),
    "folder": lambda h, m: retype(m, tarfile.DIRTYPE),
    "sparse": lambda h, m: retype(m, tarfile.GNUTYPE_SPARSE),
    "duplicate in the header": lambda h, m: h["files"].append(h["files"][-1]),
    "duplicate in the archive": lambda h, m: m.append(m[-1]),
    "one more": lambda h, m: m.append((tarfile.TarInfo("x"), b"")),
    "one less": lambda h, m: m.pop(),
    "other order": lambda h, m: m.reverse(),
    "one less in the header": lambda h, m: h["files"].pop(0),
    "nothing of a member": lambda h, m: h.update(files=[f for f in h["files"] if "members" not in f["path"]]),
    "format": lambda h, m: h.update(format=2),
    "no format": lambda h, m: h.pop("format"),
    "unknown key": lambda h, m: h.update(more=1),
    "size below the data": lambda h, m: h["files"][-1].update(size_bytes=1),
    "huge size": lambda h, m: h["files"][-1].update(size_bytes=1 << 62),
    "negative size": lambda h, m: h["files"][-1].update(size_bytes=-1),
    "number beyond all": lambda h, m: h["files"][-1].update(size_bytes=1 << 70),
    "extents overlap": lambda h, m: h["files"][-1].update(extents=[[0, 10], [5, 10]]),
    "extents backwards": lambda h, m: h["files"][-1].update(extents=[[10, 10], [0, 10]]),
    "negative extent": lambda h, m: h["files"][-1].update(extents=[[-10, 10]]),
    "empty extents": lambda h, m: h["files"][-1].update(extents=[[0, 0]] * 10),
    "extents of another length": lambda h, m: h["files"][-1].update(extents=[[0, 1]]),
    "digest": lambda h, m: h["files"][-1].update(sha256="0" * 64),
    "no digest": lambda h, m: h["files"][-1].update(sha256=""),
    "backing of a raw file": lambda h, m: h["files"][-1].update(backing="0" * 64),
    "id": lambda h, m: h["snapshot"].update(id="../../x"),
    "name": lambda h, m: h["snapshot"].update(name="../../x"),
    "cluster": lambda h, m: h["snapshot"].update(cluster="../../x"),
    "subnet": lambda h, m: h["snapshot"].update(subnet="everywhere"),
    "kind": lambda h, m: h["snapshot"].update(kind="fleet"),
    "no members": lambda h, m: h["snapshot"].update(members={}),
    "member's name": lambda h, m: h["snapshot"].update(members={"..": member_of(h)}),
    "member's other name": lambda h, m: member_of(h).update(name="node-9"),
    "reserved name": lambda h, m: h["snapshot"].update(
        members={"fleetbox-template": member_of(h) | {"name": "fleetbox-template"}}
    ),
    "member's id": lambda h, m: member_of(h).update(id="x"),
    "member's MAC": lambda h, m: member_of(h).update(mac="02:00\nx"),
    "member's address": lambda h, m: member_of(h).update(ip="1.2.3.4; rm"),
    "member's image": lambda h, m: member_of(h).update(image_digest="../x"),
    "member's other image": lambda h, m: member_of(h).update(image_digest="a" * 64),
    "member's base": lambda h, m: member_of(h).update(base="a" * 64),
    "member's memory": lambda h, m: member_of(h)["spec"].update(memory_bytes=1),
    "member's fixture": lambda h, m: member_of(h)["spec"].update(fixtures=[{"host": "/", "guest": "../x"}]),
    "member's instance": lambda h, m: member_of(h).update(instance="x\ny"),
    "blobs": lambda h, m: h["snapshot"].update(blobs=[]),
    "blob's digest": lambda h, m: h["snapshot"]["blobs"][0].update(digest="../../x"),
    "images": lambda h, m: h.update(images=[]),
    "images twice": lambda h, m: h.update(images=h["images"] * 2),
    "image's digest": lambda h, m: h["images"][0].update(digest="../../x"),
    "image's size": lambda h, m: h["images"][0].update(size_bytes=1),
    "image's root": lambda h, m: h["images"][0].update(root="x\ny"),
    "not a record": lambda h, m: h.update(snapshot=[]),
    "wrong kind": lambda h, m: h["snapshot"].update(identity=3),
}


@pytest.fixture
def plain(go: Go, tmp_path: Path) -> bytes:
    """An archive that is good; we are on another host."""
    data = exported(put_snapshot(members=1), tmp_path / "a.tar")
    go("here")
    return data


@pytest.mark.parametrize("trick", HOSTILE)
def test_hostile_archives_are_refused_and_leave_nothing(plain: bytes, tmp_path: Path, trick: str) -> None:
    header, members = unpacked(plain)
    HOSTILE[trick](header, members)
    (tmp_path / "bad.tar").write_bytes(packed(header, members))
    with pytest.raises(SnapshotError) as refused:
        imported(tmp_path / "bad.tar")
    assert refused.value.message == "the archive is refused"
    assert refused.value.why
    assert left() == set()


def mutated(value: Any, chance: random.Random) -> Any:
    """The JSON value with something in it that is not as it was."""
    if isinstance(value, dict) and value and chance.random() < 0.95:
        key = chance.choice(sorted(value))
        return value | {key: mutated(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.95:
        at = chance.randrange(len(value))
        return [*value[:at], mutated(value[at], chance), *value[at + 1 :]]
    choices: list[Any] = [None, True, -1, 0, 1 << 40, 1 << 65, 0.5, "", "..", "/etc/passwd", "a\0b", "\ud800", [], {}]
    if isinstance(value, str):
        choices += [value + "x", value[:-1], value.upper()]
    if isinstance(value, int):
        choices += [value + 1, value - 1, -value]
    return chance.choice(choices)


def test_whatever_a_header_says_ends_in_an_answer(plain: bytes, tmp_path: Path) -> None:
    header, members = unpacked(plain)
    chance = random.Random(7)
    taken = 0
    for _ in range(400):
        changed = mutated(header, chance)
        data = json.dumps(changed).encode()  # msgspec would not write half a surrogate
        (tmp_path / "bad.tar").write_bytes(sealed(data, members))
        try:
            imported(tmp_path / "bad.tar")
        except FleetboxError:
            assert not any("snapshots/" in path for path in left()), changed
        else:
            taken += 1
            assert not [r for r in (*SnapshotStore().records(), *ImageStore().records()) if isinstance(r, RecordError)]
            SnapshotStore().remove([s.id for s in SnapshotStore().readable()[0]])
    assert 0 < taken < 200  # descriptions, times


def test_the_same_packing_without_malice_is_taken(plain: bytes, tmp_path: Path) -> None:
    (tmp_path / "good.tar").write_bytes(packed(*unpacked(plain)))
    assert imported(tmp_path / "good.tar").name == "saved"


def test_a_base_disk_with_another_content_than_its_digest_is_refused(plain: bytes, tmp_path: Path) -> None:
    header, members = unpacked(plain)
    [at] = [i for i, (info, _) in enumerate(members) if info.name.startswith("blobs/")]
    forged = b"X" + members[at][1][1:]
    members[at] = (members[at][0], forged)
    header["files"][at]["sha256"] = hashlib.sha256(forged).hexdigest()
    (tmp_path / "bad.tar").write_bytes(packed(header, members))
    with pytest.raises(SnapshotError, match="another content"):
        imported(tmp_path / "bad.tar")
    assert left() == set()


@pytest.mark.parametrize("where", ["members/node-1/disk.qcow2", "blobs/"])
@pytest.mark.parametrize("trick", ["data file", "raw", "backing"])
def test_foreign_qcow2_files_reach_nothing_of_this_host(go: Go, tmp_path: Path, where: str, trick: str) -> None:
    data = exported(put_snapshot(overlays=True, members=1), tmp_path / "a.tar")
    go("here")
    header, members = unpacked(data)
    [at] = [i for i, (info, _) in enumerate(members) if info.name.startswith(where) and info.name.endswith(".qcow2")]
    shadow = tmp_path / "shadow"
    sparse(shadow, 4 * MIB, (0, b"root:secret"))
    forged = tmp_path / "forged"
    match trick:
        case "data file":
            content = bytearray(members[at][1])
            content[79] |= 4  # incompatible feature: external data file
            forged.write_bytes(content)
        case "raw":
            sparse(forged, MIB, (0, b"plain"))
        case _:
            qcow2(forged, shadow, "raw")
    content = forged.read_bytes()
    info = members[at][0]
    info.size = len(content)
    digest = hashlib.sha256(content).hexdigest()
    header["files"][at].update(sha256=digest, size_bytes=len(content), extents=[[0, len(content)]])
    if where == "blobs/":
        text = msgspec.json.encode(header).decode().replace(header["snapshot"]["blobs"][1]["digest"], digest)
        header = msgspec.json.decode(text)
        info.name = f"blobs/{digest}.qcow2"
    members[at] = (info, bytes(content))
    (tmp_path / "bad.tar").write_bytes(packed(header, members))
    if trick != "backing":
        with pytest.raises(DiskError, match="refused"):
            imported(tmp_path / "bad.tar")
        assert left() == set()
        return
    found = imported(tmp_path / "bad.tar")
    for path in (*paths.blobs_dir().glob("*.qcow2"), SnapshotStore().folder(found) / "node-1" / "disk.qcow2"):
        assert backing_digest(path) in {blob.digest for blob in found.blobs}
        assert b"shadow" not in path.read_bytes()[: 1 << 16].split(b"\0" * 64)[0]
