"""Saving, restoring and cloning through the public API: real holder processes, fake machines that remember."""

from __future__ import annotations

from pathlib import Path

import pytest

import fleetbox
from fleetbox import Cluster, Member, paths, snapshots
from fleetbox.backends.fake import recall
from fleetbox.errors import ConflictError, HostError, UsageError
from fleetbox.identity import is_alive
from fleetbox.records import MemberState
from fleetbox.specs import Fixture
from tests.fakeguests import (
    Until,
    assert_untouched,
    handle,
    handles,
    identity,
    read,
    remember,
    write,
)


def test_a_cluster_goes_back_in_time_as_a_whole(web: Cluster, until: Until) -> None:
    before, was = handles(web), identity(web)
    saved = snapshots.save("web", name="before", description="clean")
    assert (saved.kind, list(saved.members)) == ("cluster", ["node-1", "node-2", "node-3"])
    assert_untouched(web, before, until)
    for member in web.members:
        write(member, "spoilt")
    snapshots.restore("web", "before")
    assert identity(web) == was
    for member in web.members:
        assert member.state is MemberState.RUNNING
        assert read(member) == member.name
        assert recall(handle(member)) == [f"I am {member.name}"]
    assert not any(is_alive(old.process) for old in before.values())


def test_to_and_fro_between_two_snapshots(web: Cluster) -> None:
    node = web.member("node-1")
    first = snapshots.save("web")
    remember(node, "and a second thing")
    write(node, "second")
    second = snapshots.save("web")
    for _ in range(2):
        snapshots.restore("web", first.id)
        assert (recall(handle(node)), read(node)) == (["I am node-1"], "node-1")
        snapshots.restore("web", second.id)
        assert (recall(handle(node)), read(node)) == (["I am node-1", "and a second thing"], "second")


def test_one_member_goes_back_and_the_others_are_let_alone(web: Cluster) -> None:
    before = handles(web)
    snapshots.save("web", name="all")
    remember(web.member("node-2"), "more")
    snapshots.restore("web/node-2", "all")
    after = handles(web)
    assert recall(after["node-2"]) == ["I am node-2"]
    assert after["node-2"] != before.pop("node-2")
    assert {name: after[name] for name in before} == before


def test_a_member_alone(web: Cluster) -> None:
    saved = snapshots.save("web/node-3", name="one")
    assert (saved.kind, list(saved.members)) == ("member", ["node-3"])
    remember(web.member("node-3"), "more")
    snapshots.restore("web/node-3", "one")
    assert recall(handle(web.member("node-3"))) == ["I am node-3"]
    with pytest.raises(UsageError, match="of one member"):
        snapshots.restore("web", "one")
    with pytest.raises(ConflictError, match="does not have node-1"):
        snapshots.restore("web/node-1", "one")


def test_a_stopped_member_is_saved_and_restored_as_its_disk(web: Cluster) -> None:
    web.stop(["node-2"])
    saved = snapshots.save("web")
    assert [m.state for m in saved.members.values()] == ["running", "stopped", "running"]
    web.start(["node-2"])
    write(web.member("node-2"), "spoilt")
    running = handle(web.member("node-2"))
    snapshots.restore("web", saved.id)
    assert web.member("node-2").state is MemberState.STOPPED
    assert not is_alive(running.process)
    assert read(web.member("node-2")) == "node-2"
    web.start(["node-2"])
    assert web.member("node-2").state is MemberState.RUNNING


def test_a_stopped_cluster_comes_back_running(web: Cluster) -> None:
    was = identity(web)
    saved = snapshots.save("web")
    web.stop()
    snapshots.restore("web", saved.id)
    assert identity(web) == was
    assert [recall(h) for h in handles(web).values()] == [[f"I am {name}"] for name in was]


def test_a_restored_member_stops_and_starts_like_any_other(web: Cluster) -> None:
    saved = snapshots.save("web")
    snapshots.restore("web", saved.id)
    was = identity(web)
    web.stop()
    web.start()
    assert identity(web) == was
    assert read(web.member("node-1")) == "node-1"


