"""The cluster's record: durable, whole, grouped writes; and the holder's lock."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fleetbox import paths
from fleetbox.errors import RecordError
from fleetbox.holder import store as store_module
from fleetbox.holder.lock import HolderLock
from fleetbox.holder.store import ClusterStore, write_atomically
from fleetbox.records import ClusterRecord, MemberRecord, MemberState
from fleetbox.specs import MemberSpec


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path / "home"))
    (tmp_path / "web").mkdir()


def cluster() -> ClusterRecord:
    return ClusterRecord("c" * 16, "web", "fake", "", "", "host", 1.0)


def member(name: str) -> MemberRecord:
    return MemberRecord(
        "a" * 16, name, MemberState.CREATING, MemberSpec(), "", "", "", str(paths.member_dir("web", name)), 1.0
    )


def test_what_is_committed_is_read_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        one = ClusterStore(tmp_path / "web" / "cluster.json")
        one.load()
        assert one.record is None
        one.create(cluster())
        one.put_member(member("node-1"))
        one.change_member("node-1", state=MemberState.RUNNING)
        await one.commit()
        other = ClusterStore(one.path)
        other.load()
        assert other.record == one.record
        one.drop_member("node-1")
        one.drop_member("node-1")
        await one.commit()
        other.load()
        assert other.current.members == {}
        await one.remove()
        assert list(one.path.parent.iterdir()) == []

    asyncio.run(scenario())


def test_commits_that_come_together_share_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = []

    def counted(path: Path, data: bytes) -> None:
        writes.append(len(data))
        write_atomically(path, data)

    monkeypatch.setattr(store_module, "write_atomically", counted)

    async def scenario() -> None:
        one = ClusterStore(tmp_path / "web" / "cluster.json")
        one.create(cluster())

        async def add(number: int) -> None:
            one.put_member(member(f"node-{number}"))
            await one.commit()

        await asyncio.gather(*(add(n) for n in range(50)))
        other = ClusterStore(one.path)
        other.load()
        assert len(other.current.members) == 50

    asyncio.run(scenario())
    assert len(writes) <= 3


def test_a_write_that_fails_leaves_the_old_record_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        one = ClusterStore(tmp_path / "web" / "cluster.json")
        one.create(cluster())
        await one.commit()
        before = one.path.read_bytes()

        def full(fd: int) -> None:
            raise OSError(28, "No space left on device")

        one.put_member(member("node-1"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(RecordError, match="No space left"):
                await one.commit()
        assert one.path.read_bytes() == before
        assert list(one.path.parent.iterdir()) == [one.path], "no temporary file stays"
        await one.commit()
        assert one.path.read_bytes() != before

    asyncio.run(scenario())


def test_an_unreadable_record_is_kept_with_a_copy_aside(tmp_path: Path) -> None:
    path = tmp_path / "web" / "cluster.json"
    path.write_bytes(b'{"schema": 1, "na')
    for _ in range(2):
        with pytest.raises(RecordError, match=r"cluster\.json"):
            ClusterStore(path).load()
    assert path.read_bytes() == b'{"schema": 1, "na'
    assert (tmp_path / "web" / "cluster.json.unreadable").read_bytes() == b'{"schema": 1, "na'


def test_a_newer_schema_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "web" / "cluster.json"
    path.write_bytes(b'{"schema": 99, "whatever": true}')
    with pytest.raises(RecordError, match="newer"):
        ClusterStore(path).load()


HOLD = """
import sys, time
from pathlib import Path
from fleetbox.holder.lock import HolderLock
print(HolderLock.take(Path(sys.argv[1])) is not None, flush=True)
time.sleep(60)
"""


def test_one_lock_at_a_time_and_a_dead_owner_does_not_block(tmp_path: Path) -> None:
    path = tmp_path / "holder.lock"
    owner = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline().strip() == "True"
        assert HolderLock.take(path) is None
    finally:
        owner.kill()
        owner.communicate()
    mine = HolderLock.take(path)
    assert mine is not None
    assert HolderLock.take(path) is None
    path.unlink()  # its cluster was destroyed: a lock on the old file protects nothing
    new = HolderLock.take(path)
    assert new is not None
    new.release()
    mine.release()
