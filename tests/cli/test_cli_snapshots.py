"""The snapshot and template verbs: for real where no machine is needed, else with the client doubled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

import fleetbox
from fleetbox import paths
from fleetbox.cluster import Cluster
from fleetbox.holder.images.library import ImageLibrary
from fleetbox.holder.snapshots.store import SnapshotStore
from fleetbox.holder.warm.templates import TemplateStore
from fleetbox.host import PruneItem, PruneReport
from fleetbox.snapshot import Snapshot
from fleetbox.specs import Fixture
from fleetbox.template import Origin, Template
from fleetbox.wire import CloneRequest, Request, RestoreRequest, SaveRequest
from fleetbox_cli.completion import complete
from tests.cli.conftest import REPOSITORY, Run, write_cluster
from tests.snapshots import IDENTITY, put_snapshot

Calls = list[tuple[str, str, Request]]


@pytest.fixture
def calls(home: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What holders are asked for, by (cluster, operation, request), instead of doing it."""
    made: Calls = []

    def run(self: Cluster, operation: str, request: Request, on_event: Any) -> dict[str, Any]:
        made.append((self.name, operation, request))
        if operation == "save":
            snapshot = put_snapshot(str(getattr(request, "name", "")))
            return {"snapshot": msgspec.to_builtins(snapshot), "ends": False}
        if isinstance(request, CloneRequest) and self.name not in ("demo",):
            write_cluster(self.name, "node-1", "node-2", "node-7")
        return {"members": [getattr(request, "name", "") or "node-7"], "ends": False}

    monkeypatch.setattr(Cluster, "_run", run)
    return made


def test_save_takes_a_cluster_or_a_member(run: Run, calls: Calls) -> None:
    write_cluster("demo", "node-1", "node-2")
    done = run("snapshot", "save", "demo", "--name", "first", "--description", "before")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(f"saved {'abcd' * 4} (first): 2 members of lab, ")
    SnapshotStore().remove(["first"])
    data = run("snapshot", "save", "demo/node-2", "--json").envelope["data"]
    assert [m["name"] for m in data["members"]] == ["node-1", "node-2"]
    assert calls == [
        ("demo", "save", SaveRequest(members=(), name="first", description="before")),
        ("demo", "save", SaveRequest(members=("node-2",))),
    ]
    assert run("snapshot", "save", "ghost").exit_code == 3


def test_save_into_an_archive_keeps_nothing(run: Run, calls: Calls, tmp_path: Path) -> None:
    write_cluster("demo", "node-1")
    done = run("snapshot", "save", "demo", "--output", str(tmp_path / "a.tar"))
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "a.tar").stat().st_size > 10240
    assert SnapshotStore().readable() == ([], [])
    assert run("snapshot", "save", "demo", "--output", "-", "--json").exit_code == 2
    assert run("snapshot", "save", "demo", "--output", "x", "--name", "n").exit_code == 2
    assert run("snapshot", "save", "demo", "--output", str(tmp_path / "no" / "a.tar")).exit_code == 1
    assert SnapshotStore().readable() == ([], [])


def test_list_inspect_and_remove(run: Run, home: Path) -> None:
    assert run("snapshot", "ls").stdout == "no snapshots; `fleetbox snapshot save` makes one\n"
    made = put_snapshot("first")
    lines = run("snapshot", "ls").stdout.splitlines()
    assert lines[0].split() == ["NAME", "ID", "KIND", "OF", "MEMBERS", "STORED", "AGE", "DESCRIPTION"]
    assert lines[1].split()[:5] == ["first", made.id, "cluster", "lab", "2"]
    shown = run("snapshot", "inspect", made.id[:6], "--json").envelope
    assert (shown["kind"], shown["data"]["name"]) == ("snapshot", "first")
    assert "tied to" in run("snapshot", "inspect", "first").stdout
    damaged = paths.snapshots_dir() / ("f" * 16)
    damaged.mkdir()
    done = run("snapshot", "ls")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[1].startswith("first")
    assert damaged.name in done.stderr
    [unreadable] = run("snapshot", "ls", "--json").envelope["data"]["unreadable"]
    assert damaged.name in unreadable["message"]
    assert run("snapshot", "rm", "nope").exit_code == 3
    assert run("snapshot", "rm", "first").stdout == "removed first\n"
    assert run("snapshot", "inspect", "first").exit_code == 3


def test_an_image_that_a_snapshot_rests_on_stays(run: Run, home: Path) -> None:
    made = put_snapshot("first")
    done = run("image", "rm", "debian-12")
    assert done.exit_code == 1
    assert "first" in done.stderr
    assert ImageLibrary().inspect("debian-12").digest == made.images[0]
    assert run("snapshot", "rm", "first").exit_code == 0
    assert run("image", "rm", "debian-12").exit_code == 0


