"""The keys of `--json`: pinned here, documented in docs/reference/json.md. Change one, change both, and the version."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from fleetbox import errors, paths
from fleetbox.host import Check, DoctorReport, PruneItem
from fleetbox.image import Image
from fleetbox.timeline import Operation, Row, Span, Timeline
from fleetbox.wire import Notice, Progress
from fleetbox_cli.parallel import Outcome
from fleetbox_cli.render import ENVELOPE
from fleetbox_cli.views import ClusterView, MemberView, SavedMemberView, SnapshotView, TemplateView
from fleetbox_cli.watch import MemberSample, Sample, Usage
from tests.cli.conftest import REPOSITORY, Run, write_cluster

DOCUMENT = (REPOSITORY / "docs" / "reference" / "json.md").read_text()

KEYS: dict[type[msgspec.Struct], str] = {
    ClusterView: "name id backend backend_reason accelerator network subnet bridge created_at "
    "bound abandoned owner_pid holder_running holder_pid holder_version members",
    MemberView: "ref name cluster id state ip mac image image_digest cpus memory_bytes disk_bytes "
    "created_at started_at error serial_log",
    Outcome: "ref exit_code stdout stderr",
    Image: "digest names source architecture size_bytes stored_bytes created_at disk kernel initrd root "
    "boot boot_reason has_systemd",
    SnapshotView: "id name description kind created_at cluster subnet backend accelerator identity images "
    "size_bytes stored_bytes bound folder members",
    SavedMemberView: "name running ip mac image image_digest cpus memory_bytes",
    TemplateView: "key created_at used_at image image_digest backend accelerator cpus memory_bytes disk_bytes "
    "control_line stored_bytes",
    DoctorReport: "checks backend accelerator network",
    Check: "name status message hint why fixable",
    PruneItem: "kind name reason removed kept",
    Progress: "step state member message current total unit at",
    Notice: "message member",
    Sample: "at cluster holder_running members",
    MemberSample: "name state ip up_s usage",
    Usage: "cpu_percent memory_bytes disk_read_rate disk_write_rate network_receive_rate network_send_rate",
    Timeline: "cluster operations",
    Operation: "name id begun_at seconds state rows",
    Row: "member spans",
    Span: "step begin_s end_s state",
}


@pytest.mark.parametrize("kind", KEYS, ids=lambda kind: kind.__name__)
def test_keys_are_pinned_and_documented(kind: type[msgspec.Struct]) -> None:
    assert kind.__struct_fields__ == tuple(KEYS[kind].split())
    documented = set(re.findall(r"`([a-z_]+)`", DOCUMENT))
    assert set(kind.__struct_fields__) <= documented


def test_error_codes_are_documented_with_their_exit_codes() -> None:
    rows = {
        code: int(row[1])
        for line in DOCUMENT.splitlines()
        if line.startswith("| `") and (row := [cell.strip() for cell in line.strip("|").split("|")])[1].isdigit()
        for code in re.findall(r"`([a-z-]+)`", row[0])
    }
    kinds = [getattr(errors, name) for name in errors.__all__ if name != "from_wire"]
    assert rows == {kind.code: kind.exit_code for kind in kinds}


def _keys(data: Any) -> set[str]:
    assert isinstance(data, dict)
    return set(data)


def test_envelopes(run: Run) -> None:
    write_cluster("demo", "node-1", running=False)
    paths.serial_log("demo", "node-1").parent.mkdir(parents=True)
    paths.serial_log("demo", "node-1").write_text("x\n")
    cluster = set(KEYS[ClusterView].split())
    expected = {
        ("ls",): ("clusters", {"clusters", "unreadable"}),
        ("status", "demo"): ("status", cluster | {"uptime_s", "notes"}),
        ("logs", "demo"): ("log", {"ref", "path", "lines"}),
        ("version",): ("version", {"version", "protocol", "python"}),
    }
    for words, (kind, keys) in expected.items():
        done = run(*words, "--json")
        assert len(done.stdout.splitlines()) == 1
        assert _keys(done.envelope) == {"fleetbox", "kind", "data"}
        assert done.envelope["fleetbox"] == ENVELOPE == 1
        assert (done.envelope["kind"], _keys(done.envelope["data"])) == (kind, keys)
        assert f"`{kind}`" in DOCUMENT
    [shown] = run("ls", "--json").envelope["data"]["clusters"]
    assert _keys(shown) == cluster
    assert _keys(shown["members"][0]) == set(KEYS[MemberView].split())
    assert run("inspect", "demo", "--json").envelope["kind"] == "cluster-record"
    assert run("inspect", "node-1", "--json").envelope["kind"] == "member-record"
    assert _keys(run("status", "nobody", "--json").envelope["error"]) == {"code", "message", "why", "hint", "details"}
