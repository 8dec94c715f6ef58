"""Archives of real fake machines, from one home to another: through pipes, interrupted, killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

import fleetbox
from fleetbox import paths, snapshots
from fleetbox.backends.fake import recall, tell
from fleetbox.errors import ConflictError
from fleetbox.member import Member
from tests.home import clean_home

Until = Callable[[Callable[[], object]], None]


@contextlib.contextmanager
def elsewhere() -> Iterator[Path]:
    """Be at another home, whose clusters are destroyed at the end."""
    with pytest.MonkeyPatch.context() as environment, clean_home() as home:
        environment.setenv("FLEETBOX_BACKEND", "fake")
        yield home
        for cluster in fleetbox.clusters():
            cluster.destroy()


def command(*words: str, home: Path, stdin: Any = None, stdout: Any = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "fleetbox_cli", *words],
        env=os.environ | {"FLEETBOX_HOME": str(home), "FLEETBOX_BACKEND": "fake"},
        stdin=stdin,
        stdout=stdout,
    )


def piped(sending: subprocess.Popen[bytes]) -> IO[bytes]:
    assert sending.stdout is not None
    return sending.stdout


def memory(member: Member) -> list[str]:
    handle = member.record.handle
    assert handle is not None
    return recall(handle)


def remember(member: Member, text: str, until: Until) -> None:
    handle = member.record.handle
    assert handle is not None
    assert tell(handle, text)
    until(lambda: text in recall(handle))


def test_save_piped_into_clone_needs_no_archive_and_keeps_no_snapshot(home: Path, until: Until) -> None:
    cluster = fleetbox.up("demo", members=2)
    remember(cluster.member("node-2"), "counter 42", until)
    with elsewhere() as there:
        saving = command("snapshot", "save", "demo", "--output", "-", home=home, stdout=subprocess.PIPE)
        cloning = command("clone", "-", "copy", home=there, stdin=piped(saving))
        piped(saving).close()
        assert cloning.wait() == 0
        assert saving.wait() == 0
        copy = fleetbox.Cluster("copy")
        assert [m.name for m in copy.members] == ["node-1", "node-2"]
        assert memory(copy.member("node-2")) == ["counter 42"]
        assert snapshots.list_snapshots() == []
    assert snapshots.list_snapshots() == []


def test_a_restore_from_a_stream_rewinds(home: Path, tmp_path: Path, until: Until) -> None:
    cluster = fleetbox.up("demo", members=2)
    remember(cluster.member("node-1"), "before", until)
    snapshots.save_to(cluster, tmp_path / "a.tar")
    remember(cluster.member("node-1"), "after", until)
    with (tmp_path / "a.tar").open("rb") as archive:
        assert command("restore", "demo", "-", home=home, stdin=archive).wait() == 0
    assert memory(cluster.member("node-1")) == ["before"]
    assert snapshots.list_snapshots() == []


def test_export_and_import_by_python(home: Path, tmp_path: Path) -> None:
    cluster = fleetbox.up("demo")
    made = snapshots.save(cluster.member("node-1"), name="one", description="x")
    snapshots.export("one", tmp_path / "a.tar")
    again = snapshots.import_(tmp_path / "a.tar")
    assert (again.name, again.kind, again.description) == ("one-2", "member", "x")
    assert again.id != made.id
    with pytest.raises(ConflictError):
        snapshots.import_(tmp_path / "a.tar", name="one")
    clone = snapshots.clone("one-2", "twin")
    assert isinstance(clone, Member)
    assert clone.ref == "demo/twin"
    assert clone.record.id != cluster.member("node-1").record.id
    assert {s.name for s in snapshots.remove(["one", "one-2"])} == {"one", "one-2"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_import_that_is_ended_leaves_no_half_snapshot(home: Path, tmp_path: Path, until: Until, number: int) -> None:
    snapshots.save_to(fleetbox.up("demo"), tmp_path / "a.tar")
    data = (tmp_path / "a.tar").read_bytes()
    with elsewhere() as there:
        taking = command("snapshot", "import", "-", home=there, stdin=subprocess.PIPE)
        assert taking.stdin is not None
        taking.stdin.write(data[: len(data) - 2000])
        taking.stdin.flush()
        until(lambda: list(paths.snapshots_dir().glob(".new-*/*/*")))
        taking.send_signal(number)
        assert taking.wait() == (-number if number == signal.SIGKILL else 130)
        taking.stdin.close()
        until(lambda: not list(paths.snapshots_dir().glob(".new-*")))
        assert snapshots.list_snapshots() == []
        with (tmp_path / "a.tar").open("rb") as archive:
            assert command("snapshot", "import", "-", home=there, stdin=archive).wait() == 0
        assert len(snapshots.list_snapshots()) == 1


def test_an_export_whose_reader_goes_fails_and_leaves_no_file(home: Path) -> None:
    snapshots.save(fleetbox.up("demo"), name="one")
    reading, writing = os.pipe()
    os.close(reading)
    exporting = command("snapshot", "export", "one", "-", home=home, stdout=writing)
    os.close(writing)
    assert exporting.wait() == 1
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o500)
        assert command("snapshot", "export", "nope", f"{folder}/a.tar", home=home).wait() == 3
        assert list(Path(folder).iterdir()) == []
    assert snapshots.inspect("one").name == "one"
