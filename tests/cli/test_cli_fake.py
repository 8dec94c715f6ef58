"""Whole command lines as processes: real holder, fake machines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pexpect
import pytest

from tests.cli.conftest import COMMAND, REPOSITORY, Fleetbox

pytestmark = pytest.mark.netns


def _states(fleetbox: Fleetbox) -> dict[str, str]:
    clusters = fleetbox("ls", "--json").envelope["data"]["clusters"]
    return {m["ref"]: m["state"] for c in clusters for m in c["members"]}


def test_a_clusters_life(fleetbox: Fleetbox) -> None:
    up = fleetbox("up", "demo", "--members", "2")
    assert up.exit_code == 0, up.stderr
    assert "demo is up: 2 members on fake" in up.stdout
    assert "node-1: identity …" in up.stderr.splitlines()
    assert [t["backend"] for t in fleetbox("template", "ls", "--json").envelope["data"]["templates"]] == ["fake"]
    cold = fleetbox("add", "demo", "db", "--cold")
    assert cold.exit_code == 0
    assert "db: boot …" in cold.stderr.splitlines()
    assert _states(fleetbox) == {"demo/node-1": "running", "demo/node-2": "running", "demo/db": "running"}
    assert fleetbox("stop", "node-1", "db").stdout == "stopped demo/node-1, demo/db\n"
    assert _states(fleetbox) == {"demo/node-1": "stopped", "demo/node-2": "running", "demo/db": "stopped"}
    status = fleetbox("status", "demo", "--json").envelope["data"]
    assert status["holder_running"]
    assert status["backend_reason"] == "FLEETBOX_BACKEND"
    again = fleetbox("up", "demo", "-q")
    assert (again.exit_code, again.stderr) == (0, "")
    assert set(_states(fleetbox).values()) == {"running"}
    assert "booted" in fleetbox("logs", "demo/db").stdout
    assert fleetbox("destroy", "demo").exit_code == 2
    assert fleetbox("destroy", "demo/db", "--yes").stdout == "destroyed demo/db\n"
    assert fleetbox("destroy", "demo", "--yes").exit_code == 0
    assert _states(fleetbox) == {}
    assert fleetbox("prune", "--json").envelope["data"]["items"] == []


def test_json_lines_end_with_the_result(fleetbox: Fleetbox) -> None:
    lines = [json.loads(line) for line in fleetbox("up", "demo", "--json").stdout.splitlines()]
    *events, last = lines
    assert {event["event"] for event in events} <= {"progress", "notice"}
    assert {"event", "step", "state", "member", "message", "current", "total", "unit", "at"} == set(events[0])
    assert (last["fleetbox"], last["kind"], last["data"]["name"]) == (1, "cluster", "demo")
    *events, last = [json.loads(line) for line in fleetbox("destroy", "demo", "-y", "--json").stdout.splitlines()]
    assert [(e["step"], e["state"]) for e in events] == [("destroy", "begin"), ("destroy", "done")]
    assert last == {"fleetbox": 1, "kind": "destroy", "data": {"destroyed": ["demo"]}}


def test_some_members_fail(fleetbox: Fleetbox, faults: Path) -> None:
    faults.write_text("start:node-2=fail")
    done = fleetbox("up", "demo", "--members", "3")
    assert done.exit_code == 1
    assert done.stderr.count("error: ") == 1
    assert "  node-2: " in done.stderr
    assert _states(fleetbox) == {"demo/node-1": "running", "demo/node-3": "running"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_up_undoes_what_it_began(fleetbox: Fleetbox, faults: Path, number: signal.Signals) -> None:
    assert fleetbox("up", "demo").exit_code == 0
    faults.write_text("address=hang")
    process = subprocess.Popen(
        [*COMMAND, "up", "demo", "--members", "3"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while "address" not in process.stderr.readline():
        pass
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "undoing" in err
    assert "Traceback" not in err
    assert _states(fleetbox) == {"demo/node-1": "running"}


def test_on_a_terminal(fleetbox: Fleetbox, faults: Path, timeout_scale: float) -> None:
    def spawn(*words: str) -> pexpect.spawn[str]:
        return pexpect.spawn(
            COMMAND[0],
            [*COMMAND[1:], *words],
            cwd=str(REPOSITORY),
            env=os.environ | {"TERM": "xterm-256color"},
            dimensions=(30, 120),
            encoding="utf-8",
            timeout=30 * timeout_scale,
        )

    faults.write_text("address:node-2=slow:0.5")
    up = spawn("up", "demo", "--members", "2")
    up.expect("node-2")
    up.expect("address")
    up.expect("demo is up: 2 members on fake")
    up.expect(pexpect.EOF)
    assert up.wait() == 0
    for answer, code in (("n", 1), ("", 1), ("y", 0)):
        destroy = spawn("destroy", "demo")
        destroy.expect_exact("Delete demo (2 members) with all disks? [y/N]: ")
        destroy.sendline(answer)
        destroy.expect(pexpect.EOF)
        assert destroy.wait() == code
        assert len(_states(fleetbox)) == (0 if code == 0 else 2)

    faults.write_text("address=hang")
    up = spawn("up", "demo")
    up.expect("address")
    up.sendintr()
    up.expect("undoing")
    up.expect("error:")
    up.expect(pexpect.EOF)
    assert up.wait() == 130
    assert _states(fleetbox) == {}
