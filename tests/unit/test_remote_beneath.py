"""A helper opens files of its folder and no other."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetbox.errors import UsageError
from fleetbox.holder.remote import beneath
from fleetbox.holder.remote.beneath import Beneath


@pytest.fixture(params=["openat2", "without openat2"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Beneath]:
    (tmp_path / "root" / "inner").mkdir(parents=True)
    (tmp_path / "root" / "inner" / "file").write_text("inside")
    (tmp_path / "secret").write_text("outside")
    if request.param != "openat2":
        monkeypatch.setattr(beneath, "_OPENAT2", 100_000)  # no such system call
    opened = Beneath(tmp_path / "root")
    yield opened
    opened.close()


def test_files_of_the_folder_are_opened_and_made(folder: Beneath) -> None:
    with os.fdopen(folder.open("inner/file", os.O_RDONLY)) as file:
        assert file.read() == "inside"
    with os.fdopen(folder.open("inner/new", os.O_WRONLY | os.O_CREAT), "w") as file:
        file.write("made")
    made = folder.root / "inner/new"
    assert made.read_text() == "made"
    assert made.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileNotFoundError):
        folder.open("inner/none", os.O_RDONLY)


@pytest.mark.parametrize(
    "name", ["../secret", "inner/../../secret", "/etc/passwd", "inner/../inner/../../secret", ".."]
)
def test_names_that_lead_out_are_refused(folder: Beneath, name: str) -> None:
    with pytest.raises(UsageError, match="refused"):
        folder.open(name, os.O_RDONLY)


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd", "inner", "inner/file"])
def test_symbolic_links_are_refused_wherever_they_lead(folder: Beneath, target: str) -> None:
    (folder.root / "link").symlink_to(target)
    (folder.root / "inner" / "link").symlink_to("/etc")
    for name in ("link", "link/file", "inner/link/passwd"):
        with pytest.raises((UsageError, FileNotFoundError, NotADirectoryError)) as failure:
            folder.open(name, os.O_RDONLY)
        assert isinstance(failure.value, UsageError), name


def test_the_folder_itself_may_be_no_link(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "link").symlink_to("root")
    with pytest.raises(OSError, match=os.strerror(errno.ENOTDIR)):
        Beneath(tmp_path / "link")


def test_the_folder_that_was_opened_counts_not_its_name(folder: Beneath) -> None:
    folder.root.rename(folder.root.with_name("moved"))
    folder.root.mkdir()
    with os.fdopen(folder.open("inner/file", os.O_RDONLY)) as file:
        assert file.read() == "inside"
