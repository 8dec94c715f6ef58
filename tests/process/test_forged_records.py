"""Records that were forged to point elsewhere: nothing that is not the cluster's own is deleted, ended or written."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import fleetbox
from fleetbox import host, paths
from fleetbox.errors import FleetboxError, RecordError
from fleetbox.identity import identify, is_alive


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with fleetbox."""
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def precious(home: Path) -> Path:
    """A folder of the user's that looks like a member's."""
    folder = home / "elsewhere" / "clusters" / "web" / "node-1"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    (folder / "disk.raw").write_text("another installation's disk")
    return folder


@pytest.fixture
def stopped(home: Path) -> fleetbox.Cluster:
    """A cluster without a holder: whoever comes next believes its record, or not."""
    cluster = fleetbox.up("web", cold=True)
    cluster.stop()
    return cluster


def forge(change: Callable[[dict[str, Any]], None]) -> bytes:
    path = paths.cluster_record("web")
    record = msgspec.json.decode(path.read_bytes())
    change(record)
    path.write_bytes(msgspec.json.encode(record))
    return path.read_bytes()


@pytest.mark.parametrize("dots", [False, True], ids=["absolute", "dots"])
def test_a_folder_that_is_not_the_members_own(stopped: fleetbox.Cluster, precious: Path, dots: bool) -> None:
    right = stopped.record.members["node-1"].folder
    folder = f"{right}/../../../../elsewhere/clusters/web/node-1" if dots else str(precious)
    written = forge(lambda r: r["members"]["node-1"].update(folder=folder))
    for act in (stopped.start, stopped.destroy, lambda: fleetbox.up("web")):
        with pytest.raises(RecordError):
            act()
    host.prune()
    assert {p.name for p in precious.iterdir()} == {"thesis.txt", "disk.raw"}
    assert Path(right, "disk.raw").exists(), "what the record may own is protected too"
    assert paths.cluster_record("web").read_bytes() == written
    forge(lambda r: r["members"]["node-1"].update(folder=right))
    stopped.start()


@pytest.mark.parametrize("act", ["destroy", "start", "prune"])
def test_a_process_that_is_none_of_its_machines_is_left_alone(
    stopped: fleetbox.Cluster, stranger: subprocess.Popen[bytes], act: str
) -> None:
    found = identify(stranger.pid)
    assert found is not None
    handle = {"process": msgspec.to_builtins(found), "api_socket": ""}
    state = "creating" if act == "prune" else "running"
    forge(lambda r: r["members"]["node-1"].update(handle=handle, state=state))
    if act == "prune":
        host.prune()
    elif act == "destroy":
        stopped.destroy()
    else:
        stopped.start()
        assert stopped.record.members["node-1"].handle is not None
        assert stopped.record.members["node-1"].handle.process != found
    assert is_alive(found)
    assert stranger.poll() is None


def test_a_holders_lock_that_names_a_stranger_ends_nobody(
    stopped: fleetbox.Cluster, stranger: subprocess.Popen[bytes]
) -> None:
    found = identify(stranger.pid)
    lock = paths.holder_lock("web")
    forged = {"process": msgspec.to_builtins(found), "socket": "/nowhere", "version": "1", "protocol": 1}
    lock.write_bytes(msgspec.json.encode(forged))
    with pytest.raises(FleetboxError):
        fleetbox.holders.restart("web")
    assert stranger.poll() is None
    lock.write_bytes(b"")
    stopped.start()


def test_symlinks_in_place_of_its_folders_are_not_followed(stopped: fleetbox.Cluster, precious: Path) -> None:
    folder = Path(stopped.record.members["node-1"].folder)
    folder.rename(f"{folder}.old")
    folder.symlink_to(precious)
    with contextlib.suppress(FleetboxError):
        stopped.destroy()
    assert (precious / "thesis.txt").exists()
    assert (precious / "disk.raw").exists()
    folder.unlink(missing_ok=True)