def test_a_destroyed_member_is_made_again_and_a_new_one_is_never_touched(web: Cluster) -> None:
    saved, was = snapshots.save("web"), identity(web)
    web.add(["late"])
    before = handles(web)
    with pytest.raises(ConflictError, match="does not have late"):
        snapshots.restore("web", saved.id)
    assert handles(web) == before
    web.destroy(["late", "node-2"])
    snapshots.restore("web", saved.id)
    assert identity(web) == was
    assert recall(handle(web.member("node-2"))) == ["I am node-2"]
    web.destroy(["node-1"])
    web.add(["node-1"])
    with pytest.raises(ConflictError, match="not the member that was saved"):
        snapshots.restore("web", saved.id)


def test_a_member_is_cloned_into_its_cluster(web: Cluster) -> None:
    saved = snapshots.save("web/node-1", name="one")
    before = handles(web)
    clone = snapshots.clone("one")
    assert isinstance(clone, Member)
    assert (clone.cluster, clone.name) == ("web", "node-4")
    assert recall(handle(clone)) == ["I am node-1"]
    assert read(clone) == "node-1"
    assert clone.record.id != saved.members["node-1"].id
    assert clone.ip not in {member.ip for member in web.members if member != clone}
    assert {name: h for name, h in handles(web).items() if name != "node-4"} == before
    with pytest.raises(ConflictError):
        snapshots.clone("one", "web/node-4")
    with pytest.raises(HostError, match="cpus"):
        snapshots.clone("one", "web/other", cpus=saved.members["node-1"].spec.cpus - 1)
    with pytest.raises(HostError, match="memory"):
        snapshots.clone("one", "elsewhere/other", memory_bytes=1 << 28)
    assert [member.name for member in web.members] == ["node-1", "node-2", "node-3", "node-4"]
    assert [cluster.name for cluster in fleetbox.clusters()] == ["web"]


def test_a_cluster_is_cloned_as_another(web: Cluster) -> None:
    web.stop(["node-3"])
    snapshots.save("web", name="all")
    before = identity(web)
    other = snapshots.clone("all", "copy")
    assert isinstance(other, Cluster)
    assert {m.name: m.state.value for m in other.members} == dict.fromkeys(before, "running")
    assert [recall(handle(m)) for m in other.members] == [["I am node-1"], ["I am node-2"], []]
    assert [read(m) for m in other.members] == ["node-1", "node-2", "node-3"]
    assert not {m.record.mac for m in other.members} & {entry[2] for entry in before.values()}
    assert identity(web) == before
    snapshots.restore("web", "all")
    assert identity(web) == before


def test_a_snapshot_of_another_kind_of_machine_is_refused(web: Cluster) -> None:
    saved = snapshots.save("web", name="all")
    before = handles(web)
    record = paths.snapshots_dir() / saved.id / "snapshot.json"
    record.write_text(record.read_text().replace('"version": "1"', '"version": "7"'))
    with pytest.raises(HostError, match="cannot run here"):
        snapshots.restore("web", "all")
    with pytest.raises(HostError, match="cannot run here"):
        snapshots.clone("all", "copy")
    assert handles(web) == before
    assert [cluster.name for cluster in fleetbox.clusters()] == ["web"]


def test_fixtures_come_back_as_they_were_and_clones_can_have_more(home: Path) -> None:
    for name in ("first", "second"):
        (home / name).mkdir()
        (home / name / "content").write_text(name)
    first, second = (Fixture(str(home / name), f"/srv/{name}") for name in ("first", "second"))
    cluster = fleetbox.up("web", fixtures=[first], cold=True)
    node = cluster.member("node-1")
    packed = Path(node.record.folder, "fixture-0.img").read_bytes()
    snapshots.save("web/node-1", name="one")
    (home / "first" / "content").unlink()
    (home / "first").rmdir()
    snapshots.restore("web/node-1", "one")
    assert Path(node.record.folder, "fixture-0.img").read_bytes() == packed
    clone = snapshots.clone("one", fixtures=[second])
    assert isinstance(clone, Member)
    assert clone.record.spec.fixtures == (first, second)
    assert Path(clone.record.folder, "fixture-0.img").read_bytes() == packed
    assert b"second" in Path(clone.record.folder, "fixture-1.img").read_bytes()
    with pytest.raises(UsageError, match="another fixture"):
        snapshots.clone("one", fixtures=[Fixture(str(home / "second"), "/srv/first")])
