"""A cluster's events as its watchers see them, across holders that end and die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fleetbox
from fleetbox import paths, records
from fleetbox.control import ControlSocket
from fleetbox.identity import is_alive


def test_everything_that_happens_is_logged_in_order(home: Path, faults: Callable[[str], None]) -> None:
    cluster = fleetbox.up("web", cold=True)
    cluster.stop()
    found = list(cluster.events())
    assert [e.seq for e in found] == list(range(1, len(found) + 1))
    states = [e.state for e in found if e.event == "member"]
    assert states == ["creating", "running", "stopping", "stopped"]
    operations = [(e.step, e.state) for e in found if e.event == "operation"]
    assert operations == [("up", "begin"), ("up", "done"), ("stop", "begin"), ("stop", "done")]
    steps = [(e.step, e.state) for e in found if e.event == "progress" and e.member == "node-1"]
    assert steps[:4] == [("disk", "begin"), ("disk", "done"), ("boot", "begin"), ("boot", "done")]
    assert [e.state for e in found if e.event == "holder"] == ["started", "ended"]
    one = next(e for e in found if e.event == "operation")
    assert {e.operation for e in found if e.event == "progress" and e.seq < found[-1].seq} >= {one.operation}


def test_a_failed_operation_is_logged_with_its_reason(home: Path, faults: Callable[[str], None]) -> None:
    cluster = fleetbox.up("web", cold=True)
    faults("start:node-2=fail")
    try:
        cluster.add(["node-2"], cold=True)
    except fleetbox.FleetboxError as e:
        failure = str(e)
    found = list(cluster.events())
    assert [(e.step, e.state, e.message) for e in found if e.event == "operation"][-1] == ("add", "failed", failure)
    assert [e.state for e in found if e.member == "node-2" and e.event == "member"] == ["creating", "removed"]


def test_a_follower_survives_the_holder_and_ends_with_the_cluster(
    home: Path, until: Callable[[Callable[[], object]], None]
) -> None:
    cluster = fleetbox.up("web", cold=True)
    out = home / "out"
    with out.open("wb") as file:
        follower = subprocess.Popen(
            [sys.executable, "-m", "fleetbox_cli", "events", "web", "--follow", "--json"], stdout=file
        )

    def seen() -> list[dict[str, Any]]:
        return [json.loads(line) for line in out.read_text().splitlines(keepends=True) if line.endswith("\n")]

    until(lambda: any(e["event"] == "operation" and e["state"] == "done" for e in seen()))
    holder = records.live_holder("web")
    assert holder is not None
    os.kill(holder.process.pid, signal.SIGKILL)
    until(lambda: not is_alive(holder.process))
    cluster.add(cold=True)
    cluster.destroy()
    assert follower.wait(60) == 0
    *lines, envelope = seen()
    assert envelope["kind"] == "events"
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1)), "each once, in order"
    assert [line["state"] for line in lines if line["event"] == "holder"][:2] == ["started", "started"]
    assert (lines[-1]["event"], lines[-1]["state"]) == ("cluster", "removed")


def test_the_stream_of_the_control_socket(home: Path) -> None:
    cluster = fleetbox.up("web", cold=True)
    control = ControlSocket(paths.holder_socket("web"))
    with control._session() as session:
        all_of_it = session.get(f"{control._base}/v1/events?follow=0", timeout=20).text.splitlines()
        assert [json.loads(line)["seq"] for line in all_of_it] == [e.seq for e in cluster.events()]
        assert session.get(f"{control._base}/v1/events?since=x", timeout=20).status_code == 400
        stalled = session.get(f"{control._base}/v1/events?since=0", stream=True, timeout=20)
        lines = stalled.iter_lines()
        assert json.loads(next(lines))["seq"] == 1
        cluster.destroy()  # the holder ends, whoever has stopped reading
        rest = [json.loads(line) for line in lines if line]
    assert ("cluster", "removed") in [(e["event"], e.get("state")) for e in rest]