def test_export_and_import_by_files(run: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = put_snapshot("first")
    target = tmp_path / "a.tar"
    assert run("snapshot", "export", "first", str(target)).stdout.startswith(f"exported {made.id} (first)")
    assert target.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path / "other"))
    # This host's QEMU is not the one that the record names, so it is refused; what is told first is the warning.
    done = run("snapshot", "import", str(target), "--name", "mine")
    assert done.exit_code == 6, done.stderr
    assert "trusted like a program" in done.stderr
    assert "version 7.2" in done.stderr or "cpu max" in done.stderr
    assert run("snapshot", "import", str(target), "--max-size", "1K").exit_code == 1
    assert run("snapshot", "import", str(tmp_path / "none.tar")).exit_code == 3
    assert run("snapshot", "import", "/dev/null").exit_code == 1
    assert SnapshotStore().readable() == ([], [])
    assert not list(paths.snapshots_dir().glob(".new-*"))


def fleetbox_process(*words: str, home: Path, **keywords: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "fleetbox_cli", *words],
        cwd=REPOSITORY,
        env=os.environ | {"FLEETBOX_HOME": str(home)},
        stderr=subprocess.PIPE,
        **keywords,
    )


def test_export_and_import_through_a_pipe(home: Path, tmp_path: Path) -> None:
    identity = fake_identity()
    made = put_snapshot("first")
    record = SnapshotStore().folder(made) / "snapshot.json"
    record.write_bytes(msgspec.json.encode(msgspec.structs.replace(made, backend="fake", identity=identity)))
    sending = fleetbox_process("snapshot", "export", "first", "-", home=home, stdout=subprocess.PIPE)
    words = ("snapshot", "import", "-", "--name", "copy", "--json")
    taking = fleetbox_process(*words, home=tmp_path / "b", stdin=sending.stdout, stdout=subprocess.PIPE)
    assert sending.stdout is not None
    sending.stdout.close()
    output, errors = taking.communicate()
    assert taking.returncode == 0, (output, errors)
    assert sending.wait() == 0
    data = json.loads(output.splitlines()[-1])["data"]
    assert (data["id"], data["name"]) == (made.id, "copy")
    taken = tmp_path / "b" / "data" / "snapshots" / made.id
    for file in made.files:
        assert (taken / file.path).read_bytes() == (record.parent / file.path).read_bytes()
        assert (taken / file.path).stat().st_blocks == (record.parent / file.path).stat().st_blocks


def fake_identity() -> dict[str, str]:
    import asyncio

    from fleetbox.holder.snapshots.job import _identity

    return asyncio.run(_identity("fake", lambda event: None))


def test_clone_names_a_member_or_a_cluster(run: Run, calls: Calls) -> None:
    write_cluster("demo", "node-1")
    whole = put_snapshot("whole")
    asked = {"cpus": 3, "memory_bytes": 1 << 30}
    words = ("--cpus", "3", "--memory", "1G", "--no-control-line", "--timeout", "9")
    done = run("clone", "whole", "second", *words, "--json")
    assert done.exit_code == 0, done.stderr + done.stdout
    assert done.envelope["kind"] == "cluster"
    [(cluster, operation, request)] = calls
    assert (cluster, operation) == ("second", "clone")
    assert isinstance(request, CloneRequest)
    assert (request.snapshot, request.name, request.control_line, request.timeout_s) == (whole.id, "", False, 9.0)
    assert {key: getattr(request.spec, key) for key in asked} == asked
    assert run("clone", "whole", "demo").exit_code == 1  # a cluster of that name exists
    assert run("clone", "whole").exit_code == 0
    assert calls[-1][0] == "lab"
    assert run("clone", "whole").exit_code == 0
    assert calls[-1][0] == "lab-2"


def test_clone_of_a_member(run: Run, calls: Calls, tmp_path: Path) -> None:
    write_cluster("demo", "node-1", "node-7")
    one = put_snapshot("one", members=1)
    record = SnapshotStore().folder(one) / "snapshot.json"
    record.write_bytes(msgspec.json.encode(msgspec.structs.replace(one, kind="member", cluster="demo")))
    done = run("clone", "one", "--json", "--fixture", f"{tmp_path}:/srv", "--disk", "9G")
    assert [m["ref"] for m in done.envelope["data"]["members"]] == ["demo/node-7"]
    request = calls[-1][2]
    assert isinstance(request, CloneRequest)
    assert (request.spec.fixtures, request.spec.disk_bytes) == ((Fixture(str(tmp_path), "/srv"),), 9 << 30)
    assert run("clone", "one", "node-1").exit_code == 1  # taken
    run("clone", "one", "node-7", "--cluster", "other")
    run("clone", "one", "third/node-7")
    assert [cluster for cluster, _, _ in calls] == ["demo", "other", "third"]
    assert run("clone", "nope").exit_code == 3


