"""`exec` and `ssh --json`: programs in parallel, with an ssh double that runs the command here."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from fleetbox import paths
from fleetbox.records import MemberState
from tests.cli.conftest import Run, write_cluster


def _stop(cluster: str, member: str) -> None:
    record = msgspec.json.decode(paths.cluster_record(cluster).read_bytes())
    record["members"][member] |= {"state": MemberState.STOPPED.value, "handle": None}
    paths.cluster_record(cluster).write_bytes(msgspec.json.encode(record))


def test_lines_carry_the_members_name(run: Run, ssh_double: Path) -> None:
    write_cluster("demo", "node-1", "a-long-name")
    done = run("exec", "demo", "echo one; echo $MEMBER_IP; echo bad >&2; printf rest")
    assert done.exit_code == 0
    assert sorted(done.stdout.splitlines()) == sorted(
        f"{name:11} | {line}"
        for name, ip in (("node-1", "192.168.7.2"), ("a-long-name", "192.168.7.3"))
        for line in ("one", ip, "rest")
    )
    *lines, summary = done.stderr.splitlines()
    assert sorted(lines) == ["a-long-name | bad", "node-1      | bad"]
    assert summary == "2 of 2 members succeeded"


def test_all_members_run_at_once(run: Run, ssh_double: Path, tmp_path: Path) -> None:
    write_cluster("demo", "node-1", "node-2", "node-3")
    meet = f"touch {tmp_path}/$MEMBER_IP; while [ $(ls {tmp_path}/192* | wc -l) -lt 3 ]; do sleep 0.01; done"
    assert run("exec", "demo", meet).exit_code == 0


def test_the_worst_exit_code_is_passed_on(run: Run, ssh_double: Path) -> None:
    write_cluster("demo", "node-1", "node-2", "node-3")
    done = run("exec", "demo", "exit", "${MEMBER_IP##*.}")
    assert done.exit_code == 4
    assert done.stderr == (
        "0 of 3 members succeeded; exit code 2 on node-1; exit code 3 on node-2; exit code 4 on node-3\n"
    )
    assert run("exec", "demo", "kill -9 $$").exit_code == 137


@pytest.mark.parametrize("how", [(), ("--json",)])
def test_the_first_failure_ends_the_others(run: Run, ssh_double: Path, tmp_path: Path, how: tuple[str, ...]) -> None:
    write_cluster("demo", "node-1", "node-2", "node-3")
    others = f"touch {tmp_path}/$MEMBER_IP; echo begun; exec sleep 600"
    first = f"until [ -e {tmp_path}/192.168.7.3 ] && [ -e {tmp_path}/192.168.7.4 ]; do sleep 0.02; done; exit 7"
    done = run("exec", *how, "--fail-fast", "demo", f"[ $MEMBER_IP != 192.168.7.2 ] || {{ {first}; }}; {others}")
    assert done.exit_code == 7
    if how:
        data = done.envelope["data"]
        assert [outcome["ref"] for outcome in data["members"]] == ["demo/node-1"]
        assert data["stopped"] == ["demo/node-2", "demo/node-3"]
    else:
        assert "node-2 | begun" in done.stdout
        assert done.stderr.endswith("; exit code 7 on node-1; ended before they were done: demo/node-2, demo/node-3\n")
    assert run("exec", "--fail-fast", "demo", "true").exit_code == 0


def test_json_collects_what_each_member_printed(run: Run, ssh_double: Path) -> None:
    write_cluster("demo", "node-1", "node-2")
    _stop("demo", "node-2")
    done = run("exec", "--json", "demo", "--", "echo out; echo err >&2; exit 3")
    assert done.exit_code == 3
    assert done.envelope["kind"] == "exec"
    assert done.envelope["data"] == {
        "members": [{"ref": "demo/node-1", "exit_code": 3, "stdout": "out\n", "stderr": "err\n"}],
        "skipped": ["demo/node-2"],
        "stopped": [],
    }
    assert run("ssh", "--json", "node-1", "echo hi").envelope == {
        "fleetbox": 1,
        "kind": "ssh",
        "data": {"ref": "demo/node-1", "exit_code": 0, "stdout": "hi\n", "stderr": ""},
    }
    assert run("ssh", "--json", "node-1").exit_code == 2


def test_stopped_members_are_left_out_and_said_so(run: Run, ssh_double: Path) -> None:
    write_cluster("demo", "node-1", "node-2")
    _stop("demo", "node-2")
    done = run("exec", "demo", "true")
    assert (done.exit_code, done.stderr) == (0, "note: not running, left out: demo/node-2\n")
    assert run("exec", "-q", "demo", "true").stderr == ""
    _stop("demo", "node-1")
    done = run("exec", "demo", "true")
    assert done.exit_code == 1
    assert "hint: `fleetbox start demo` starts its members" in done.stderr


@pytest.mark.parametrize("size", [100_000, 1_000_000])
def test_long_lines_come_through_whole(run: Run, ssh_double: Path, size: int) -> None:
    write_cluster("demo", "node-1")
    done = run("exec", "--json", "demo", f"head -c {size} /dev/zero | tr '\\0' x")
    assert done.envelope["data"]["members"][0]["stdout"] == "x" * size
    shown = run("exec", "demo", f"head -c {size} /dev/zero | tr '\\0' x").stdout
    assert shown.count("x") == size
