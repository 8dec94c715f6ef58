"""The installation's key: made once, repaired or refused, never replaced."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import paramiko
import pytest

from fleetbox import paths
from fleetbox.errors import HostError
from fleetbox.holder.guest import atomicfile
from fleetbox.holder.guest.keys import installation_key


def test_first_use_makes_a_private_key_that_clients_can_load(fleetbox_home: Path) -> None:
    pair = installation_key()
    assert pair.private == paths.keys_dir() / "id_ed25519"
    assert stat.S_IMODE(pair.private.stat().st_mode) == 0o600
    assert stat.S_IMODE(paths.keys_dir().stat().st_mode) == 0o700
    kind, key, comment = pair.public_text.split()
    assert (kind, comment) == ("ssh-ed25519", "fleetbox")
    assert paramiko.Ed25519Key.from_private_key_file(str(pair.private)).get_base64() == key
    assert (paths.keys_dir() / "id_ed25519.pub").read_text() == f"{pair.public_text}\n"


def test_second_use_keeps_it(fleetbox_home: Path) -> None:
    first = installation_key()
    content = first.private.read_bytes()
    assert installation_key() == first
    assert first.private.read_bytes() == content


def test_ten_processes_get_one_key(fleetbox_home: Path) -> None:
    program = "from fleetbox.holder.guest.keys import installation_key; print(installation_key().public_text)"
    children = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(10)]
    answers = {child.communicate()[0] for child in children}
    assert [child.returncode for child in children] == [0] * 10
    assert answers == {f"{installation_key().public_text}\n"}
    assert {p.name for p in paths.keys_dir().iterdir()} == {".lock", "id_ed25519", "id_ed25519.pub"}


def test_loose_permissions_are_tightened_and_a_wrong_public_key_is_put_right(fleetbox_home: Path) -> None:
    pair = installation_key()
    pair.private.chmod(0o644)
    pair.private.with_suffix(".pub").write_text("ssh-ed25519 AAAA somebody-else\n")
    assert installation_key() == pair
    assert stat.S_IMODE(pair.private.stat().st_mode) == 0o600
    assert pair.private.with_suffix(".pub").read_text() == f"{pair.public_text}\n"


def test_a_damaged_key_is_refused_and_kept(fleetbox_home: Path) -> None:
    pair = installation_key()
    pair.private.write_text("not a key\n")
    with pytest.raises(HostError, match="cannot be used") as caught:
        installation_key()
    assert caught.value.hint
    assert pair.private.read_text() == "not a key\n"


def test_what_a_killed_process_left_is_cleared(fleetbox_home: Path) -> None:
    left = paths.private_dir(paths.keys_dir()) / ".new-abc"
    left.mkdir()
    (left / "key").write_text("half")
    installation_key()
    assert not left.exists()


def test_atomicfile_keeps_the_old_file_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(fd: int, mode: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fchmod", full)
    with pytest.raises(OSError, match="No space left"):
        atomicfile.write(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
