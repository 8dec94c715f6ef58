"""`fleetbox cp`, `copy_to` and `copy_from`: against an SFTP server that plays the members, honest or hostile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fleetbox as api
from fleetbox.errors import FleetboxError, PartialError
from fleetbox.files.location import Location, parse
from fleetbox.wire import Event, Progress
from tests.cli.conftest import COMMAND, REPOSITORY, Run, write_cluster

OLD = 1_000_000_000


@pytest.fixture
def guest(ssh_double: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root folder of all members of the cluster demo."""
    server = ssh_double / "sftp"
    server.write_text(f"#!/bin/sh\nexec {sys.executable} {REPOSITORY}/tests/sftpserver.py\n")
    server.chmod(0o755)
    root = tmp_path / "guest"
    (root / "home" / "fleet").mkdir(parents=True)
    (root / "tmp").mkdir()
    monkeypatch.setenv("SFTP_ROOT", str(root))
    write_cluster("demo", "node-1", "node-2")
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder here with what a folder can have."""
    top = tmp_path / "tree"
    (top / "below" / "deep").mkdir(parents=True)
    (top / "run.sh").write_text("#!/bin/sh\n")
    (top / "run.sh").chmod(0o755)
    (top / "below" / "data").write_bytes(os.urandom(8_000_000))
    (top / "below" / "private").write_text("x")
    (top / "below" / "private").chmod(0o600)
    (top / "below" / "link").symlink_to("data")
    (top / "below" / "deep" / "up").symlink_to("../data")
    (top / "empty").mkdir(mode=0o555)
    for path in sorted(top.rglob("*"), reverse=True):
        os.utime(path, (OLD, OLD + len(path.name)), follow_symlinks=False)
    return top


def _look(folder: Path) -> dict[str, tuple[object, ...]]:
    """All of a tree that has to be the same after a copy."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        name, info = str(path.relative_to(folder)), path.lstat()
        if path.is_symlink():
            found[name] = ("link", str(path.readlink()))
        else:
            content = path.read_bytes() if path.is_file() else b""
            found[name] = (info.st_mode, int(info.st_mtime), content)
    return found


def test_a_folder_goes_there_between_members_and_back(guest: Path, tree: Path, tmp_path: Path, run: Run) -> None:
    there = run("cp", str(tree), "demo/node-1:/tmp")
    assert there.exit_code == 0, there.stderr
    assert there.stderr.startswith("copy …\ncopy done in ")
    assert "copied 5 files, 7.6M" in there.stdout
    assert _look(guest / "tmp" / "tree") == _look(tree)
    assert run("cp", "demo/node-1:/tmp/tree", "demo/node-2:other").exit_code == 0
    assert _look(guest / "home/fleet/other") == _look(tree)
    assert run("cp", "-q", "demo/node-2:other", str(tmp_path / "back")).exit_code == 0
    assert _look(tmp_path / "back") == _look(tree)
    again = run("cp", "--json", "demo/node-2:other/below/data", str(tmp_path / "back"))
    assert again.envelope["data"] == {"files": 1, "size_bytes": 8_000_000}
    assert [path.name for path in guest.rglob(".*")] == []  # no temporary file is left


def test_where_things_land(guest: Path, tmp_path: Path, run: Run) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    assert run("cp", str(one), str(two), "demo/node-1:").exit_code == 0
    assert {p.name for p in (guest / "home/fleet").iterdir()} == {"one", "two"}
    assert run("cp", str(one), "demo/node-1:renamed").exit_code == 0
    assert (guest / "home/fleet/renamed").read_text() == "1"
    (guest / "home/fleet/link").symlink_to("renamed")
    assert run("cp", str(two), "demo/node-1:link").exit_code == 0  # the user's own link is followed
    assert (guest / "home/fleet/renamed").read_text() == "2"
    for words, code in (
        ((str(one), str(two), "demo/node-1:nothing"), 3),
        ((str(one), "demo/node-1:nothing/"), 3),
        ((str(one), "demo/node-1:no/such/folder"), 1),
        ((str(tmp_path / "three"), "demo/node-1:"), 3),
        (("demo/node-1:three", str(tmp_path)), 3),
        (("demo/node-3:three", str(tmp_path)), 3),
        ((str(one), str(one)), 1),
        ((str(tmp_path), str(tmp_path / "within")), 1),
        ((str(one),), 2),
    ):
        assert run("cp", *words).exit_code == code, words
    (guest / "tmp/one").mkdir()
    assert "is a folder" in run("cp", str(one), "demo/node-1:/tmp").stderr


