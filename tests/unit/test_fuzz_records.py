"""Every record cut at each of its bytes, and with a bit of each flipped: no reader fails in a way that it does not say.

What is damaged is named by a fleetbox error (or, where it is only a cache, taken for absent), stays as it is byte by
byte, and hides no other. Some 60,000 variants, all of them the same in every run.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec
import pytest

from fleetbox import events, paths, records
from fleetbox.backends.host import saved
from fleetbox.backends.host.network import forwarding, naming
from fleetbox.backends.host.network.journal import ForeignRule, NetworkRecord, path_of, read_networks
from fleetbox.backends.qemu import accelerator
from fleetbox.errors import FleetboxError, RecordError
from fleetbox.holder.images.store import ImageRecord, ImageStore
from fleetbox.holder.snapshots import clone
from fleetbox.holder.snapshots.store import SnapshotStore
from fleetbox.holder.store import ClusterStore
from fleetbox.holder.warm.templates import TemplateStore
from fleetbox.identity import boot_id, identify
from fleetbox.records import ClusterRecord, HolderRecord, MachineHandle, MemberRecord, MemberState
from fleetbox.snapshot import Blob, Snapshot, SnapshotFile
from fleetbox.specs import Fixture, MemberSpec
from fleetbox.template import Origin, Template

DIGEST = "ab" * 32
ME = identify(os.getpid())
assert ME is not None
ORIGIN = Origin("web", "192.168.7.2", "02:00:00:00:00:01", 24, "192.168.7.1", ("192.168.7.1",), "ssh-ed25519 AAAA x")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path))
    monkeypatch.setattr(paths, "host_dir", lambda: tmp_path / "host")
    (tmp_path / "host").mkdir()
    return tmp_path


@dataclass(frozen=True)
class Kind:
    """One kind of record: where it is, what is in it, and how it is read. `others` must find what stands beside it."""

    path: Path
    data: bytes
    read: Callable[[], object]
    others: Callable[[], object] = lambda: None
    moved: bool = False  # what cannot be read is put aside by its reader
    every: int = 1  # of the variants, where another kind tries them all


def member(cluster: str, name: str = "node-1") -> MemberRecord:
    return MemberRecord(
        id="0123456789abcdef",
        name=name,
        state=MemberState.RUNNING,
        spec=MemberSpec(fixtures=(Fixture("/srv/data", "/data"),)),
        image_digest=DIGEST,
        mac="02:00:00:00:00:01",
        ip="192.168.7.2",
        folder=str(paths.member_dir(cluster, name)),
        created_at=1764241200.5,
        instance="i-0123456789abcdef",
        base="cd" * 32,
        handle=MachineHandle(ME, str(paths.cluster_runtime_dir(cluster) / "x.sock")),
    )


def cluster(name: str) -> ClusterRecord:
    return ClusterRecord(
        id="fedcba9876543210",
        name=name,
        backend="fake",
        backend_reason="FLEETBOX_BACKEND",
        accelerator="tcg",
        network="host",
        created_at=1764241200.0,
        subnet="192.168.7.0/24",
        bridge=naming.bridge_name(name),
        members={"node-1": member(name)},
        owner=ME,
    )


def put(path: Path, value: object) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(value))
    return path.read_bytes()


def a_cluster() -> Kind:
    path, other = paths.cluster_record("web"), paths.cluster_record("other")
    data = put(path, cluster("web"))
    put(other, cluster("other"))

    def others() -> None:
        assert "other" in {r.name for r in records.read_clusters() if not isinstance(r, RecordError)}

    return Kind(path, data, lambda: records.read_cluster("web"), others)


def a_cluster_to_its_holder() -> Kind:
    kind = a_cluster()
    return Kind(kind.path, kind.data, lambda: ClusterStore(kind.path).load(), kind.others, every=3)


def a_holder() -> Kind:
    path = paths.holder_lock("web")
    return Kind(path, put(path, HolderRecord(ME, "/run/x.sock", "1.0", 1)), lambda: records.live_holder("web"))


def a_snapshot() -> Kind:
    def snapshot(id_: str, name: str) -> Snapshot:
        return Snapshot(
            id=id_,
            name=name,
            description="before",
            kind="member",
            created_at=1764241200.0,
            cluster="web",
            subnet="192.168.7.0/24",
            backend="qemu",
            accelerator="tcg",
            identity={"cpu": "qemu64"},
            members={"node-1": member("web")},
            blobs=(Blob(DIGEST, "raw", image=True), Blob("cd" * 32, "qcow2", image=False, backing=DIGEST)),
            files=(SnapshotFile("node-1/disk.raw", 1, 2),),
            bound_to="fedcba9876543210",
        )

    path, other = (paths.snapshots_dir() / (c * 16) / "snapshot.json" for c in "ab")
    data = put(path, snapshot("a" * 16, "one"))
    put(other, snapshot("b" * 16, "two"))
    store = SnapshotStore()

    def read() -> None:
        found, _ = store.readable()
        assert "two" in {s.name for s in found}
        store.bound_clusters()
        store.pins()

    return Kind(path, data, read)


def an_image() -> Kind:
    def image(digest: str, name: str) -> ImageRecord:
        (paths.blobs_dir() / f"{digest}.raw").write_bytes(b"disk")
        return ImageRecord(digest, "file:/x", "x86_64", 4, 1764241200.0, "direct", root="UUID=1", names=(name,))

    paths.blobs_dir().mkdir(parents=True)
    path, other = (paths.images_dir() / d / "image.json" for d in (DIGEST, "ef" * 32))
    data = put(path, image(DIGEST, "one"))
    put(other, image("ef" * 32, "two"))
    store = ImageStore()

    def others() -> None:
        assert store.inspect("ef" * 32).names[-1:] == ("two",)

    return Kind(path, data, lambda: [store.images(), list(store.records()), store.find("one")], others)


def a_template() -> Kind:
    def template(key: str) -> Template:
        folder = paths.templates_dir() / key
        (folder / "saved").mkdir(parents=True)
        (folder / "disk.raw").write_bytes(b"disk")
        return Template(key, 1764241200.0, "debian-12", DIGEST, "qemu", "tcg", 2, 1 << 30, 0, True, ORIGIN)

    path, other = (paths.templates_dir() / k / "template.json" for k in (DIGEST, "ef" * 32))
    data = put(path, template(DIGEST))
    put(other, template("ef" * 32))
    store = TemplateStore()

    def others() -> None:
        assert "ef" * 32 in {t.key for t in store.templates()}

    return Kind(path, data, lambda: store.find(DIGEST), others)


def a_network() -> Kind:
    def network(name: str) -> NetworkRecord:
        bridge = naming.bridge_name(name)
        rule = ForeignRule("ip", "filter", "FORWARD", f"fleetbox:{bridge}:in")
        return NetworkRecord(
            name,
            bridge,
            naming.table_name(bridge),
            ME,
            boot_id(),
            4026531840,
            "192.168.7.0/24",
            taps={"node-1": naming.tap_name(name, "node-1"), "node-1/1": naming.tap_name(name, "node-1", 1)},
            rules=(rule,),
            resolver=ME,
        )

    path = path_of(naming.bridge_name("web"))
    data = put(path, network("web"))
    put(path_of(naming.bridge_name("other")), network("other"))

    def read() -> None:
        assert "other" in {r.cluster for r in read_networks() if not isinstance(r, RecordError)}

    return Kind(path, data, read)


def a_forwarding() -> Kind:
    path = paths.host_dir() / "forwarding-7.json"
    record = forwarding.ForwardingRecord(boot_id(), {"eth0": {naming.bridge_name("web"): "/state"}})
    return Kind(path, put(path, record), lambda: forwarding._read(7), moved=True)


def a_saved_machine(tmp: Path | None = None) -> Kind:
    folder = paths.templates_dir() / "x"
    folder.mkdir(parents=True)
    (folder / saved.STATE).touch()
    record = saved.Saved(
        format=saved.FORMAT,
        identity={"cpu": "qemu64"},
        cpus=2,
        memory_bytes=1 << 30,
        disks=1,
        seed=True,
        fixtures=0,
        control_line=True,
    )
    return Kind(folder / saved.MACHINE, put(folder / saved.MACHINE, record), lambda: saved.read(folder))


def an_origin() -> Kind:
    path = paths.snapshots_dir() / "x" / "origin.json"
    return Kind(path, put(path, ORIGIN), lambda: clone._origin(path.parent))


def a_kvm_verdict() -> Kind:
    path = paths.kvm_verdict()
    return Kind(
        path,
        put(path, accelerator.Verdict("key", False, "why")),
        lambda: accelerator._kept_verdict.__wrapped__("key", None, path),
    )


def an_event_log() -> Kind:
    path = paths.events_log("web")
    path.parent.mkdir(parents=True)
    path.write_bytes(
        b"".join(
            msgspec.json.encode(events.LoggedEvent(seq=n, at=1764241200.5, event="member", member="node-1")) + b"\n"
            for n in range(1, 6)
        )
    )
    return Kind(path, path.read_bytes(), lambda: list(events.events("web")))


KINDS: dict[str, Callable[[], Kind]] = {
    "cluster": a_cluster,
    "cluster, to its holder": a_cluster_to_its_holder,
    "holder": a_holder,
    "snapshot": a_snapshot,
    "image": an_image,
    "template": a_template,
    "network": a_network,
    "forwarding": a_forwarding,
    "saved machine": a_saved_machine,
    "origin": an_origin,
    "KVM verdict": a_kvm_verdict,
    "events": an_event_log,
}


def variants(data: bytes, seed: str) -> Iterator[bytes]:
    """Cut at each byte, then with one bit of each byte flipped, then overwritten in places by what JSON dislikes."""
    chance = random.Random(seed)
    for end in range(len(data)):
        yield data[:end]
    for index, byte in enumerate(data):
        yield data[:index] + bytes([byte ^ 1 << chance.randrange(8)]) + data[index + 1 :]
    for _ in range(200):
        index = chance.randrange(len(data))
        junk = chance.choice((b"\0", b"\xff\xfe", b"[" * 40, b"1e999", b"-1", b"\\ud800", b"\\u0000", b'""', b"null"))
        yield data[:index] + junk + data[index + chance.randrange(8) :]
    yield from (b"[" * 100_000, b'{"schema":1,"x":' + b"[" * 100_000, b"\0" * 4096, b"\xef\xbb\xbf" + data, data * 2)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_said_and_kept(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "examine", lambda qemu: (False, "as asked"))
    one = KINDS[kind]()
    one.read()
    one.others()
    refused, said = 0, set[str]()
    for number, damaged in enumerate(islice(variants(one.data, kind), 0, None, one.every)):
        one.path.write_bytes(damaged)
        try:
            one.read()
        except FleetboxError as e:
            refused += 1
            said.add(f"{e.message}{e.why}{e.hint}")
        if number % 25 == 0:
            one.others()
        if kind == "KVM verdict":
            continue  # a cache: found out again and replaced
        aside = one.path.with_suffix(".unreadable")
        kept = aside if one.moved and not one.path.exists() else one.path
        assert kept.read_bytes() == damaged
    if kind in ("cluster", "cluster, to its holder", "saved machine", "origin"):
        assert refused > len(one.data) // one.every, "every cut is noticed"
    assert all(said), "an error says something"
    assert not any("\n" in text for text in said)
    one.path.write_bytes(one.data)
    one.read()
