"""Where things lie on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fleetbox import paths
from fleetbox.errors import HostError


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("XDG_") or name == "FLEETBOX_HOME":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def everything() -> list[Path]:
    of_cluster = (
        paths.cluster_state_dir,
        paths.cluster_record,
        paths.holder_lock,
        paths.holder_log,
        paths.known_hosts,
        paths.cluster_data_dir,
        paths.cluster_runtime_dir,
        paths.holder_socket,
        paths.holder_pidfile,
    )
    of_all = (
        paths.clusters_dir,
        paths.networks_dir,
        paths.keys_dir,
        paths.blobs_dir,
        paths.images_dir,
        paths.downloads_dir,
        paths.bin_dir,
    )
    return [
        *(make("c") for make in of_cluster),
        *(make() for make in of_all),
        paths.member_dir("c", "m"),
        paths.serial_log("c", "m"),
    ]


def test_home_holds_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path / "h"))
    kinds = set()
    for path in everything():
        kinds.add(path.relative_to(tmp_path / "h").parts[0])
    assert kinds == {"data", "state", "cache", "run"}
    assert len(set(everything())) == len(everything())


def test_relative_home_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLEETBOX_HOME", "here")
    assert paths.state_dir() == tmp_path / "here" / "state"
    monkeypatch.setenv("FLEETBOX_HOME", "")


def test_xdg_folders_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("DATA", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind))
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    assert paths.member_dir("c", "m") == tmp_path / "DATA/fleetbox/clusters/c/m"
    assert paths.cluster_record("c") == tmp_path / "STATE/fleetbox/clusters/c/cluster.json"
    assert paths.downloads_dir() == tmp_path / "CACHE/fleetbox/downloads"
    assert paths.runtime_dir() == tmp_path / "run/fleetbox"


def test_runtime_folder_without_xdg_is_one_private_place_per_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "gone at logout"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert paths.runtime_dir() == Path("/run/fleetbox/0")
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    assert paths.runtime_dir() == Path("/tmp/fleetbox-1234")


def test_socket_path_is_short_whatever_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETBOX_HOME", "/tmp/h")
    assert len(os.fsencode(paths.holder_socket("c" * 63))) < 40
    assert paths.holder_socket("a") != paths.holder_socket("b")


def test_socket_path_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths.checked_socket(Path("/" + "s" * 106))
    with pytest.raises(HostError, match="too long"):
        paths.checked_socket(Path("/" + "s" * 107))
    with pytest.raises(HostError, match="too long"):
        paths.checked_socket(Path("/" + "é" * 60))
    monkeypatch.setenv("FLEETBOX_HOME", "/tmp/" + "h" * 100)
    with pytest.raises(HostError, match="too long"):
        paths.holder_socket("c")


def test_installations_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path / "one"))
    one = paths.installation_digest()
    assert paths.installation_digest() == one
    assert len(one) == 5
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path / "two"))
    assert paths.installation_digest() != one


def test_private_folder_is_made_and_closed_to_others(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert paths.private_dir(folder) == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    paths.private_dir(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["file", "link", "dangling", "below a file"])
def test_what_is_no_private_folder_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run"
    if kind == "file":
        path.touch()
    elif kind == "below a file":
        path.touch()
        path /= "sub"
    else:
        (tmp_path / "target").mkdir()
        path.symlink_to(tmp_path / ("target" if kind == "link" else "nowhere"))
    with pytest.raises(HostError) as error:
        paths.private_dir(path)
    assert str(path) in error.value.message
    assert error.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_somebody_elses_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    os.chown(folder, 1234, 1234)
    with pytest.raises(HostError, match="uid 1234"):
        paths.private_dir(folder)
