"""Hypervisor programs: found, refused, downloaded once from a server on the loopback."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetbox import paths
from fleetbox.backends.vmm import pinned
from fleetbox.backends.vmm.pinned import Pin, Release
from fleetbox.errors import HostError
from fleetbox.wire import Event, Notice, Progress
from tests.origin import Origin, serving

MEMBER = "release-v1.16.1/firecracker-v1.16.1"


def script(says: str, code: int = 0) -> bytes:
    return f"#!/bin/sh\necho '{says}'\nexit {code}\n".encode()


FIRECRACKER = script("Firecracker v1.16.1")
CLOUD_HYPERVISOR = script("cloud-hypervisor v53.0")


def archive(member: str = MEMBER, data: bytes = FIRECRACKER) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in (("release-v1.16.1/LICENSE", b"words"), (member, data)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLEETBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:/usr/bin:/bin")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for override in pinned.OVERRIDES.values():
        monkeypatch.delenv(override, raising=False)
    (tmp_path / "path").mkdir()
    return tmp_path


@pytest.fixture
def origin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    """Serves firecracker's archive, which is pinned."""
    with serving(archive()) as server:
        pin(monkeypatch, server)
        yield server


def pin(
    monkeypatch: pytest.MonkeyPatch,
    server: Origin,
    *,
    name: str = "firecracker",
    member: str = MEMBER,
    sha256: str = "",
) -> None:
    release = Release(server.url, sha256 or hashlib.sha256(server.body).hexdigest(), member)
    real = pinned.pins()[name]
    changed = Pin(real.version, {"amd64": release, "arm64": release}, real.oldest, real.before)
    pins = {**pinned.pins(), name: changed}
    monkeypatch.setattr(pinned, "pins", lambda: pins)


def put(path: Path, content: bytes, mode: int = 0o755) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def ensure(name: str = "firecracker") -> tuple[pinned.Binary, list[Event]]:
    events: list[Event] = []
    return asyncio.run(pinned.ensure(name, events.append)), events


def left() -> list[str]:
    return sorted(p.name for p in paths.bin_dir().iterdir() if p.suffix != ".lock")


def test_what_the_project_pins_is_whole() -> None:
    for name in pinned.OVERRIDES:
        found = pinned.pins()[name]
        assert set(found.files) == {"amd64", "arm64"}
        for release in found.files.values():
            assert len(release.sha256) == 64
            assert found.version in release.url
            assert not release.member or found.version in release.member


def test_the_environment_comes_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(home / "path/firecracker", FIRECRACKER)
    named = put(home / "mine", script("Firecracker v1.15.0"))
    monkeypatch.setenv("FLEETBOX_FIRECRACKER", str(named))
    assert pinned.find("firecracker") == pinned.Binary(named, "1.15.0", "FLEETBOX_FIRECRACKER")


def test_then_the_path(home: Path) -> None:
    there = put(home / "path/cloud-hypervisor", CLOUD_HYPERVISOR)
    assert ensure("cloud-hypervisor")[0] == pinned.Binary(there, "53.0", "PATH")


@pytest.mark.parametrize("version", ["0.25.2", "1.11.9", "2.0.0"])
def test_an_unknown_version_on_the_path_is_passed_over(home: Path, origin: Origin, version: str) -> None:
    put(home / "path/firecracker", script(f"Firecracker v{version}"))
    assert ensure()[0].source == "cache"
    assert version in pinned.passed_over("firecracker")


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (None, 0, "there is no firecracker"),
        (FIRECRACKER, 0o644, "not executable"),
        (script("Firecracker v2.1.0"), 0o755, "is firecracker 2.1.0"),
        (script("Firecracker v0.9.0"), 0o755, "is firecracker 0.9.0"),
        (script("cloud-hypervisor v53.0"), 0o755, "not a firecracker"),
        (script("Firecracker"), 0o755, "not a firecracker"),
        (script("broken", 3), 0o755, "not a firecracker that runs"),
        (b"\x7fELF nonsense", 0o755, "not a firecracker that runs"),
        (b"#!/nonexistent/interpreter\n", 0o755, "not a firecracker that runs"),
    ],
)
def test_what_the_environment_names_is_refused_when_it_is_no_good(
    home: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, mode: int, words: str
) -> None:
    named = home / "mine"
    if content is not None:
        put(named, content, mode)
    monkeypatch.setenv("FLEETBOX_FIRECRACKER", str(named))
    with pytest.raises(HostError, match=words) as caught:
        pinned.find("firecracker")
    assert str(named) in str(caught.value)
    assert caught.value.hint


