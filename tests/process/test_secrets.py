"""What is secret stays with its owner: no private key in logs, answers or arguments, no file for anybody else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import fleetbox
from fleetbox import paths
from fleetbox.errors import HostError


def secrets(home: Path) -> list[str]:
    """Lines of every private key that there is, by which they would be known anywhere."""
    keys = [path for path in home.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()[:100]]
    assert paths.keys_dir() / "id_ed25519" in keys
    assert len(keys) > 1, "members have host keys"
    return [line for key in keys for line in key.read_text().splitlines() if line and "PRIVATE KEY" not in line]


def test_no_private_key_is_said_anywhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETBOX_LOG", "DEBUG")
    cluster = fleetbox.up("web", members=2)
    saved = fleetbox.snapshots.save(cluster, name="saved")
    told = [str(cluster.record), str(cluster.status()), str(saved)]
    for verb in (["ls"], ["status", "web"], ["inspect", "web"], ["snapshot", "inspect", "saved"], ["events", "web"]):
        argv = [sys.executable, "-m", "fleetbox_cli", *verb, "--json"]
        told.append(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    told += [path.read_text(errors="replace") for path in home.rglob("*.log")]
    told.append(paths.cluster_record("web").read_text())
    for process in psutil.process_iter():
        try:
            told.append("\0".join(process.cmdline()))
        except psutil.Error:
            continue
    everything = "\n".join(told)
    assert "node-1" in everything
    for line in secrets(home):
        assert line not in everything
    fleetbox.snapshots.remove(["saved"])


def test_every_file_is_its_owners_alone(home: Path) -> None:
    """The folders that hold anything close everything in them; keys and sockets are closed by themselves as well."""
    fleetbox.up("web", cold=True)
    for folder in (paths.cluster_state_dir("web"), paths.member_dir("web", "node-1"), paths.cluster_runtime_dir("web")):
        assert folder.stat().st_mode & 0o077 == 0, folder
    for path in home.rglob("*"):
        if path.is_socket() or path.name in ("id_ed25519", "ssh_host_ed25519_key", "seed.iso"):
            assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_user_reads_nothing(home: Path) -> None:
    fleetbox.up("web", cold=True)
    home.chmod(0o755)
    looking = (
        "import os, sys\nos.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "for path in sys.stdin.read().split('\\0'):\n"
        "    try: os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))\n"
        "    except OSError: continue\n"
        "    print(path)\n"
    )
    wanted = [p for p in home.rglob("*") if p.is_file() and p.name != "id_ed25519.pub"]
    wanted = [
        p for p in wanted if p.is_relative_to(paths.data_dir() / "clusters") or p.is_relative_to(paths.state_dir())
    ]
    wanted.append(paths.keys_dir() / "id_ed25519")
    done = subprocess.run(
        [sys.executable, "-c", looking], input="\0".join(map(str, wanted)), capture_output=True, text=True, check=True
    )
    assert len(wanted) > 5
    assert done.stdout == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a folder to somebody else")
@pytest.mark.parametrize("trap", ["another's", "a link", "a file"])
def test_a_runtime_folder_that_somebody_prepared_is_refused(home: Path, tmp_path: Path, trap: str) -> None:
    folder = paths.cluster_runtime_dir("web")
    folder.parent.mkdir(parents=True, exist_ok=True)
    match trap:
        case "another's":
            folder.mkdir()
            os.chown(folder, 65534, 65534)
        case "a link":
            (tmp_path / "elsewhere").mkdir()
            folder.symlink_to(tmp_path / "elsewhere")
        case _:
            folder.touch()
    with pytest.raises(HostError, match="not a private folder"):
        paths.private_dir(folder)
    if trap == "another's":  # root may remove it, and does
        fleetbox.up("web", cold=True)
        assert (folder.stat().st_uid, folder.stat().st_mode & 0o777) == (0, 0o700)
        return
    with pytest.raises(HostError, match="not a private folder"):
        fleetbox.up("web", cold=True)
    assert not (tmp_path / "elsewhere").exists() or not any((tmp_path / "elsewhere").iterdir())
    folder.unlink()
    fleetbox.up("web", cold=True)
