"""The store of templates: whole or not at all, made by one, and what stands on their disks."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from fleetbox import paths
from fleetbox.backends.base import Capabilities, Disk
from fleetbox.backends.host.files.worker import Stop
from fleetbox.errors import AmbiguousError, NotFoundError
from fleetbox.holder.provision import Provisioner
from fleetbox.holder.store import write_atomically
from fleetbox.holder.warm.making import recipe
from fleetbox.holder.warm.templates import SAVED, TemplateStore
from fleetbox.image import Image
from fleetbox.records import ClusterRecord, MemberRecord, MemberState
from fleetbox.specs import MemberSpec
from fleetbox.template import Origin, Template
from fleetbox.wire import Event, Notice

KEY = "a" * 64
ORIGIN = Origin("web", "192.168.1.254", "02:00:00:00:00:01", 24, "192.168.1.1", (), "ssh-ed25519 AAAA")
IMAGE = Image("1" * 64, ("debian-12",), "", "x86_64", 1 << 30, 0, 0.0, "/disk", "/kernel", "", "", "direct", "", True)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path))
    return tmp_path


def a_template(key: str = KEY, image_digest: str = "") -> Template:
    return Template(
        key=key,
        created_at=time.time(),
        image="debian-12",
        image_digest=image_digest,
        backend="fake",
        accelerator="",
        cpus=2,
        memory_bytes=1 << 30,
        disk_bytes=0,
        control_line=True,
        origin=ORIGIN,
    )


def make(key: str = KEY, *, content: bytes = b"disk", disk_format: str = "qcow2", image_digest: str = "") -> Template:
    """Make a template of the key as a holder does, around a disk with that content."""
    store = TemplateStore()
    paths.blobs_dir().mkdir(parents=True, exist_ok=True)

    async def work() -> Template:
        async with store.making(key, lambda event: None) as staging:
            (staging / SAVED / "state").write_bytes(b"state")
            disk = Disk(staging / f"disk.{disk_format}", disk_format)  # type: ignore[arg-type]
            disk.path.write_bytes(content)
            return store.publish(staging, disk, a_template(key, image_digest), Stop())

    return asyncio.run(work())


def member(base: str) -> MemberRecord:
    return MemberRecord(
        "1" * 16,
        "node-1",
        MemberState.STOPPED,
        MemberSpec(),
        "",
        "",
        "",
        str(paths.member_dir("web", "node-1")),
        0.0,
        base=base,
    )


def write_cluster(*members: MemberRecord) -> Path:
    record = ClusterRecord("0" * 16, "web", "fake", "", "", "host", 0.0, members={m.name: m for m in members})
    paths.cluster_record("web").parent.mkdir(parents=True, exist_ok=True)
    write_atomically(paths.cluster_record("web"), msgspec.json.encode(record))
    return paths.cluster_record("web")


def left() -> set[str]:
    return {p.name for p in paths.templates_dir().glob("*")} | {p.name for p in paths.templates_dir().glob(".[!.]*")}


def test_a_template_is_found_whole_and_its_disk_is_a_blob() -> None:
    made = make()
    assert made.base == hashlib.sha256(b"disk").hexdigest()
    store = TemplateStore()
    found = store.find(KEY)
    assert found == made
    assert store.disk(found).path == paths.blobs_dir() / f"{made.base}.qcow2"
    assert store.disk(found).path.stat().st_mode & 0o777 == 0o444
    assert (store.folder(found) / "state").read_bytes() == b"state"
    assert [t.key for t in store.templates()] == [KEY]
    assert left() == {KEY}


def test_a_raw_disk_stays_with_its_template() -> None:
    made = make(disk_format="raw")
    assert made.base == ""
    assert TemplateStore().disk(made).path == paths.templates_dir() / KEY / "disk.raw"
    assert list(paths.blobs_dir().glob("*.raw")) == []


@pytest.mark.parametrize("lost", [f"{KEY}/{SAVED}", f"{KEY}/template.json", "blob"])
def test_a_template_without_a_part_is_none_and_is_swept(lost: str) -> None:
    made = make()
    store = TemplateStore()
    path = store.disk(made).path if lost == "blob" else paths.templates_dir() / lost
    path.rename(path.with_name("elsewhere"))
    assert store.find(KEY) is None
    assert store.templates() == []
    assert "template" in {item.kind for item in store.sweep(dry_run=True)}
    assert (paths.templates_dir() / KEY).exists()
    store.sweep(dry_run=False)
    assert not (paths.templates_dir() / KEY).exists()
    assert not list(paths.blobs_dir().glob("*.qcow2"))
    assert store.sweep(dry_run=False) == []


def test_a_template_whose_image_is_gone_is_swept() -> None:
    make(image_digest="1" * 64)
    (paths.images_dir() / ("1" * 64)).mkdir(parents=True)
    assert TemplateStore().sweep(dry_run=False) == []
    TemplateStore().forget_image("2" * 64)
    assert TemplateStore().find(KEY)
    (paths.images_dir() / ("1" * 64)).rmdir()
    assert {item.kind for item in TemplateStore().sweep(dry_run=False)} == {"template", "disk"}
    make(image_digest="1" * 64)
    TemplateStore().forget_image("1" * 64)
    assert TemplateStore().templates() == []


def test_a_blob_stays_while_a_member_stands_on_it() -> None:
    made = make()
    blob = TemplateStore().disk(made).path
    record = write_cluster(member(made.base))
    assert [t.base for t in TemplateStore().remove([KEY[:8]])] == [made.base]
    assert TemplateStore().find(KEY) is None
    assert blob.exists()
    assert TemplateStore().sweep(dry_run=False) == []
    whole = record.read_bytes()
    record.write_bytes(whole[:-20])
    assert TemplateStore().sweep(dry_run=False) == []
    assert blob.exists(), "a record that cannot be read protects everything"
    write_cluster()
    assert [item.kind for item in TemplateStore().sweep(dry_run=False)] == ["disk"]
    assert not blob.exists()


def test_two_templates_on_one_disk_keep_it_until_the_last_goes() -> None:
    first, second = make(), make("b" * 64)
    assert first.base == second.base
    TemplateStore().discard(first)
    assert TemplateStore().find("b" * 64) is not None
    TemplateStore().discard(second)
    assert not list(paths.blobs_dir().glob("*.qcow2"))


def test_only_the_template_that_is_meant_is_discarded() -> None:
    old = make()
    TemplateStore().discard(old)
    new = make(content=b"another")
    TemplateStore().discard(old)
    assert TemplateStore().find(KEY) == new


def test_refs_of_templates() -> None:
    make("abcd1" + "0" * 59)
    make("abcd2" + "0" * 59)
    with pytest.raises(AmbiguousError):
        TemplateStore().remove(["abcd"])
    for unknown in ("cdef", "abc", "*"):
        with pytest.raises(NotFoundError):
            TemplateStore().remove([unknown])
    assert TemplateStore().remove(["abcd1"])[0].key.startswith("abcd1")


def test_prune_takes_what_has_not_been_used() -> None:
    old, new = make(), make("b" * 64)
    os.utime(paths.templates_dir() / KEY / "template.json", (0, 0))
    found = TemplateStore().prune(unused_for_s=3600, dry_run=True)
    assert [item.name for item in found] == [old.key[:12]]
    TemplateStore().prune(unused_for_s=3600, dry_run=False)
    assert [t.key for t in TemplateStore().templates()] == [new.key]
    TemplateStore().used(new)
    assert TemplateStore().prune(unused_for_s=3600, dry_run=False) == []
    TemplateStore().prune(unused_for_s=0, dry_run=False)
    assert TemplateStore().templates() == []


def test_the_others_wait_for_the_one_who_makes_it_and_say_so() -> None:
    order: list[str] = []
    said: list[Event] = []

    async def one(name: str, emit: Callable[[Event], None]) -> None:
        async with TemplateStore().making(KEY, emit):
            order.append(f"{name} in")
            await asyncio.sleep(0.2)
            order.append(f"{name} out")

    async def both() -> None:
        first = asyncio.ensure_future(one("first", said.append))
        while not order:
            await asyncio.sleep(0)
        assert said == []
        await asyncio.gather(first, one("second", said.append))

    asyncio.run(both())
    assert order == ["first in", "first out", "second in", "second out"]
    [notice] = said
    assert isinstance(notice, Notice)
    assert left() == set()


MAKER = """
import asyncio, os, signal, sys
from fleetbox.backends.base import Disk
from fleetbox.backends.host.files.worker import Stop
from fleetbox.holder.warm import templates
from fleetbox.holder.warm.templates import SAVED, TemplateStore
from tests.unit.test_templates import KEY, a_template

