"""The edges of the host: full and read-only file systems, too few descriptors, no memory.

Whatever the host refuses is said in words, before anything is started where it can be known; nothing half made stays,
and nothing that was there is lost.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import fleetbox
from fleetbox import paths
from fleetbox.backends.base import timeout_scale
from fleetbox.errors import FleetboxError
from tests.fakeguests import disk, write
from tests.process.faults.plan import Plan

MOUNTS = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a file system of its own")

PRELUDE = """
import json, os, resource, subprocess, sys
from pathlib import Path
import fleetbox
from fleetbox import paths
from fleetbox.errors import FleetboxError

home = Path(os.environ["FLEETBOX_HOME"])
seen = []

def attempt(act):
    try:
        act()
        seen.append("done")
    except FleetboxError as e:
        seen.append(f"{e.code}: {e}")

def mounted(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(home)], check=True)

def remounted(options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(home)], check=True)

def fill():
    with open(home / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
"""


def elsewhere(code: str) -> list[str]:
    """What a program saw in a mount namespace of its own, where its home can be a file system of any size."""
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private", "--", sys.executable, "-c"),
            PRELUDE + textwrap.dedent(code) + "\nprint(json.dumps(seen))",
        ],
        capture_output=True,
        text=True,
        timeout=100 * timeout_scale(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


@MOUNTS
def test_a_small_file_system_is_said_before_anything_is_started(home: Path) -> None:
    seen = elsewhere(
        """
        mounted("size=3m")
        attempt(lambda: fleetbox.up("web", cold=True))
        seen.append(sorted(p.name for p in home.rglob("*") if p.suffix in (".raw", ".json")))
        seen.append([c.name for c in fleetbox.clusters()])
        """
    )
    assert seen[0].startswith("disk: there is too little space in ")
    assert seen[1:] == [[], []]


@MOUNTS
def test_a_file_system_that_fills_up_loses_nothing(home: Path) -> None:
    """What makes something is refused, what gives space back works on."""
    seen = elsewhere(
        """
        mounted("size=24m")
        cluster = fleetbox.up("web", members=2, cold=True)
        disk = Path(cluster.members[0].record.folder, "disk.raw")
        disk.write_bytes(b"precious")
        record = paths.cluster_record("web").read_bytes()
        fill()
        attempt(lambda: cluster.add(cold=True))
        attempt(lambda: fleetbox.up("other", cold=True))
        attempt(lambda: fleetbox.snapshots.save(cluster, name="full"))
        seen.append(paths.cluster_record("web").read_bytes() == record)
        seen.append([m.state.value for m in cluster.members])
        seen.append(disk.read_bytes()[:8].decode())
        seen.append([s.name for s in fleetbox.snapshots.list_snapshots()])
        seen.append([c.name for c in fleetbox.clusters()])
        (home / "filler").unlink()
        attempt(lambda: cluster.add(cold=True))
        fill()
        attempt(cluster.destroy)
        seen.append([c.name for c in fleetbox.clusters()])
        """
    )
    for said in seen[:3]:
        assert not said.startswith(("done", "failed")), seen
        assert "space" in said or "full" in said, seen
    assert seen[3:] == [True, ["running", "running"], "precious", [], ["web"], "done", "done", []]


@MOUNTS
def test_a_read_only_file_system_is_said_and_changes_nothing(home: Path) -> None:
    seen = elsewhere(
        """
        mounted("size=64m")
        cluster = fleetbox.up("web", cold=True)
        cluster.stop()
        remounted("ro")
        for act in (cluster.start, cluster.destroy, lambda: fleetbox.up("new"), lambda: fleetbox.up("web", members=2)):
            attempt(act)
        seen.append([m.state.value for m in cluster.members])
        remounted("rw")
        attempt(cluster.start)
        attempt(cluster.destroy)
        """
    )
    for said in seen[:4]:
        assert "Read-only" in said or "read-only" in said, seen
        assert not said.startswith("failed"), seen
    assert seen[4:] == [["stopped"], "done", "done"]


@pytest.mark.parametrize("limit", [14, 28])
def test_too_few_descriptors(home: Path, limit: int) -> None:
    """Where they run out is not for us to say; that it is said, and undone, is."""
    code = f"""
    own = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, own[1]))
    attempt(lambda: fleetbox.up("web", members=6, cold=True))
    resource.setrlimit(resource.RLIMIT_NOFILE, own)
    """
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code) + "\nprint(json.dumps(seen))"],
        capture_output=True,
        text=True,
        timeout=100 * timeout_scale(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [said] = json.loads(done.stdout)
    assert said == "done" or not said.startswith("failed"), said
    for cluster in fleetbox.clusters():  # with other limits than its holder's
        assert {m.state.value for m in cluster.members} == {"running"}
        cluster.destroy()
    fleetbox.up("web", cold=True).destroy()


@pytest.fixture
def plan(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    plan = Plan(tmp_path)
    for name, value in plan.environment.items():
        monkeypatch.setenv(name, value)
    return plan


STRUCK = [
    ("record.write", "ENOSPC"),
    ("member.disk", "ENOMEM"),
    ("member.seed", "EROFS"),
    ("machine.lock", "EMFILE"),
    ("template.saved", "ENOSPC"),
]


@pytest.mark.parametrize(("point", "refusal"), STRUCK, ids=lambda value: value)
def test_what_the_host_refuses_is_said_and_undone(home: Path, plan: Plan, point: str, refusal: str) -> None:
    other = fleetbox.up("other", cold=True)
    write(other.members[0], "precious")
    before = paths.cluster_record("other").read_bytes()
    plan.set(point, refusal)
    said = ""
    try:
        fleetbox.up("web", members=2, cold=not point.startswith("template."))
    except FleetboxError as e:
        said = f"{e} {getattr(e, 'failures', '')}"
        assert "did not foresee" not in said, said
    assert plan.fired() is not None
    plan.clear()
    assert said or point.startswith("template."), "members can be booted without a template"
    assert paths.cluster_record("other").read_bytes() == before
    assert disk(other.members[0]).read_bytes().startswith(b"precious")
    web = fleetbox.up("web", members=2)
    assert [m.state.value for m in web.members] == ["running", "running"]
    web.destroy()
    assert not paths.cluster_data_dir("web").exists()
