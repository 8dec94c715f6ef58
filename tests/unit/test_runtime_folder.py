"""What of a cluster's runtime folder belongs to nobody any more."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from fleetbox.holder.runtime import clear, stale_files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    return folder


def bound(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    return listening


def test_only_what_nobody_is_bound_to_is_stale(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    bound(folder / "dead.sock").close()
    bound(folder / "holder.sock").close()
    bound(folder / "node-1.ssh").close()  # OpenSSH binds its master under another name
    (folder / "serial.log").write_text("x")
    with bound(folder / "live.sock"), bound(Path("run/relative.sock")), bound(elsewhere / "holder.sock"):
        assert [p.name for p in stale_files(folder, ())] == ["dead.sock", "holder.sock"]
        link = tmp_path / "link"
        link.symlink_to(folder)
        assert [p.name for p in stale_files(link, ())] == ["dead.sock", "holder.sock"]


def test_pidfiles_of_the_dead_are_stale(folder: Path) -> None:
    (folder / "node-1.pid").write_text(f"{os.getpid()}\n")
    (folder / "node-2.pid").write_text("1\n")
    (folder / "node-3.pid").write_text("")
    assert [p.name for p in stale_files(folder, {os.getpid()})] == ["node-2.pid", "node-3.pid"]


def test_without_a_machine_all_of_it_goes(folder: Path) -> None:
    (folder / "node-1.pid").write_text("1\n")
    clear(folder, None)
    assert not folder.exists()
    assert stale_files(folder, ()) == []