calls = 0
def deadly(event, args):
    global calls
    if armed and event in ("os.rename", "os.mkdir", "os.chmod", "open"):
        calls += 1
        if calls == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
armed = False
sys.addaudithook(deadly)

async def main():
    global armed
    store = TemplateStore()
    async with store.making(KEY, lambda event: None) as staging:
        (staging / SAVED / "state").write_bytes(b"state")
        disk = Disk(staging / "disk.qcow2", "qcow2")
        disk.path.write_bytes(b"disk")
        armed = True
        store.publish(staging, disk, a_template(), Stop())
        armed = False

asyncio.run(main())
print(calls)
"""


def test_a_kill_at_any_moment_of_publishing_leaves_a_whole_template_or_none() -> None:
    paths.blobs_dir().mkdir(parents=True)
    seen = set()
    for moment in range(1, 60):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(MAKER), str(moment)], capture_output=True, text=True, check=False
        )
        store = TemplateStore()
        found = store.find(KEY)
        swept = store.sweep(dry_run=False)
        assert store.find(KEY) == found, "a whole one is not swept"
        if found is None:
            assert left() == set()
            assert not list(paths.blobs_dir().glob("*.qcow2"))
        seen.add(found is not None)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert found is not None or swept
        if found:
            store.discard(found)
    else:
        pytest.fail("publishing took more steps than were tried")
    assert seen == {True, False}


def test_what_is_being_made_is_not_swept() -> None:
    async def scenario() -> None:
        async with TemplateStore().making(KEY, lambda event: None) as folder:
            assert TemplateStore().sweep(dry_run=False) == []
            assert folder.exists()
            assert [p.name for p in paths.templates_dir().glob(".*.lock")] == [f".{KEY}.lock"]

    asyncio.run(scenario())
    assert left() == set()


def key(
    identity: dict[str, str] | None = None,
    authorized_key: str = "ssh-ed25519 AAAA",
    image: Image = IMAGE,
    control_line: bool = True,
    **spec: object,
) -> str:
    provisioner = Provisioner("web", Capabilities(disk_formats=("qcow2",), firmware_boot=True), authorized_key)
    wanted = MemberSpec(**spec)  # type: ignore[arg-type]
    return recipe(identity or {"backend": "fake"}, provisioner, wanted, image, control_line=control_line).key


def test_every_ingredient_changes_the_key(tmp_path: Path) -> None:
    kernels = [tmp_path / "a", tmp_path / "b"]
    for number, kernel in enumerate(kernels):
        kernel.write_bytes(bytes([number]))
    keys = [
        key(),
        key({"backend": "fake", "version": "2"}),
        key(authorized_key="ssh-ed25519 BBBB"),
        key(image=msgspec.structs.replace(IMAGE, digest="2" * 64)),
        key(control_line=False),
        key(cpus=1),
        key(memory_bytes=1 << 29),
        key(disk_bytes=1 << 31),
        key(boot="firmware"),
        *(key(kernel=str(kernel)) for kernel in kernels),
    ]
    assert len(set(keys)) == len(keys)
    kernels[0].write_bytes(b"\1")
    assert key(kernel=str(kernels[0])) == key(kernel=str(kernels[1])), "the content counts, not the name"


def test_what_does_not_shape_a_template_leaves_its_key() -> None:
    from fleetbox.specs import Fixture

    assert key() == key(fixtures=(Fixture("/a", "/b"),)) == key(image=msgspec.structs.replace(IMAGE, names=("other",)))


def test_a_change_of_what_guests_are_told_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from fleetbox.holder.warm import making

    before = key()
    with monkeypatch.context() as patch:
        patch.setattr(making, "PROGRAM", making.PROGRAM + "#")
        assert key() != before
    assert key() == before
    real = making.user_data
    monkeypatch.setattr(making, "user_data", lambda seed: real(seed) | {"timezone": "Etc/UTC"})
    assert key() != before
