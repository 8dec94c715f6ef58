"""What verbs ask of the client, with the client doubled; `test_cli_fake` runs them for real."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import fleetbox
from fleetbox.cluster import Cluster
from fleetbox.errors import ConflictError, OperationInterrupted, PartialError
from fleetbox.host import Check, DoctorReport, PruneItem, PruneReport
from fleetbox.image import Image
from fleetbox.specs import Fixture
from tests.cli.conftest import Run, write_cluster

Calls = list[tuple[str, Any]]

IMAGE = Image(
    digest="ab" * 32,
    names=("debian-12",),
    source="archive build of debian-12",
    architecture="x86_64",
    size_bytes=2 << 30,
    stored_bytes=400 << 20,
    created_at=0.0,
    disk="/d",
    kernel="/k",
    initrd="/i",
    root="UUID=1",
    boot="direct",
    boot_reason="",
    has_systemd=True,
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What the client is asked for, instead of doing it; names with "bad" in them fail."""
    made: Calls = []

    def up(name: str, **keywords: Any) -> Cluster:
        keywords.pop("on_event")
        made.append((name, {k: v for k, v in keywords.items() if v}))
        write_cluster(name, "node-1")
        return Cluster(name)

    def operation(self: Cluster, names: Sequence[str] = (), **keywords: Any) -> None:
        made.append((self.name, tuple(names)))
        if any("bad" in name for name in names):
            raise PartialError("some failed", {n: ConflictError(f"{n} is bad") for n in names if "bad" in n})
        if "bad" in self.name:
            raise ConflictError(f"{self.name} is bad")

    monkeypatch.setattr(fleetbox, "up", up, raising=False)
    for name in ("start", "stop", "destroy"):
        monkeypatch.setattr(Cluster, name, operation)
    return made


def test_up_hands_everything_over(run: Run, calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "kernel").touch()
    words = "up demo -n 3 --name a --name b --image i --cpus 2 --memory 512M --disk 1.5G --backend fake --network host"
    more = [
        "--fixture",
        f"{tmp_path}:/srv",
        "--boot",
        "firmware",
        "--kernel",
        str(tmp_path / "kernel"),
        "--timeout",
        "9",
        "--cold",
        "--no-control-line",
    ]
    done = run(*words.split(), *more)
    assert done.exit_code == 0, done.stderr
    assert calls == [
        (
            "demo",
            {
                "members": 3,
                "names": ("a", "b"),
                "image": "i",
                "cpus": 2,
                "memory_bytes": 512 << 20,
                "disk_bytes": 1536 << 20,
                "backend": "fake",
                "network": "host",
                "fixtures": [Fixture(str(tmp_path), "/srv")],
                "boot": "firmware",
                "kernel": str(tmp_path / "kernel"),
                "timeout_s": 9.0,
                "cold": True,
            },
        )
    ]


def test_up_ends_with_the_members_and_how_to_go_on(run: Run, calls: Calls) -> None:
    lines = run("up", "demo").stdout.splitlines()
    assert lines[0].split()[:3] == ["MEMBER", "STATE", "ADDRESS"]
    assert lines[1].split()[:3] == ["node-1", "running", "192.168.7.2"]
    assert lines[3:] == [
        "demo is up: 1 member on fake (none)",
        "  fleetbox ssh demo/node-1",
        "  fleetbox exec demo uname -a",
        "  fleetbox destroy demo",
    ]
    assert run("up", "demo").exit_code == 0
    assert calls == [("demo", {"network": "auto", "control_line": True})] * 2


def test_refs_are_grouped_by_cluster(run: Run, calls: Calls) -> None:
    write_cluster("one", "node-1", "node-2")
    write_cluster("two", "db")
    done = run("stop", "one/node-2", "two", "one/node-1", "--timeout", "5")
    assert (done.exit_code, done.stdout) == (0, "stopped one/node-2, one/node-1\nstopped two\n")
    assert calls == [("one", ("node-2", "node-1")), ("two", ())]
    assert run("start", "db", "--json").envelope == {"fleetbox": 1, "kind": "start", "data": {"started": ["two/db"]}}


def test_what_fails_does_not_keep_the_rest_from_being_done(run: Run, calls: Calls) -> None:
    write_cluster("one", "good", "bad")
    write_cluster("badone", "x")
    write_cluster("two", "y")
    done = run("destroy", "--yes", "ghost", "one/good", "one/bad", "badone", "two")
    assert done.exit_code == 1
    assert [name for name, _ in calls] == ["one", "badone", "two"]
    assert done.stderr.splitlines()[:5] == [
        "error: could not destroy ghost, one/bad, badone",
        "  done: two",
        "  ghost: there is no cluster or member 'ghost'",
        "    hint: `fleetbox ls` lists what there is",
        "  one/bad: bad is bad",
    ]
    assert run("start", "badone").stderr == "error: badone is bad\n"