def test_a_program_that_hangs_is_given_up(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETBOX_TIMEOUT_SCALE", "0.01")
    named = put(home / "mine", b"#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setenv("FLEETBOX_FIRECRACKER", str(named))
    with pytest.raises(HostError, match="did not end"):
        pinned.find("firecracker")


def test_what_is_not_here_is_downloaded_and_kept(origin: Origin) -> None:
    assert pinned.find("firecracker") is None
    binary, events = ensure()
    assert binary == pinned.Binary(pinned.cached_path("firecracker"), "1.16.1", "cache")
    assert binary.path.read_bytes() == FIRECRACKER
    assert binary.path.stat().st_mode & 0o777 == 0o755
    assert [e.state for e in events if isinstance(e, Progress) and e.state != "update"] == ["begin", "done"]
    assert left() == [binary.path.name]
    assert list(paths.downloads_dir().iterdir()) == []
    assert ensure()[0] == binary
    assert len(origin.requests) == 1


def test_a_plain_file_is_kept_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(CLOUD_HYPERVISOR) as server:
        pin(monkeypatch, server, name="cloud-hypervisor", member="")
        assert ensure("cloud-hypervisor")[0].path.read_bytes() == CLOUD_HYPERVISOR


def test_a_cut_download_goes_on(origin: Origin) -> None:
    origin.cuts = [100]
    assert ensure()[0].version == "1.16.1"
    assert origin.requests == [None, "bytes=100-"]


def test_when_many_ask_it_is_downloaded_once(origin: Origin) -> None:
    events: list[Event] = []

    async def many() -> list[pinned.Binary]:
        first = asyncio.ensure_future(pinned.ensure("firecracker", events.append))
        while not origin.requests:
            await asyncio.sleep(0.01)
        others = [pinned.ensure("firecracker", events.append) for _ in range(4)]
        waiting = asyncio.gather(first, *others)
        while sum(isinstance(e, Notice) for e in events) < 4:
            await asyncio.sleep(0.01)
        origin.hold.set()
        return await waiting

    origin.hold_after = 10
    assert len(set(asyncio.run(many()))) == 1
    assert len(origin.requests) == 1


def test_a_wrong_digest_is_refused_and_nothing_stays(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(monkeypatch, origin, sha256="0" * 64)
    with pytest.raises(HostError, match=r"firecracker 1.16.1 cannot be had.*its sha256 is") as caught:
        ensure()
    assert "FLEETBOX_FIRECRACKER" in caught.value.hint
    assert left() == []


def test_offline_says_what_to_do(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        origin.url = f"http://127.0.0.1:{closed.getsockname()[1]}/x.tgz"
        pin(monkeypatch, origin)
        with pytest.raises(HostError, match="refused") as caught:
            ensure()
    assert "install firecracker, or name one by FLEETBOX_FIRECRACKER" in caught.value.hint


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (archive("other"), "the archive has no"),
        (b"no archive", "cannot be read"),
        (archive(data=os.urandom(8000))[:4000], "cannot be read"),
    ],
)
def test_an_archive_without_the_program_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, body: bytes, words: str
) -> None:
    with serving(body) as server:
        pin(monkeypatch, server)
        with pytest.raises(HostError, match=words):
            ensure()
    assert left() == []


def test_a_link_in_the_archive_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo(MEMBER)
        info.type, info.linkname = tarfile.SYMTYPE, "/bin/sh"
        tar.addfile(info)
    with serving(buffer.getvalue()) as server:
        pin(monkeypatch, server)
        with pytest.raises(HostError, match="is no file"):
            ensure()


def test_an_endless_member_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "MAX_PROGRAM_BYTES", 1 << 16)
    with serving(archive(data=bytes(1 << 20))) as server:
        pin(monkeypatch, server)
        with pytest.raises(HostError, match="larger than any"):
            ensure()
    assert left() == []