def test_patterns(guest: Path, tmp_path: Path, run: Run) -> None:
    for name in ("a.log", "b.log", ".hidden.log", "c.txt", "[x].log"):
        (guest / "tmp" / name).write_text(name)
    into = tmp_path / "into"
    into.mkdir()
    assert run("cp", "demo/node-1:/t*/*.log", str(into)).exit_code == 0
    assert {p.name for p in into.iterdir()} == {"a.log", "b.log", "[x].log"}
    assert run("cp", "demo/node-1:/tmp/[x].log", str(tmp_path / "literal")).exit_code == 0
    assert (tmp_path / "literal").read_text() == "[x].log"
    assert run("cp", "demo/node-1:/tmp/*.none", str(into)).exit_code == 3


def test_streams(guest: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (guest / "tmp/there").write_bytes(b"\0\xff")
    (guest / "tmp/there").chmod(0o640)
    done = subprocess.run(
        [*COMMAND, "cp", "demo/node-1:/tmp/there", "-"], cwd=REPOSITORY, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"\0\xff"), done.stderr
    done = subprocess.run(
        [*COMMAND, "cp", "-", "demo/node-1:/tmp/there"],
        cwd=REPOSITORY,
        input=b"new",
        capture_output=True,
        check=False,
    )
    assert (done.returncode, (guest / "tmp/there").read_bytes()) == (0, b"new"), done.stderr
    assert (guest / "tmp/there").stat().st_mode & 0o777 == 0o640
    assert run("cp", "-", "demo/node-1:/tmp").exit_code == 2
    assert run("cp", "demo/node-1:/tmp", "-").exit_code == 2
    assert run("cp", "-", "x", "demo/node-1:/tmp").exit_code == 2
    assert run("cp", "--json", "demo/node-1:/tmp/there", "-").exit_code == 2


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ("../../evil", "leads out"),
        ("/etc/evil", "leads out"),
        ("../", "leads out"),
        ("honest", "comes twice"),
        ("link=>/etc/passwd", "leads out"),
        ("link=>../up", "leads out"),
        ("link=>below/../../up", "leads out"),
        ("link=>", "leads out"),
        ("below=>.\nbelow", "comes twice"),
    ],
)
def test_a_hostile_guest_writes_nowhere_else(
    guest: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, lie: str, said: str
) -> None:
    (guest / "tmp/lies/below").mkdir(parents=True)
    (guest / "tmp/lies/honest").write_text("h")
    (guest / "tmp/lies/suid").write_text("s")
    (guest / "tmp/lies/suid").chmod(0o6755)
    monkeypatch.setenv("SFTP_LIES", lie)
    into = tmp_path / "arena" / "deep" / "into"
    into.mkdir(parents=True)
    done = run("cp", "demo/node-1:/tmp/lies", str(into))
    assert done.exit_code == 1
    assert said in done.stderr
    assert (into / "lies/honest").read_text() == "h"  # what is honest has come
    assert (into / "lies/suid").stat().st_mode & 0o7777 == 0o755
    made = {str(path.relative_to(tmp_path / "arena")) for path in (tmp_path / "arena").rglob("*")}
    assert made <= {"deep", "deep/into", "deep/into/lies"} | {
        f"deep/into/lies/{n}" for n in ("honest", "suid", "below")
    }