def test_an_interrupt_ends_the_whole_command(run: Run, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cluster("one", "a")
    write_cluster("two", "b")

    def interrupted(self: Cluster, names: Sequence[str] = (), **_: Any) -> None:
        calls.append((self.name, tuple(names)))
        raise OperationInterrupted("interrupted", why="what was begun is undone")

    monkeypatch.setattr(Cluster, "stop", interrupted)
    assert run("stop", "one", "two").exit_code == 130
    assert calls == [("one", ())]


@pytest.mark.parametrize("words", [[], ["--json"], ["--quiet"]])
def test_destroy_without_a_terminal_needs_yes(run: Run, calls: Calls, words: list[str]) -> None:
    write_cluster("demo", "node-1")
    done = run("destroy", "demo", *words)
    assert done.exit_code == 2
    assert "add --yes" in done.stderr + done.stdout
    assert calls == []
    assert run("destroy", "demo", "--yes", *words).exit_code == 0
    assert run("destroy", "ghost", *words).exit_code == 3


def test_add_returns_the_new_members(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cluster("demo", "node-1", "db")
    asked: list[Any] = []

    def add(self: Cluster, names: Sequence[str] = (), count: int | None = None, **keywords: Any) -> list[Any]:
        asked.append((tuple(names), count, keywords["memory_bytes"], keywords["image"]))
        return [self.member("db")]

    monkeypatch.setattr(Cluster, "add", add)
    done = run("add", "demo", "db", "--memory", "2G", "--json")
    assert [m["ref"] for m in done.envelope["data"]["members"]] == ["demo/db"]
    run("add", "demo", "--count", "2")
    assert asked == [(("db",), None, 2 << 30, None), ((), 2, None, None)]


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("fail", 6)])
def test_doctor(run: Run, monkeypatch: pytest.MonkeyPatch, status: Any, code: int) -> None:
    kvm = Check("kvm", status, "does not work", "load the module", "it is fast", fixable=True)
    checks = (kvm, Check("qemu", "ok", "version 7", "unused", "unsaid"))
    report = DoctorReport(checks, "qemu", "tcg", "host")
    monkeypatch.setattr("fleetbox.host.doctor", lambda fix, on_event: report)
    done = run("doctor")
    assert done.exit_code == code
    lines = done.stdout.splitlines()
    mark = {"ok": "✓", "warn": "!", "fail": "✗"}[status]
    assert lines[0] == f"{mark} kvm   does not work"
    told = ["        why: it is fast", "        fix: load the module"]
    assert (lines[1:3] == told) == (status != "ok")
    assert "unused" not in done.stdout
    assert "unsaid" not in done.stdout
    assert "`fleetbox doctor --fix` repairs some of this" in lines
    assert "repairs some" not in run("doctor", "--fix").stdout
    assert lines[-1] == "a new cluster gets qemu with tcg, network host"
    assert run("doctor", "--json").envelope["data"]["accelerator"] == "tcg"


def test_prune(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    item = PruneItem("link", "fbx-1", "its holder is gone", removed=True)
    monkeypatch.setattr("fleetbox.host.prune", lambda **_: PruneReport((item,)))
    done = run("prune")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[1].split() == ["link", "fbx-1", "its", "holder", "is", "gone", "yes"]
    failed = PruneItem("link", "fbx-1", "busy", removed=False)
    monkeypatch.setattr("fleetbox.host.prune", lambda **_: PruneReport((failed,)))
    assert run("prune").exit_code == 1
    assert run("prune", "--dry-run").exit_code == 0
    monkeypatch.setattr("fleetbox.host.prune", lambda **_: PruneReport(()))
    assert run("prune").stdout == "nothing to remove\n"


def test_image_verbs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def double(name: str, result: Any) -> None:
        def function(*args: Any, **keywords: Any) -> Any:
            keywords.pop("on_event", None)
            asked.append((name, args, {k: v for k, v in keywords.items() if v}))
            return result

        monkeypatch.setattr(f"fleetbox.images.{name}", function)

    for name in ("pull", "build", "import_", "inspect"):
        double(name, IMAGE)
    double("list_images", [IMAGE])
    double("remove", [IMAGE])
    pulled = run("image", "pull", "debian-12", "--sha256", "cd")
    assert pulled.stdout == "pulled abababababab (debian-12), 2G, direct boot\n"
    run("image", "build", "--name", "web", "--include", "nginx", "--include", "curl", "--run", "./x.sh")
    run("image", "import", "-", "--name", "mine")
    run("--json", "image", "rm", "web", "mine")
    assert run("image", "inspect", "debian-12").stdout.splitlines()[0] == f"digest  {'ab' * 32}"
    listed = run("image", "ls").stdout.splitlines()
    assert listed[1].split()[:5] == ["debian-12", "abababababab", "2G", "400M", "direct"]
    assert run("image", "ls", "--json").envelope["data"]["images"][0]["names"] == ["debian-12"]
    assert asked[:4] == [
        ("pull", ("debian-12",), {"sha256": "cd"}),
        ("build", ("debian-12",), {"name": "web", "include": ("nginx", "curl"), "scripts": ("./x.sh",)}),
        ("import_", ("-",), {"name": "mine"}),
        ("remove", (["web", "mine"],), {}),
    ]