def test_restore(run: Run, calls: Calls) -> None:
    write_cluster("demo", "node-1", "node-2")
    made = put_snapshot("first")
    assert run("restore", "demo", "first").stdout == "restored demo\n"
    assert run("restore", "demo/node-2", made.id[:5], "--json").envelope == {
        "fleetbox": 1,
        "kind": "restore",
        "data": {"restored": "demo/node-2", "snapshot": made.id[:5]},
    }
    assert calls == [
        ("demo", "restore", RestoreRequest(snapshot=made.id)),
        ("demo", "restore", RestoreRequest(snapshot=made.id, members=("node-2",))),
    ]
    assert run("restore", "ghost", "first").exit_code == 3
    assert run("restore", "demo", "ghost").exit_code == 3
    assert len(calls) == 2


def test_templates(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("template", "ls").stdout == "no templates; `fleetbox up` makes one by itself\n"
    assert run("template", "rm", "abcd").exit_code == 3
    assert run("template", "prune").stdout == "nothing to remove\n"
    template = Template(
        key="ab" * 32,
        created_at=1.0,
        image="debian-12",
        image_digest="",
        backend="qemu",
        accelerator="tcg",
        cpus=2,
        memory_bytes=512 << 20,
        disk_bytes=0,
        control_line=True,
        origin=Origin("lab", "", "", 24, "", (), ""),
    )
    folder = TemplateStore().folder(template)
    folder.mkdir(parents=True)
    (folder / "state").write_bytes(b"x")
    (folder.parent / "disk.raw").write_bytes(b"x")
    (folder.parent / "template.json").write_bytes(msgspec.json.encode(template))
    lines = run("template", "ls").stdout.splitlines()
    assert lines[1].split()[:5] == ["abababababab", "debian-12", "qemu", "tcg", "2"]
    assert complete(["template", "rm", ""]) == ["abababababab\tdebian-12, 2 cpus"]
    [shown] = run("template", "ls", "--json").envelope["data"]["templates"]
    assert shown["key"] == template.key
    assert run("template", "rm", "abab").stdout == "removed abababababab\n"
    assert not folder.exists()

    asked: list[Any] = []

    def prune(unused_for_s: float, dry_run: bool) -> PruneReport:
        asked.append((unused_for_s, dry_run))
        return PruneReport((PruneItem("template", "abab", "it has not been used", removed=not dry_run),))

    monkeypatch.setattr(fleetbox.templates, "prune", prune)
    assert run("template", "prune", "--days", "0.5", "--dry-run").exit_code == 0
    assert run("template", "prune", "--json").envelope["data"]["items"][0]["removed"] is True
    assert asked == [(43200.0, True), (7 * 86400.0, False)]


def test_completion_knows_snapshots(home: Path) -> None:
    put_snapshot("first")
    (paths.snapshots_dir() / ("f" * 16)).mkdir()
    (paths.snapshots_dir() / ("f" * 16) / "snapshot.json").write_text("{")
    assert complete(["clone", ""]) == ["first\tcluster of lab"]
    assert complete(["snapshot", "rm", "f"]) == ["first\tcluster of lab"]
    write_cluster("demo", "node-1")
    assert "demo" in [line.partition("\t")[0] for line in complete(["restore", ""])]
    assert complete(["restore", "demo", ""]) == ["first\tcluster of lab"]


def test_the_python_api_is_there() -> None:
    assert fleetbox.Snapshot is Snapshot
    assert isinstance(fleetbox.snapshots.list_snapshots.__doc__, str)
    assert IDENTITY["backend"] == "qemu"
    names: Sequence[str] = fleetbox.__all__
    assert {"snapshots", "templates"} < set(names)


def test_prune_removes_what_a_crashed_maker_left(run: Run, home: Path) -> None:
    made = put_snapshot("first")
    crashed = paths.snapshots_dir() / ".new-crashed"
    crashed.mkdir()
    [item] = run("prune", "--json", "--dry-run").envelope["data"]["items"]
    assert (item["kind"], item["name"], item["removed"]) == ("snapshot", ".new-crashed", False)
    assert run("prune").exit_code == 0
    assert not crashed.exists()
    assert SnapshotStore().find("first") == made