def test_links_here_are_not_followed_by_a_guests_files(guest: Path, tmp_path: Path) -> None:
    (guest / "tmp/tree/sub").mkdir(parents=True)
    (guest / "tmp/tree/sub/file").write_text("from the guest")
    (guest / "tmp/tree/plain").write_text("from the guest")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "plain").write_text("mine")
    into = tmp_path / "into" / "tree"
    into.mkdir(parents=True)
    (into / "sub").symlink_to(precious)
    (into / "plain").symlink_to(precious / "plain")
    with pytest.raises(PartialError) as caught:
        api.Cluster("demo").member("node-1").copy_from("/tmp/tree", tmp_path / "into")
    assert "is no folder" in str(next(iter(caught.value.failures.values())))
    assert {p.name: p.read_text() for p in precious.iterdir()} == {"plain": "mine"}
    assert (into / "plain").read_text() == "from the guest"
    assert not (into / "plain").is_symlink()


def test_what_is_no_file_is_named_and_the_rest_copied(guest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "file").write_text("f")
    member = api.Cluster("demo").member("node-1")
    with pytest.raises(PartialError, match="1 of 2"):
        member.copy_to(folder, "/tmp")
    assert {p.name for p in (guest / "tmp/folder").iterdir()} == {"file"}
    with pytest.raises(FleetboxError, match="no file, folder or link"):
        member.copy_to(folder / "pipe", "/tmp")


def test_progress_is_measured(guest: Path, tree: Path) -> None:
    heard: list[Event] = []
    api.Cluster("demo").member("node-1").copy_to(tree, "/tmp", on_event=heard.append)
    steps = [event for event in heard if isinstance(event, Progress)]
    assert [steps[0].state, steps[-1].state] == ["begin", "done"]
    assert (
        steps[-1].current
        == steps[-1].total
        == sum(p.stat().st_size for p in tree.rglob("*") if p.is_file() and not p.is_symlink())
    )
    assert {step.unit for step in steps} == {"bytes"}


def test_an_interrupted_copy_leaves_what_was(guest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (guest / "tmp/file").write_text("before")
    source = tmp_path / "file"
    source.write_bytes(bytes(5_000_000))

    def interrupt(event: Event) -> None:
        if isinstance(event, Progress) and event.current:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.Cluster("demo").member("node-1").copy_to(source, "/tmp", on_event=interrupt)
    assert {p.name: p.read_text() for p in (guest / "tmp").iterdir()} == {"file": "before"}
    here = tmp_path / "here"
    here.write_text("before")
    (guest / "tmp/large").write_bytes(bytes(5_000_000))
    with pytest.raises(KeyboardInterrupt):
        api.Cluster("demo").member("node-1").copy_from("/tmp/large", here, on_event=interrupt)
    assert here.read_text() == "before"
    assert {p.name for p in tmp_path.glob(".*")} == set()


def test_a_member_that_cannot_be_reached(guest: Path, ssh_double: Path, run: Run, tmp_path: Path) -> None:
    (ssh_double / "sftp").write_text("#!/bin/sh\necho no route to it >&2\nexit 255\n")
    done = run("cp", str(REPOSITORY / "LICENSE"), "demo/node-1:")
    assert done.exit_code == 1
    assert "no route to it" in done.stderr
    write_cluster("off", "node-1", running=False)
    assert "is not running" in run("cp", str(REPOSITORY / "LICENSE"), "off/node-1:").stderr


@pytest.mark.parametrize(
    ("text", "location"),
    [
        ("node-1:/etc", Location("node-1", "/etc")),
        ("demo/node-1:", Location("demo/node-1", ".")),
        ("node-1:~/x:y", Location("node-1", "x:y")),
        ("./node-1:x", Location("", "./node-1:x")),
        ("/a/b:c", Location("", "/a/b:c")),
        ("C:/x", Location("", "C:/x")),
        ("a/b/c:d", Location("", "a/b/c:d")),
        ("-", Location("", "-")),
    ],
)
def test_locations(text: str, location: Location) -> None:
    assert parse(text) == location
