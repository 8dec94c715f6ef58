"""A cluster's event log: in order, whole, bounded, and read by whoever wants to."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetbox import paths
from fleetbox.errors import NotFoundError
from fleetbox.events import EventReader, LoggedEvent, events
from fleetbox.holder import eventlog
from fleetbox.holder.eventlog import EventLog
from fleetbox.holder.store import ClusterStore
from fleetbox.records import ClusterRecord, MemberRecord, MemberState
from fleetbox.specs import MemberSpec


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path))
    paths.cluster_state_dir("web").mkdir(parents=True)
    return paths.cluster_state_dir("web")


def opened() -> EventLog:
    log = EventLog("web")
    log.open()
    return log


@pytest.fixture
def log() -> Iterator[EventLog]:
    log = opened()
    yield log
    log.close()


def said(found: Iterator[LoggedEvent] | list[LoggedEvent]) -> list[str]:
    return [e.message or f"{e.event} {e.member} {e.state}".strip() for e in found]


def test_events_are_numbered_and_read_in_order(log: EventLog) -> None:
    for text in ("one", "two", "three"):
        log.append("notice", message=text)
    found = list(events("web"))
    assert [(e.seq, e.message) for e in found] == [(1, "one"), (2, "two"), (3, "three")]
    assert found[0].at <= found[1].at <= found[2].at
    assert said(events("web", since=2)) == ["three"]
    assert said(events("web", since=3)) == []


def test_a_reader_goes_on_where_it_ended(log: EventLog) -> None:
    with EventReader("web") as reader:
        assert list(reader.read()) == []
        log.append("notice", message="one")
        assert said(reader.read()) == ["one"]
        assert said(reader.read()) == []
        log.append("notice", message="two")
        assert said(reader.read()) == ["two"]


def test_a_line_that_a_crash_has_cut_is_skipped_and_the_next_holder_goes_on(log: EventLog) -> None:
    log.append("notice", message="one")
    log.append("notice", message="two")
    path = paths.events_log("web")
    whole = path.read_bytes()
    for cut in range(len(whole) - 1, whole.index(b"\n"), -1):
        path.write_bytes(whole[:cut])
        assert said(events("web")) == ["one"], "it may still be being written"
        after = opened()
        after.append("notice", message="after")
        after.close()
        assert [e.seq for e in events("web")] == list(range(1, len(list(events("web"))) + 1))
        assert said(events("web")) == (["one", "two", "after"] if cut == len(whole) - 1 else ["one", "after"])


def test_whatever_is_in_the_file_no_reader_trips(log: EventLog) -> None:
    with paths.events_log("web").open("wb") as file:
        file.write(b"\0\xff\n[]\n{}\n" + b"x" * 300_000 + b"\n")
        file.write(b'{"seq":7,"at":1,"event":"notice","message":"seven"}\n')
    assert said(events("web", since=6)) == ["seven"]


def test_a_full_log_is_put_aside_and_readers_miss_nothing(monkeypatch: pytest.MonkeyPatch, log: EventLog) -> None:
    monkeypatch.setattr(eventlog, "FILE_BYTES_MAX", 1000)
    slow, fast = EventReader("web"), EventReader("web")
    log.append("notice", message="0")
    found = said(slow.read()) + said(fast.read())
    assert found == ["0", "0"]
    seen = []
    for number in range(1, 100):
        log.append("notice", message=str(number))
        seen += said(fast.read())
        if number == 20:
            assert paths.events_log_before("web").exists()
            assert said(slow.read()) == [str(n) for n in range(1, 21)]
    assert seen == [str(n) for n in range(1, 100)]
    behind = list(slow.read())
    missing = [e.count for e in behind if e.event == "gap"]
    assert len(missing) == 1, "it is told what it has missed"
    assert missing[0] + len(behind) - 1 == 99 - 20
    assert behind[-1].message == "99"
    assert sum(p.stat().st_size for p in (paths.events_log("web"), paths.events_log_before("web"))) < 2400
    slow.close()
    fast.close()


def test_numbers_go_on_after_the_log_was_put_aside(monkeypatch: pytest.MonkeyPatch, log: EventLog) -> None:
    monkeypatch.setattr(eventlog, "FILE_BYTES_MAX", 1)
    log.append("notice", message="one")
    log.append("notice", message="two")
    after = opened()
    after.append("notice", message="three")
    after.close()
    assert [(e.seq, e.event, e.message) for e in events("web")] == [
        (1, "gap", ""),
        (2, "notice", "two"),
        (3, "notice", "three"),
    ]


def test_a_full_disk_delays_events_and_costs_nothing_else(monkeypatch: pytest.MonkeyPatch, log: EventLog) -> None:
    log.append("notice", message="one")
    write = os.write

    def full(fd: int, data: bytes) -> int:
        write(fd, data[:5])
        return 5

    with monkeypatch.context() as patch:
        patch.setattr(eventlog.os, "write", full)
        log.append("notice", message="two")
        log.append("notice", message="three")
    log.append("notice", message="four")
    assert said(events("web")) == ["one", "two", "three", "four"]


def test_a_follower_sees_what_comes_across_holders_until_the_cluster_is_gone(log: EventLog) -> None:
    log.append("notice", message="one")
    seen: list[str] = []
    got_one = threading.Event()

    def follow() -> None:
        for event in events("web", follow=True):
            seen.extend(said([event]))
            got_one.set()

    follower = threading.Thread(target=follow)
    follower.start()
    assert got_one.wait(20)
    log.append("notice", message="two")
    log.close()  # its holder ended
    after = opened()
    after.append("notice", message="three")
    after.append("cluster", state="removed")
    after.close()
    follower.join(20)
    assert not follower.is_alive()
    assert seen == ["one", "two", "three", "cluster  removed"]


def test_following_a_cluster_whose_folder_is_deleted_ends(log: EventLog, folder: Path) -> None:
    log.append("notice", message="one")
    found = events("web", follow=True)
    assert next(found).message == "one"
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert list(found) == []


def test_there_is_no_log_of_no_cluster() -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        events("nowhere")


def member(name: str, state: MemberState = MemberState.CREATING) -> MemberRecord:
    return MemberRecord("a" * 16, name, state, MemberSpec(), "", "", "", "/x", 1.0)


def test_changes_of_members_are_logged_in_order_once_they_are_on_disk(log: EventLog) -> None:
    async def scenario() -> None:
        store = ClusterStore(paths.cluster_record("web"), log)
        store.create(ClusterRecord("c" * 16, "web", "fake", "", "", "host", 1.0))
        store.put_member(member("node-1"))
        assert not paths.events_log("web").exists()
        await store.commit()
        store.change_member("node-1", state=MemberState.STARTING)
        store.change_member("node-1", ip="10.0.0.2")
        store.change_member("node-1", state=MemberState.STOPPED, error="out of memory")
        await store.commit()
        store.drop_member("node-1")
        await store.commit()
        await store.remove()

    asyncio.run(scenario())
    assert [(e.event, e.member, e.state, e.message) for e in events("web")] == [
        ("cluster", "", "created", ""),
        ("member", "node-1", "creating", ""),
        ("member", "node-1", "starting", ""),
        ("member", "node-1", "stopped", "out of memory"),
        ("member", "node-1", "removed", ""),
        ("cluster", "", "removed", ""),
    ]


def test_a_change_that_a_dying_holder_recorded_but_did_not_log_is_logged_by_the_next(log: EventLog) -> None:
    log.append("member", member="node-1", state="starting")
    log.append("member", member="node-2", state="creating")
    log.append("member", member="node-3", state="running")
    record = ClusterRecord(
        "c" * 16,
        "web",
        "fake",
        "",
        "",
        "host",
        1.0,
        members={"node-1": member("node-1", MemberState.RUNNING), "node-3": member("node-3", MemberState.RUNNING)},
    )
    after = opened()
    after.catch_up(record)
    after.close()
    assert said(events("web", since=3)) == ["member node-1 running", "member node-2 removed"]


def test_the_stream_waits_for_its_reader_and_ends_with_the_holder(log: EventLog) -> None:
    async def scenario() -> None:
        log.append("notice", message="one")
        stream = log.lines(0, follow=True)
        assert b'"one"' in await anext(stream)
        pending = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        log.append("notice", message="two")
        assert b'"two"' in await pending
        log.append("notice", message="three")
        log.close()
        assert [b'"three"' in line async for line in stream] == [True]
        assert [line async for line in log.lines(3, follow=False)] == []

    asyncio.run(scenario())
