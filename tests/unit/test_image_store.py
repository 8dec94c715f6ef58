"""The store of images: landing, names, lookup, removal, and what crashes and damage leave."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from pathlib import Path

import msgspec
import pytest

from fleetbox import paths
from fleetbox.errors import AmbiguousError, ConflictError, NotFoundError, PartialError, RecordError
from fleetbox.holder.images.store import ImageRecord, ImageStore
from fleetbox.identity import ProcessIdentity, this_maker
from fleetbox.image import Image
from fleetbox.records import ClusterRecord, MemberRecord, MemberState
from fleetbox.specs import MemberSpec


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageStore:
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path))
    return ImageStore()


def put(store: ImageStore, content: bytes, *names: str, source: str = "somewhere") -> Image:
    with store.staging() as folder:
        disk = folder / "disk.raw"
        disk.write_bytes(content)
        (folder / "kernel").write_bytes(b"kernel")
        (folder / "initrd").write_bytes(b"initrd")
        record = ImageRecord(
            digest=hashlib.sha256(content).hexdigest(),
            source=source,
            architecture="amd64",
            size_bytes=len(content),
            created_at=time.time(),
            boot="direct",
            root="UUID=x",
            names=names,
        )
        return store.publish(folder, disk, record)


def use(digest: str, cluster: str = "lab", member: str = "node-1") -> None:
    spec = MemberSpec()
    folder = str(paths.member_dir(cluster, member))
    record = MemberRecord("0" * 16, member, MemberState.STOPPED, spec, digest, "", "", folder, 0.0)
    data = msgspec.json.encode(ClusterRecord("0" * 16, cluster, "fake", "", "", "host", 0.0, members={member: record}))
    path = paths.cluster_record(cluster)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_an_image_lands_whole(store: ImageStore) -> None:
    image = put(store, b"one", "a")
    assert store.images() == [image]
    assert Path(image.disk).read_bytes() == b"one"
    assert Path(image.disk).stat().st_mode & 0o222 == 0
    assert Path(image.kernel).read_bytes() == b"kernel"
    assert sorted(p.name for p in paths.images_dir().iterdir()) == [".lock", image.digest]


def test_the_same_content_is_one_image_with_all_names(store: ImageStore) -> None:
    first = put(store, b"one", "a")
    second = put(store, b"one", "b")
    assert second.digest == first.digest
    assert second.names == ("a", "b")
    assert len(store.images()) == 1


def test_a_name_moves_to_the_newest_image(store: ImageStore) -> None:
    old = put(store, b"one", "a", "kept")
    new = put(store, b"two", "a")
    assert store.inspect("a").digest == new.digest
    assert store.inspect(old.digest).names == ("kept",)


def test_lookup_by_name_digest_and_prefix(store: ImageStore) -> None:
    image = put(store, b"one", "a")
    for ref in ("a", image.digest, image.digest[:8]):
        assert store.inspect(ref) == image
    for ref in ("b", image.digest[:7], "f" * 64, "../" + image.digest):
        with pytest.raises(NotFoundError):
            store.inspect(ref)


def test_an_ambiguous_prefix_lists_the_candidates(store: ImageStore) -> None:
    image = put(store, b"one")
    twin = image.digest[:20] + "0" * 44
    folder = paths.images_dir() / twin
    folder.mkdir()
    record = msgspec.json.decode((paths.images_dir() / image.digest / "image.json").read_bytes(), type=ImageRecord)
    (folder / "image.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(record, digest=twin)))
    (paths.blobs_dir() / f"{twin}.raw").write_bytes(b"")
    with pytest.raises(AmbiguousError, match=twin[:16]):
        store.inspect(image.digest[:8])


def test_a_damaged_record_hides_no_other_and_is_kept(store: ImageStore) -> None:
    good, bad = put(store, b"one", "good"), put(store, b"two", "bad")
    broken = paths.images_dir() / bad.digest / "image.json"
    broken.write_bytes(b'{"schema": 1, "dig')
    assert [i.digest for i in store.images()] == [good.digest]
    assert [type(r) for r in store.records() if isinstance(r, RecordError)] == [RecordError]
    with pytest.raises(NotFoundError) as caught:
        store.inspect("bad")
    assert bad.digest in caught.value.why
    assert broken.read_bytes() == b'{"schema": 1, "dig'


def test_getting_a_damaged_image_again_repairs_it_and_keeps_the_record_aside(store: ImageStore) -> None:
    bad = put(store, b"two", "bad")
    (paths.images_dir() / bad.digest / "image.json").write_bytes(b"garbage")
    assert put(store, b"two", "bad").names == ("bad",)
    [aside] = paths.images_dir().glob(".unreadable-*")
    assert (aside / "image.json").read_bytes() == b"garbage"


def test_an_image_that_lost_its_disk_is_not_listed_and_can_come_back(store: ImageStore) -> None:
    image = put(store, b"one", "a")
    Path(image.disk).unlink()
    assert store.images() == []
    assert Path(put(store, b"one", "a").disk).read_bytes() == b"one"


def test_a_record_of_a_newer_fleetbox_is_left_alone(store: ImageStore) -> None:
    image = put(store, b"one", "a")
    path = paths.images_dir() / image.digest / "image.json"
    path.write_bytes(path.read_bytes().replace(b'"schema": 1', b'"schema": 99'))
    assert store.images() == []
    with pytest.raises(NotFoundError) as caught:
        store.inspect("a")
    assert "newer" in caught.value.why


def test_remove(store: ImageStore) -> None:
    image = put(store, b"one", "a")
    assert store.remove(["a"]) == [image]
    assert store.images() == []
    assert list(paths.blobs_dir().iterdir()) == []
    assert [p.name for p in paths.images_dir().iterdir()] == [".lock"]
    with pytest.raises(NotFoundError):
        store.remove(["a"])


def test_an_image_in_use_stays_and_its_members_are_named(store: ImageStore) -> None:
    image = put(store, b"one", "a")
    use(image.digest)
    with pytest.raises(ConflictError, match="lab/node-1"):
        store.remove(["a"])
    assert store.images() == [image]


def test_of_several_the_possible_are_removed(store: ImageStore) -> None:
    used = put(store, b"one", "used")
    put(store, b"two", "free")
    use(used.digest)
    with pytest.raises(PartialError) as caught:
        store.remove(["used", "free", "nothing"])
    assert {ref: type(e) for ref, e in caught.value.failures.items()} == {
        "used": ConflictError,
        "nothing": NotFoundError,
    }
    assert [i.names for i in store.images()] == [("used",)]


def test_nothing_is_removed_while_a_cluster_cannot_be_read(store: ImageStore) -> None:
    image = put(store, b"one", "a")
    path = paths.cluster_record("broken")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"{")
    with pytest.raises(ConflictError, match="cannot be told"):
        store.remove(["a"])
    assert store.images() == [image]


def test_a_crashed_maker_s_folder_is_swept_and_a_live_one_s_is_not(store: ImageStore) -> None:
    with store.staging() as live:
        dead = paths.images_dir() / ".new-dead"
        dead.mkdir()
        (dead / "disk.raw").write_bytes(b"x")
        ended = msgspec.structs.replace(this_maker(), process=ProcessIdentity(1, 1, "another-boot", "python"))
        (dead / ".maker").write_bytes(msgspec.json.encode(ended))
        assert store.sweep(dry_run=True) == ["unfinished image .new-dead"]
        assert dead.exists()
        store.sweep()
        assert not dead.exists()
        assert live.exists()
    assert not live.exists()


def test_a_failed_maker_leaves_nothing(store: ImageStore) -> None:
    def fail() -> None:
        with store.staging() as folder:
            (folder / "disk.raw").write_bytes(b"x")
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    assert [p.name for p in paths.images_dir().iterdir()] == [".lock"]


def test_disks_of_no_image_are_swept_unless_a_member_stands_on_them(store: ImageStore) -> None:
    put(store, b"one", "a")
    orphan, used = paths.blobs_dir() / f"{'1' * 64}.raw", paths.blobs_dir() / f"{'2' * 64}.raw"
    template = paths.blobs_dir() / "template.raw"
    for path in (orphan, used, template):
        path.write_bytes(b"x")
    use("2" * 64)
    assert store.sweep() == [f"disk {orphan.name} of no image"]
    assert used.exists()
    assert template.exists()
    assert len(store.images()) == 1


def test_the_data_folder_can_be_moved(store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = put(store, b"one", "a")
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").rename(tmp_path / "home" / "data")
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path / "home"))
    moved = ImageStore().inspect("a")
    assert moved.digest == image.digest
    assert Path(moved.disk).read_bytes() == b"one"
    assert Path(moved.kernel).is_file()


def test_a_second_process_waits_for_the_store(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, b"one", "a")
    monkeypatch.setattr("fleetbox.holder.landing._LOCK_TIMEOUT_S", 0.1)
    fd = os.open(paths.images_dir() / ".lock", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        with pytest.raises(ConflictError, match="locked"):
            store.remove(["a"])
    finally:
        os.close(fd)
    assert len(store.remove(["a"])) == 1
