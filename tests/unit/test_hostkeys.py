"""Host keys made on the host, and the `known_hosts` that lets SSH check them strictly."""

from __future__ import annotations

import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import paramiko
import pytest

from fleetbox import paths
from fleetbox.errors import DiskError, HostError
from fleetbox.holder.guest import hostkeys


@pytest.fixture
def cluster(fleetbox_home: Path) -> str:
    paths.cluster_state_dir("demo").mkdir(parents=True)
    return "demo"


def lines() -> list[str]:
    return paths.known_hosts("demo").read_text().splitlines()


def test_a_member_keeps_its_key(tmp_path: Path) -> None:
    first = hostkeys.make_host_key(tmp_path)
    kept = tmp_path / hostkeys.KEY_FILE
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert hostkeys.make_host_key(tmp_path) == first
    assert list(tmp_path.iterdir()) == [kept]
    key = paramiko.Ed25519Key.from_private_key_file(str(kept))
    assert first.public_text == f"ssh-ed25519 {key.get_base64()}"
    assert first.private_text == kept.read_text()


def test_members_have_different_keys(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    assert len({hostkeys.make_host_key(folder) for folder in folders}) == 2


def test_a_damaged_key_is_named_and_kept(tmp_path: Path) -> None:
    (tmp_path / hostkeys.KEY_FILE).write_text("broken\n")
    with pytest.raises(HostError, match=hostkeys.KEY_FILE):
        hostkeys.make_host_key(tmp_path)
    assert (tmp_path / hostkeys.KEY_FILE).read_text() == "broken\n"


def test_a_missing_folder_is_a_disk_error(tmp_path: Path) -> None:
    with pytest.raises(DiskError):
        hostkeys.make_host_key(tmp_path / "nowhere")


def test_openssh_and_paramiko_find_the_key_under_alias_and_address(cluster: str, tmp_path: Path) -> None:
    key = hostkeys.make_host_key(tmp_path).public_text
    hostkeys.add_known_host(cluster, "node-1", "192.168.5.2", key)
    alias = hostkeys.host_key_alias(cluster, "node-1")
    assert alias == "node-1.demo.fleetbox"
    file = str(paths.known_hosts(cluster))
    for name in (alias, "192.168.5.2"):
        found = subprocess.run(["ssh-keygen", "-F", name, "-f", file], capture_output=True, text=True, check=True)
        assert key in found.stdout
        entry = paramiko.HostKeys(file).lookup(name)
        assert entry is not None
        assert f"ssh-ed25519 {entry['ssh-ed25519'].get_base64()}" == key


def test_a_member_is_replaced_and_removed_and_others_stay(cluster: str) -> None:
    hostkeys.add_known_host(cluster, "node-1", "192.168.5.2", "ssh-ed25519 ONE")
    hostkeys.add_known_host(cluster, "node-2", "192.168.5.3", "ssh-ed25519 TWO")
    hostkeys.add_known_host(cluster, "node-1", "192.168.6.2", "ssh-ed25519 NEW")
    assert lines() == [
        "node-2.demo.fleetbox,192.168.5.3 ssh-ed25519 TWO",
        "node-1.demo.fleetbox,192.168.6.2 ssh-ed25519 NEW",
    ]
    hostkeys.remove_known_host(cluster, "node-1")
    hostkeys.remove_known_host(cluster, "node-9")
    assert lines() == ["node-2.demo.fleetbox,192.168.5.3 ssh-ed25519 TWO"]


def test_an_address_that_changes_hands_leads_to_one_key_only(cluster: str) -> None:
    hostkeys.add_known_host(cluster, "node-1", "192.168.5.2", "ssh-ed25519 ONE")
    hostkeys.add_known_host(cluster, "node-2", "192.168.5.2", "ssh-ed25519 TWO")
    assert lines() == ["node-1.demo.fleetbox ssh-ed25519 ONE", "node-2.demo.fleetbox,192.168.5.2 ssh-ed25519 TWO"]


def test_a_cluster_without_the_file_forgets_without_making_it(cluster: str) -> None:
    hostkeys.remove_known_host(cluster, "node-1")
    assert not paths.known_hosts(cluster).exists()


def test_members_that_come_up_at_once_are_all_known(cluster: str) -> None:
    def add(number: int) -> None:
        hostkeys.add_known_host(cluster, f"node-{number}", f"192.168.5.{number}", f"ssh-ed25519 K{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(2, 52)))
    assert len(lines()) == 50
