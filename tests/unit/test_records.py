"""Reading the records: one that is broken is named and hides no other."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fleetbox import paths
from fleetbox.errors import NotFoundError, RecordError
from fleetbox.identity import ProcessIdentity, identify
from fleetbox.records import (
    LIVE_STATES,
    SCHEMA,
    ClusterRecord,
    HolderRecord,
    MachineHandle,
    MemberRecord,
    MemberState,
    cluster_names,
    live_holder,
    observed_state,
    read_cluster,
    read_clusters,
)
from fleetbox.specs import Fixture, MemberSpec


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path))
    return tmp_path


def alive() -> ProcessIdentity:
    identity = identify(os.getpid())
    assert identity is not None
    return identity


def dead() -> ProcessIdentity:
    return msgspec.structs.replace(alive(), start_ticks=1)


def member(
    state: MemberState = MemberState.RUNNING, handle: MachineHandle | None = None, cluster: str = "mine"
) -> MemberRecord:
    return MemberRecord(
        id="0123456789abcdef",
        name="node-1",
        state=state,
        spec=MemberSpec(fixtures=(Fixture("/a", "/b"),)),
        image_digest="d" * 64,
        mac="02:00:00:00:00:01",
        ip="192.168.1.2",
        folder=str(paths.member_dir(cluster, "node-1")),
        created_at=1.5,
        handle=handle,
    )


def cluster(name: str = "mine") -> ClusterRecord:
    return ClusterRecord(
        id="fedcba9876543210",
        name=name,
        backend="fake",
        backend_reason="--backend",
        accelerator="",
        network="host",
        created_at=2.5,
        members={
            "node-1": member(
                handle=MachineHandle(alive(), str(paths.cluster_runtime_dir(name) / "x.sock")), cluster=name
            )
        },
    )


def write(name: str, data: bytes) -> Path:
    path = paths.cluster_record(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_record_survives_a_round_trip() -> None:
    write("mine", msgspec.json.encode(cluster()))
    assert read_cluster("mine") == cluster()
    assert cluster().schema == SCHEMA


def test_unknown_keys_of_a_later_version_with_the_same_schema_are_ignored() -> None:
    write("mine", msgspec.json.encode(msgspec.to_builtins(cluster()) | {"invented_later": 1}))
    assert read_cluster("mine") == cluster()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b'{"schema": "1"}',
        b'{"schema": 1}',
        b"\xff\xfe",
        b'{"schema": 1, "id": "\xff"}',
        msgspec.json.encode(cluster())[:-40],
        msgspec.json.encode(cluster()).replace(b'"running"', b'"flying"'),
    ],
)
def test_broken_record_is_named_and_kept(data: bytes) -> None:
    path = write("mine", data)
    with pytest.raises(RecordError) as error:
        read_cluster("mine")
    assert str(path) in error.value.message
    assert error.value.hint
    assert path.read_bytes() == data


def _member(**lies: object) -> Callable[[dict[str, Any]], None]:
    return lambda record: record["members"]["node-1"].update(lies)


@pytest.mark.parametrize(
    "lie",
    [
        lambda r: r.update(name="other"),
        lambda r: r.update(name="../other"),
        lambda r: r.update(members={"node-2": r["members"]["node-1"]}),
        lambda r: r.update(members={"../x": r["members"]["node-1"] | {"name": "../x"}}),
        lambda r: r.update(bridge="../../eth0"),
        lambda r: r.update(subnet="10.0.0.0/8; flush ruleset"),
        _member(name="-rf"),
        _member(id="../../x"),
        _member(image_digest="../" * 8),
        _member(base="../" * 8),
        _member(slot=7),
        _member(mac="02:00:00:00:00:01,romfile=/etc/shadow"),
        _member(mac="02:00:00:00:00:01\n"),
        _member(ip="1.2.3.4\n- bad"),
        _member(instance="i-1\nruncmd: [reboot]"),
        _member(folder=""),
        _member(folder="/"),
        _member(folder="data/clusters/mine/node-1"),
        _member(folder="/elsewhere/clusters/mine/node-1"),
        lambda r: _member(folder=f"{r['members']['node-1']['folder']}/../../other/node-1")(r),
        lambda r: _member(folder=r["members"]["node-1"]["folder"].removesuffix("/node-1"))(r),
        lambda r: r["members"]["node-1"]["handle"].update(api_socket="/etc/passwd"),
        lambda r: r["members"]["node-1"]["handle"].update(
            api_socket=str(paths.cluster_runtime_dir("mine") / "../../x" / paths.cluster_runtime_dir("mine").name / "s")
        ),
        lambda r: r["members"]["node-1"]["handle"]["process"].update(pid=0),
        lambda r: r["members"]["node-1"]["handle"]["process"].update(pid=1 << 40),
        lambda r: r["members"]["node-1"]["handle"]["process"].update(pid=-1),
    ],
)
def test_a_record_that_names_what_is_not_its_own_is_refused_and_kept(lie: Callable[[dict[str, Any]], None]) -> None:
    """What is done with a record deletes folders and ends processes."""
    record = msgspec.to_builtins(cluster())
    path = write("mine", msgspec.json.encode(record))
    assert read_cluster("mine") == cluster()
    lie(record)
    data = msgspec.json.encode(record)
    path.write_bytes(data)
    with pytest.raises(RecordError):
        read_cluster("mine")
    assert path.read_bytes() == data


def test_newer_schema_is_refused_not_guessed_at() -> None:
    write("mine", b'{"schema": %d, "id": {"is": "something else now"}}' % (SCHEMA + 1))
    with pytest.raises(RecordError, match="newer"):
        read_cluster("mine")


def test_record_that_is_no_file_is_an_error_of_its_own() -> None:
    paths.cluster_record("mine").mkdir(parents=True)
    with pytest.raises(RecordError, match="cannot be read"):
        read_cluster("mine")


def test_missing_cluster_is_not_found() -> None:
    with pytest.raises(NotFoundError, match="'mine'"):
        read_cluster("mine")
    assert cluster_names() == []
    assert list(read_clusters()) == []


def test_broken_record_hides_no_other() -> None:
    write("c", msgspec.json.encode(cluster("c")))
    write("b", b"{")
    write("a", msgspec.json.encode(cluster("a")))
    paths.cluster_state_dir("half-made").mkdir()
    first, broken, last = read_clusters()
    assert isinstance(first, ClusterRecord)
    assert first.name == "a"
    assert isinstance(broken, RecordError)
    assert isinstance(last, ClusterRecord)
    assert last.name == "c"


@pytest.mark.parametrize("state", list(MemberState))
def test_observed_state_checks_what_claims_to_live(state: MemberState) -> None:
    assert observed_state(member(state, MachineHandle(alive()))) is state
    after = MemberState.STOPPED if state in LIVE_STATES else state
    assert observed_state(member(state, MachineHandle(dead()))) is after


def test_observed_state_without_a_process() -> None:
    assert observed_state(member(MemberState.STARTING)) is MemberState.STARTING
    assert observed_state(member(MemberState.RUNNING)) is MemberState.STOPPED
    assert observed_state(member(MemberState.CREATING)) is MemberState.CREATING


def test_holder_is_live_only_while_its_process_is() -> None:
    assert live_holder("mine") is None
    lock = paths.holder_lock("mine")
    lock.parent.mkdir(parents=True)
    for data in (b"", b"{", b"\xff", b"{}"):
        lock.write_bytes(data)
        assert live_holder("mine") is None
    holder = HolderRecord(alive(), "/run/holder.sock", "0.1", 1)
    lock.write_bytes(msgspec.json.encode(holder))
    assert live_holder("mine") == holder
    lock.write_bytes(msgspec.json.encode(msgspec.structs.replace(holder, process=dead())))
    assert live_holder("mine") is None
