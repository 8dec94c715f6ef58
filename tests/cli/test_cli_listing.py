"""`ls`, `status`, `inspect` and `logs`: from records and files, without a holder."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import msgspec
import pytest

from fleetbox import paths
from fleetbox.records import MemberState
from fleetbox_cli.render import Table, age, printable
from fleetbox_cli.views import short_image
from tests.cli.conftest import Run, write_cluster


def test_ls_without_clusters_says_how_to_go_on(run: Run) -> None:
    assert run("ls").stdout == "no clusters; `fleetbox up mycluster` makes one\n"
    assert run("ls", "-q").stdout == ""
    assert run("ls", "--json").envelope["data"] == {"clusters": [], "unreadable": []}


def test_ls_shows_the_columns(run: Run) -> None:
    write_cluster("demo", "node-1", "node-2")
    write_cluster("other", "db", running=False)
    done = run("ls")
    header, *rows = [line.split() for line in done.stdout.splitlines()]
    assert header == ["CLUSTER", "MEMBER", "STATE", "ADDRESS", "IMAGE", "CPUS", "MEMORY", "AGE"]
    assert rows == [
        ["demo", "node-1", "running", "192.168.7.2", "debian-12", "2", "1G", "5m"],
        ["demo", "node-2", "running", "192.168.7.3", "debian-12", "2", "1G", "5m"],
        ["other", "db", "stopped", "192.168.7.2", "debian-12", "2", "1G", "5m"],
    ]
    assert [c["name"] for c in run("ls", "--cluster", "demo", "--json").envelope["data"]["clusters"]] == ["demo"]
    assert run("ls", "--cluster", "nobody").exit_code == 3


def test_a_dead_machine_is_shown_as_stopped(run: Run) -> None:
    record = write_cluster("demo", "node-1")
    member = record.members["node-1"]
    assert member.handle is not None
    gone = msgspec.structs.replace(member.handle.process, start_ticks=1)
    dead = msgspec.structs.replace(member, handle=msgspec.structs.replace(member.handle, process=gone))
    changed = msgspec.structs.replace(record, members={"node-1": dead})
    paths.cluster_record("demo").write_bytes(msgspec.json.encode(changed))
    assert dead.state is MemberState.RUNNING
    [cluster] = run("ls", "--json").envelope["data"]["clusters"]
    assert cluster["members"][0]["state"] == "stopped"


def test_an_unreadable_record_is_named_and_hides_no_other(run: Run) -> None:
    write_cluster("broken", "node-1")
    write_cluster("demo", "node-1")
    paths.cluster_record("broken").write_text('{"schema": 1, "name":')
    done = run("ls")
    assert done.exit_code == 0
    assert "demo" in done.stdout
    assert done.stderr.startswith(f"warning: the record {paths.cluster_record('broken')} cannot be understood\n")
    data = run("ls", "--json").envelope["data"]
    assert [c["name"] for c in data["clusters"]] == ["demo"]
    assert [e["code"] for e in data["unreadable"]] == ["record"]


def test_status_without_a_holder(run: Run) -> None:
    write_cluster("demo", "node-1", running=False)
    done = run("status", "demo")
    assert done.exit_code == 0
    shown = dict(line.split(None, 1) for line in done.stdout.splitlines()[:4])
    assert shown["holder"] == "not running"
    assert shown["backend"] == "fake, none (FLEETBOX_BACKEND)"
    assert shown["network"] == "host 192.168.7.0/24 fb0"
    assert "node-1  stopped" in done.stdout
    assert run("status", "node-1", "--json").envelope["data"]["holder_running"] is False


def test_inspect_prints_the_record(run: Run) -> None:
    record = write_cluster("demo", "node-1")
    assert json.loads(run("inspect", "demo").stdout) == json.loads(msgspec.json.encode(record))
    member = json.loads(run("inspect", "demo/node-1").stdout)
    assert member == json.loads(msgspec.json.encode(record.members["node-1"]))
    assert run("inspect", record.members["node-1"].id[:12], "--json").envelope["data"] == member


def _log(content: bytes) -> Path:
    path = paths.serial_log("demo", "node-1")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("tail", "shown"),
    [("0", ""), ("1", "three\n"), ("2", "two\nthree\n"), ("9", "one\ntwo\nthree\n")],
)
def test_logs_tail(run: Run, tail: str, shown: str) -> None:
    write_cluster("demo", "node-1", running=False)
    _log(b"one\ntwo\nthree\n")
    assert run("logs", "node-1", "--tail", tail).stdout == shown
    _log(b"one\ntwo\nthree")
    assert run("logs", "node-1", "--tail", tail).stdout == shown.removesuffix("\n")


def test_logs_tail_reads_from_the_end_of_long_files(run: Run) -> None:
    write_cluster("demo", "node-1", running=False)
    lines = [f"line {i} {'x' * 90}" for i in range(5000)]
    _log("\n".join(lines).encode() + b"\n")
    assert run("logs", "node-1", "--tail", "1500").stdout.splitlines() == lines[-1500:]


def test_logs_before_the_first_start(run: Run) -> None:
    write_cluster("demo", "node-1", running=False)
    done = run("logs", "node-1")
    assert done.exit_code == 3
    assert "hint: `fleetbox start demo/node-1` starts it" in done.stderr


def test_logs_as_json(run: Run) -> None:
    write_cluster("demo", "node-1", running=False)
    path = _log(b"one\r\n\xfftwo")
    data = run("logs", "node-1", "--json").envelope["data"]
    assert data == {"ref": "demo/node-1", "path": str(path), "lines": ["one", "\ufffdtwo"]}
    done = run("logs", "-f", "node-1", "--json")
    assert [json.loads(line) for line in done.stdout.splitlines()[:2]] == [
        {"event": "line", "text": "one"},
        {"event": "line", "text": "\ufffdtwo"},
    ]


def test_following_ends_when_the_member_stops_and_misses_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cluster("demo", "node-1")
    path = _log(b"one\n")
    waits = iter([lambda: path.write_bytes(b"one\ntwo\n"), lambda: path.write_bytes(b"new\n"), threading.Event])

    def instead_of_waiting(*_: object) -> None:
        step = next(waits, None)
        if step:
            step()
            return
        path.write_bytes(b"new\nlast\n")
        write_cluster("demo", "node-1", running=False)

    monkeypatch.setattr("fleetbox.seriallog.FileWatch.wait", instead_of_waiting)
    assert run("logs", "-f", "node-1").stdout == "one\ntwo\nnew\nlast\n"


def test_a_table_aligns_its_columns() -> None:
    table = Table(("A", "LONG"), (("wider", ""), ("x\x1b[31m", "y")))
    assert table.lines() == ["A      LONG", "wider  -", "x      y"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-5, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172800, "2d"), (9e6, "104d")],
)
def test_age(seconds: float, shown: str) -> None:
    assert age(seconds) == shown


@pytest.mark.parametrize(
    ("image", "shown"),
    [
        ("debian-12", "debian-12"),
        ("ab" * 32, "abababababab"),
        ("sha256:" + "ab" * 32, "abababababab"),
        ("/srv/images/web.qcow2", "web.qcow2"),
        ("https://example.org/a/disk.raw", "disk.raw"),
    ],
)
def test_short_image(image: str, shown: str) -> None:
    assert short_image(image) == shown


def test_printable_removes_escapes_and_keeps_text() -> None:
    assert (
        printable("\x1b[1;31mred\x1b[0m \x1b]8;;http://x\x1b\\link\x1b]8;;\x07 tab\there é \x00\x85")
        == "red link tab\there é "
    )
